"""Which tests prove which case. `test_by_id.py` holds the table to it."""

SERVER = "tests/security/test_real_server.py::"
FILES = "tests/security/test_model_files.py::"
WIRE = "tests/e2e/test_wire.py::"
MALFORMED = (
    "tests/fuzz/test_malformed.py::test_every_known_kind_is_refused_and_the_next_request_answered"
)
FAULTS = "tests/engine/test_faults.py::"
PROCESS = "tests/engine/test_process.py::"
LEAVING = "tests/e2e/test_leaving.py::"
STOPPING = "tests/e2e/test_stopping.py::"
SIMULATION = (
    "tests/simulation/test_simulation.py::"
    "test_every_invariant_holds_in_every_step_of_100_000_requests"
)

CASES: dict[str, tuple[str, ...]] = {
    "S01": (f"{SERVER}test_s01_a_request_for_very_much_is_refused_at_once",),
    "S02": (f"{SERVER}test_s02_prompts_and_choices_multiply", MALFORMED),
    "S03": (f"{SERVER}test_s03_nothing_to_read_is_refused", MALFORMED),
    "S04": (f"{SERVER}test_s04_numbers_are_finite", MALFORMED),
    "S05": (f"{SERVER}test_s05_integers_have_bounds_and_are_integers", MALFORMED),
    "S06": (f"{SERVER}test_s06_ids_out_of_the_vocabulary_are_refused",),
    "S07": (
        f"{SERVER}test_s07_extreme_parameters_change_no_neighbour",
        "tests/engine/test_determinism.py::test_64_concurrent_requests_get_what_each_gets_alone",
    ),
    "S08": (
        "tests/server/test_chat_template.py::test_special_tokens_that_a_user_types_are_plain_text",
        "tests/server/test_completions.py::test_special_tokens_in_a_prompt_are_plain_text",
    ),
    "S09": (
        f"{SERVER}test_s09_templates_come_from_the_operator",
        "tests/server/test_chat_template.py::test_a_rendered_prompt_has_a_longest_length",
    ),
    "S10": (f"{SERVER}test_s10_a_constraint_costs_no_more_than_a_request",),
    "S11": (
        "tests/e2e/test_bad_requests.py::test_a_long_text_without_spaces_does_not_stop_the_server",
    ),
    "S12": (f"{SERVER}test_s12_odd_json_is_refused", MALFORMED),
    "S13": (f"{WIRE}test_headers_without_end_are_not_read_to_the_end", MALFORMED),
    "S14": (
        f"{SERVER}test_s14_bodies_have_a_longest_length",
        "tests/server/test_middleware.py::test_a_body_without_a_length_is_counted_while_it_is_read",
    ),
    "S15": (f"{WIRE}test_a_body_with_two_lengths_smuggles_no_second_request", MALFORMED),
    "S16": (
        f"{SERVER}test_s16_forms_are_not_read",
        f"{SERVER}test_s16_no_form_parser_is_installed_with_the_server",
    ),
    "S17": (f"{SERVER}test_s17_ranges_are_ignored",),
    "S18": (
        f"{WIRE}test_a_request_that_trickles_in_is_cut_off",
        f"{SERVER}test_s18_connections_that_trickle_hurt_nobody",
    ),
    "S19": (f"{SERVER}test_s19_ids_of_clients_may_collide",),
    "S20": (f"{SERVER}test_s20_scanners_add_no_series",),
    "S21": (
        "tests/test_architecture.py::test_nothing_unpickles_and_nothing_evaluates_text",
        f"{SERVER}test_s21_nothing_listens_but_the_api",
    ),
    "S22": ("tests/models/test_loader.py::test_pickled_weights_are_refused",),
    "S23": (f"{FILES}test_s23_code_beside_a_model_is_never_imported",),
    "S24": (f"{SERVER}test_s24_the_optimised_server_runs_without_asserts",),
    "S25": (f"{SERVER}test_s25_tensors_are_no_input",),
    "S28": (f"{SERVER}test_s28_the_server_asks_nobody",),
    "S29": (f"{SERVER}test_s29_a_client_writes_no_log_lines",),
    "S30": (f"{FILES}test_s30_a_hostile_header_is_an_error_and_allocates_nothing",),
    "S31": (f"{SERVER}test_s31_only_the_path_decides_who_needs_a_key",),
    "S32": (
        "tests/server/test_middleware.py::test_every_route_but_the_probes_and_the_page_needs_a_key",
        f"{SERVER}test_s32_every_route_of_the_document_needs_a_key",
    ),
    "S33": (f"{SERVER}test_s33_wrong_keys_are_refused_alike",),
    "S34": (
        f"{SERVER}test_s34_secrets_are_written_nowhere",
        "tests/e2e/test_secrets.py::test_neither_keys_nor_prompts_are_written_down",
    ),
    "S35": (
        "tests/server/test_refusals.py::test_what_the_engine_refuses_has_a_status",
        "tests/server/test_streaming.py::test_a_stream_that_fails_ends_with_an_error_and_no_done",
        f"{FAULTS}test_the_error_says_what_kind_it_was_and_nothing_of_the_inside",
    ),
    "S38": (f"{FAULTS}test_a_reused_slot_remembers_nothing",),
    "S39": (
        f"{SERVER}test_s39_pages_of_others_get_nothing",
        "tests/server/test_server_config.py::test_other_machines_need_a_key",
    ),
    "S40": (
        "tests/deploy/test_supply_chain.py::test_every_locked_package_has_a_version_and_a_hash",
        "tests/deploy/test_supply_chain.py::test_no_pin_is_known_to_be_vulnerable",
    ),
    "R01": (
        "tests/e2e/test_engine_death.py::test_all_requests_end_and_the_server_recovers",
        f"{PROCESS}test_a_killed_engine_ends_every_stream_at_once_and_comes_back",
    ),
    "R02": (
        f"{PROCESS}test_a_hanging_engine_is_noticed_killed_and_replaced",
        f"{PROCESS}test_an_engine_that_hangs_while_it_loads_is_killed_and_given_up",
    ),
    "R03": (
        f"{PROCESS}test_an_engine_that_never_loads_is_given_up",
        f"{PROCESS}test_only_an_engine_that_does_nothing_but_die_comes_back_late",
        "tests/e2e/test_engine_death.py::test_a_model_that_cannot_be_loaded_ends_the_server",
    ),
    "R04": (
        f"{LEAVING}test_a_closed_stream_frees_its_slot_within_two_steps",
        f"{LEAVING}test_an_answer_that_is_not_streamed_is_given_up_too",
    ),
    "R05": (
        "tests/test_architecture.py::test_middleware_is_plain_asgi",
        f"{LEAVING}test_a_request_that_waits_for_a_slot_leaves_the_queue",
    ),
    "R06": (SIMULATION,),
    "R07": (f"{FAULTS}test_a_reused_slot_remembers_nothing",),
    "R09": (
        f"{FAULTS}test_a_culprit_fails_alone_and_its_neighbours_do_not_notice",
        f"{FAULTS}test_a_state_that_no_output_shows_fails_in_the_step_that_makes_it",
        f"{FAULTS}test_an_infinite_feature_mass_fails_in_the_step_that_reads_it",
    ),
    "R10": (f"{FAULTS}test_a_culprit_fails_alone_and_its_neighbours_do_not_notice",),
    "R11": (
        f"{FAULTS}test_a_fault_that_passes_costs_nobody_anything",
        "tests/engine/test_loading.py::test_states_that_do_not_fit_are_refused_with_the_figures",
    ),
    "R12": (f"{SERVER}test_r12_a_flood_is_refused_at_once_and_the_accepted_are_served",),
    "R13": (
        SIMULATION,
        "tests/engine/test_scheduler.py::test_a_long_prompt_does_not_stall_running_streams",
        "tests/engine/test_scheduler.py::"
        "test_the_oldest_prompt_moves_on_however_many_sequences_decode",
    ),
    "R14": (
        "tests/e2e/test_bad_requests.py::test_a_long_text_without_spaces_does_not_stop_the_server",
    ),
    "R15": (f"{STOPPING}test_probes_are_answered_while_the_model_loads",),
    "R16": (
        f"{STOPPING}test_a_draining_server_finishes_what_runs_and_refuses_the_rest",
        f"{STOPPING}test_what_does_not_finish_in_time_ends_with_an_error",
        f"{STOPPING}test_a_second_signal_ends_the_server_at_once",
    ),
    "R17": (
        "tests/server/test_streaming.py::test_a_stream_that_fails_ends_with_an_error_and_no_done",
        "tests/e2e/test_streamed_equals_whole.py::test_a_streamed_completion_is_the_whole_one",
    ),
    "R18": (
        "tests/engine/test_detokenizer.py::test_a_character_comes_with_its_last_byte",
        "tests/engine/test_detokenizer.py::test_the_prompt_never_leaks",
    ),
    "R19": (
        "tests/engine/test_detokenizer.py::test_stop_strings_are_found_however_the_text_is_cut",
    ),
    "R20": (
        "tests/engine/test_engine.py::test_logprobs_come_with_their_tokens_and_are_never_infinite",
    ),
    "R21": ("tests/server/test_streaming.py::test_usage_is_the_last_chunk_and_only_on_request",),
    "R22": (f"{LEAVING}test_everything_is_accounted_for",),
    "R23": (
        f"{SERVER}test_r23_a_client_that_stops_reading_is_given_up",
        "tests/server/test_streaming.py::test_a_client_that_stops_reading_is_given_up",
        "tests/engine/test_stream.py::test_a_reader_that_never_comes_does_not_make_a_queue_grow",
    ),
    "R24": ("tests/e2e/test_soak.py::test_nothing_is_left_behind",),
    "R25": (
        "tests/engine/test_determinism.py::test_64_concurrent_requests_get_what_each_gets_alone",
        "tests/e2e/test_concurrency.py::test_64_streams_at_once_say_what_each_says_alone",
    ),
    "R26": (
        "tests/deploy/test_proxies.py::test_tokens_pass_as_they_come",
        "tests/server/test_streaming.py::test_proxies_are_asked_not_to_store_or_gather",
    ),
}

COMING: dict[str, str] = {
    "S26": "names of sessions and snapshots: there are none yet",
    "S27": "ids of sessions: there are none yet",
    "S36": "prefix cache: there is none yet",
    "S37": "prefix cache: there is none yet",
    "R08": "snapshots: there are none yet",
    "R27": "snapshots: there are none yet",
}
"""Cases of a feature that does not exist; they come with it."""
