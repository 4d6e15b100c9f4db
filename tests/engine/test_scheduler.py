import pytest

from dijiang_runtime.engine.admission import QueueLimits
from dijiang_runtime.engine.scheduler import Scheduler
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence, StepResult
from dijiang_runtime.errors import EngineOverloadedError
from dijiang_runtime.request import FinishReason, RequestError
from tests.engine.requests import make_request

UNLIMITED = QueueLimits(10_000, 10**9)
EOS = 0


def make_scheduler(
    num_slots: int = 4, max_batched_tokens: int = 256, limits: QueueLimits = UNLIMITED
) -> Scheduler:
    return Scheduler(
        num_slots=num_slots,
        max_batched_tokens=max_batched_tokens,
        limits=limits,
        eos_token_ids=frozenset({EOS}),
    )


def make_sequence(
    request_id: str = "r", num_prompt_tokens: int = 3, **sampling: object
) -> Sequence:
    return Sequence(make_request(request_id, [5] * num_prompt_tokens, **sampling), seed=0)


def finish_step(scheduler: Scheduler, plan: SchedulerOutput, token_id: int = 9) -> None:
    """Close a step in which every sequence that can sample sampled `token_id`."""
    results = [StepResult(token_id if item.completes_prompt else None) for item in plan]
    scheduler.update(plan, results, now=0.0)


def run_step(scheduler: Scheduler, token_id: int = 9) -> SchedulerOutput:
    plan = scheduler.schedule(now=0.0)
    finish_step(scheduler, plan, token_id)
    return plan


def prefilled(scheduler: Scheduler, request_id: str, **sampling: object) -> Sequence:
    sequence = make_sequence(request_id, **{"max_tokens": 100, **sampling})
    scheduler.add(sequence)
    run_step(scheduler)
    assert not sequence.is_prefilling
    return sequence


def test_a_long_prompt_does_not_stall_running_streams() -> None:
    scheduler = make_scheduler(max_batched_tokens=129)
    chat = prefilled(scheduler, "chat")
    document = make_sequence("document", num_prompt_tokens=1000)
    scheduler.add(document)

    plan = scheduler.schedule(now=0.0)

    assert plan.decodes == (ScheduledSequence(chat, 1),)
    assert plan.prefills == (ScheduledSequence(document, 128),)


@pytest.mark.parametrize("max_batched_tokens", [1, 63, 64, 65, 100, 200, 1000])
@pytest.mark.parametrize("num_prompt_tokens", [1, 63, 64, 65, 300])
def test_prompts_are_cut_at_multiples_of_the_chunk_size_and_nowhere_else(
    max_batched_tokens: int, num_prompt_tokens: int
) -> None:
    scheduler = make_scheduler(max_batched_tokens=max_batched_tokens)
    sequence = make_sequence(num_prompt_tokens=num_prompt_tokens)
    scheduler.add(sequence)

    cuts = []
    while sequence.is_prefilling:
        run_step(scheduler)
        cuts.append(sequence.num_computed_tokens)

    assert cuts[-1] == num_prompt_tokens
    assert all(cut % 64 == 0 for cut in cuts[:-1])


def test_the_oldest_prompt_comes_first_and_the_rest_of_the_budget_is_not_wasted() -> None:
    scheduler = make_scheduler(max_batched_tokens=128)
    first, second, third = (make_sequence(name, 100) for name in "abc")
    third = make_sequence("third", 20)
    for sequence in (first, second, third):
        scheduler.add(sequence)

    plan = scheduler.schedule(now=0.0)

    # 28 tokens are left after the first: no whole chunk of the second, but all of the third.
    assert plan.prefills == (ScheduledSequence(first, 100), ScheduledSequence(third, 20))


def test_the_oldest_prompt_moves_on_however_many_sequences_decode() -> None:
    scheduler = make_scheduler(num_slots=20, max_batched_tokens=16)
    for i in range(17):
        prefilled(scheduler, f"chat-{i}")
    document = make_sequence("document", num_prompt_tokens=200)
    scheduler.add(document)

    plan = scheduler.schedule(now=0.0)

    assert len(plan.decodes) == 17
    assert plan.prefills == (ScheduledSequence(document, 64),)


def test_slots_are_given_in_order_of_arrival_and_listed_for_zeroing() -> None:
    scheduler = make_scheduler(num_slots=2)
    sequences = [make_sequence(str(i)) for i in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)

    plan = run_step(scheduler)

    assert [s.slot for s in sequences] == [1, 2, None, None]
    assert plan.new_slots == (1, 2)
    assert run_step(scheduler).new_slots == ()

    scheduler.abort("0", now=0.0)
    assert run_step(scheduler).new_slots == (1,)
    assert sequences[2].slot == 1


def test_an_abort_during_a_step_keeps_the_slot_until_the_step_is_over() -> None:
    scheduler = make_scheduler(num_slots=1)
    sequence, next_one = make_sequence("a"), make_sequence("b")
    scheduler.add(sequence)
    scheduler.add(next_one)
    plan = scheduler.schedule(now=0.0)

    scheduler.abort("a", now=0.0)
    assert scheduler.slots.num_free == 0
    assert not sequence.is_finished

    finish_step(scheduler, plan)
    assert sequence.finish_reason is FinishReason.ABORT
    assert sequence.output_token_ids == []
    assert scheduler.schedule(now=0.0).prefills == (ScheduledSequence(next_one, 3),)


@pytest.mark.parametrize("stage", ["waiting", "prefilling", "decoding"])
def test_an_abort_between_steps_frees_the_slot_at_once(stage: str) -> None:
    scheduler = make_scheduler(num_slots=1, max_batched_tokens=64)
    if stage == "waiting":
        prefilled(scheduler, "other")
    sequence = make_sequence("a", num_prompt_tokens=3 if stage == "decoding" else 100)
    scheduler.add(sequence)
    run_step(scheduler)
    num_used = scheduler.slots.num_used

    scheduler.abort("a", now=0.0)

    assert sequence.finish_reason is FinishReason.ABORT
    assert scheduler.slots.num_used == (num_used if stage == "waiting" else 0)
    assert not scheduler.knows("a")
    assert scheduler.abort("a", now=0.0) is None


def test_a_failed_row_ends_its_sequence_and_no_other() -> None:
    scheduler = make_scheduler()
    good, bad = prefilled(scheduler, "good"), prefilled(scheduler, "bad")
    plan = scheduler.schedule(now=0.0)
    error = RequestError("NumericalError", "not finite")
    num_output_tokens = len(bad.output_token_ids)

    scheduler.update(plan, [StepResult(7), StepResult(error=error)], now=0.0)

    assert (bad.finish_reason, bad.error) == (FinishReason.ERROR, error)
    assert len(bad.output_token_ids) == num_output_tokens
    assert good.output_token_ids[-1] == 7
    assert scheduler.slots.num_used == 1


def test_eos_and_stop_ids_end_an_answer_with_stop() -> None:
    scheduler = make_scheduler()
    by_eos = prefilled(scheduler, "by_eos")
    by_id = prefilled(scheduler, "by_id", stop_token_ids=(33,), ignore_eos=True)
    run_step(scheduler, token_id=EOS)
    assert (by_eos.finish_reason, by_eos.stop_reason) == (FinishReason.STOP, None)
    assert by_id.finish_reason is None

    run_step(scheduler, token_id=33)

    assert (by_id.finish_reason, by_id.stop_reason) == (FinishReason.STOP, 33)


def test_max_tokens_ends_an_answer_with_length() -> None:
    scheduler = make_scheduler()
    sequence = prefilled(scheduler, "a", max_tokens=3)

    run_step(scheduler)
    assert not sequence.is_finished
    run_step(scheduler)

    assert sequence.finish_reason is FinishReason.LENGTH
    assert len(sequence.output_token_ids) == 3


def test_no_tokens_are_wanted_from_a_prompt_that_is_only_scored() -> None:
    scheduler = make_scheduler(max_batched_tokens=64)
    sequence = make_sequence("a", num_prompt_tokens=100, max_tokens=0, prompt_logprobs=0)
    scheduler.add(sequence)

    while scheduler.has_work:
        plan = scheduler.schedule(now=0.0)
        scheduler.update(plan, [StepResult() for _ in plan], now=0.0)

    assert sequence.finish_reason is FinishReason.LENGTH
    assert sequence.output_token_ids == []


def test_stop_tokens_count_only_after_min_tokens_others() -> None:
    scheduler = make_scheduler()
    sequence = prefilled(scheduler, "a", min_tokens=2)

    run_step(scheduler, token_id=EOS)
    assert not sequence.is_finished
    run_step(scheduler, token_id=EOS)

    assert sequence.finish_reason is FinishReason.STOP


def test_a_full_queue_refuses_with_the_time_to_come_back() -> None:
    scheduler = make_scheduler(num_slots=1, limits=QueueLimits(max_requests=2, max_tokens=1000))
    for i in range(3):
        scheduler.add(make_sequence(str(i), max_tokens=2))

    with pytest.raises(EngineOverloadedError) as refusal:
        scheduler.add(make_sequence("surplus"))
    assert refusal.value.retry_after_seconds == 1.0
    assert not scheduler.knows("surplus")

    # Answers of two tokens at five seconds a step: a place comes free every ten seconds.
    for now in range(0, 400, 5):
        plan = scheduler.schedule(now=now)
        scheduler.update(plan, [StepResult(9) for _ in plan], now=now)
        while scheduler.has_room_for(3):
            scheduler.add(make_sequence(f"{now}-{len(scheduler.waiting)}", max_tokens=2))
    with pytest.raises(EngineOverloadedError) as refusal:
        scheduler.add(make_sequence("surplus"))
    assert refusal.value.retry_after_seconds == pytest.approx(10.0, rel=0.05)


def test_waiting_prompts_are_bounded_in_tokens_beside_the_longest() -> None:
    scheduler = make_scheduler(num_slots=1, limits=QueueLimits(max_requests=100, max_tokens=50))
    scheduler.add(make_sequence("runs", 1000))
    scheduler.add(make_sequence("longest", 1000))
    scheduler.add(make_sequence("fits", 50))

    assert not scheduler.has_room_for(1)
    with pytest.raises(EngineOverloadedError):
        scheduler.add(make_sequence("surplus", 1))


def test_the_lowest_priority_is_admitted_first_and_the_first_of_equals() -> None:
    scheduler = make_scheduler(num_slots=1)
    running = prefilled(scheduler, "running", max_tokens=2)
    for name, priority in (("a", 5), ("b", 0), ("c", -3), ("d", 0), ("e", -3)):
        scheduler.add(Sequence(make_request(name, priority=priority, max_tokens=1), seed=0))

    admitted = []
    while scheduler.has_work:
        for item in run_step(scheduler):
            admitted.append(item.sequence.request_id)

    assert running.is_finished
    assert admitted == ["running", *"cebda"]


def test_a_sequence_that_waited_too_long_is_given_up_and_none_that_runs() -> None:
    scheduler = make_scheduler(num_slots=1)
    names = ("runs", "patient", "hasty")
    runs, patient, hasty = (
        Sequence(make_request(name, max_tokens=9, max_queue_seconds=seconds), seed=0)
        for name, seconds in zip(names, (1.0, None, 2.0), strict=True)
    )
    for sequence in (runs, patient, hasty):
        scheduler.add(sequence)
    run_step(scheduler)

    assert scheduler.expire(now=1.9) == []
    assert scheduler.expire(now=2.0) == [hasty]

    assert hasty.finish_reason is FinishReason.ERROR
    assert hasty.error is not None and hasty.error.kind == "QueueTimeoutError"
    assert list(scheduler.running) == ["runs"]
    assert list(scheduler.waiting) == ["patient"]


def test_free_slots_are_no_queue() -> None:
    scheduler = make_scheduler(num_slots=3, limits=QueueLimits(max_requests=0, max_tokens=0))
    for i in range(3):
        assert scheduler.has_room_for(1000)
        scheduler.add(make_sequence(str(i), 1000))

    assert not scheduler.has_room_for(1)
    with pytest.raises(EngineOverloadedError):
        scheduler.add(make_sequence("surplus"))
