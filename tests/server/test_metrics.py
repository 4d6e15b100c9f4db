"""What `/metrics` tells, and that it adds up."""

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dijiang_runtime.engine.messages import EngineStats
from dijiang_runtime.errors import EngineDeadError, EngineOverloadedError, NumericalError
from server.metric_buckets import position_bucket
from tests.server.asgi import Visitor
from tests.server.fake_engine import FakeEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT: dict[str, Any] = {"prompt": "Once"}


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    """Every sample, named as `name{label=value}` without the model's label."""
    text = (await client.get("/metrics")).text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            inside = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            samples[sample.name + (f"{{{inside}}}" if inside else "")] = sample.value
    return samples


async def test_the_format_is_prometheus_text(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "_created" not in response.text


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
async def test_tokens_and_sequences_are_counted_as_usage_counts_them(
    client: httpx.AsyncClient, is_stream: bool
) -> None:
    body = {**PROMPT, "n": 2, "max_tokens": 5, "stream": is_stream}
    await client.post(COMPLETIONS, json=body)
    samples = await scrape(client)
    assert samples["dijiang_generation_tokens_total"] == 10
    assert samples["dijiang_prompt_tokens_total"] == 4
    assert samples["dijiang_request_success_total{finished_reason=length}"] == 2
    assert samples["dijiang_time_to_first_token_seconds_count"] == 2
    assert samples["dijiang_inter_token_latency_seconds_count"] == 8
    assert samples["dijiang_e2e_request_latency_seconds_count"] == 2
    assert samples["dijiang_request_params_n_sum"] == 2


async def test_what_vllm_measures_too_has_its_name(client: httpx.AsyncClient) -> None:
    await client.post(COMPLETIONS, json={**PROMPT, "max_tokens": 5})
    samples = await scrape(client)
    assert samples["vllm:generation_tokens_total"] == 5
    assert samples["vllm:num_requests_running"] == 1
    assert samples["vllm:num_requests_waiting"] == 2
    assert samples["vllm:kv_cache_usage_perc"] == 0.75
    assert samples["vllm:num_preemptions_total"] == 0
    assert samples["vllm:cache_config_info{block_size=1,num_gpu_blocks=4}"] == 1
    assert samples["vllm:inter_token_latency_seconds_bucket{le=0.0005}"] >= 0
    text = (await client.get("/metrics")).text
    assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0' in text


async def test_where_prompts_come_from_and_what_was_computed_of_them(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post(COMPLETIONS, json={**PROMPT, "n": 2, "max_tokens": 5})
    samples = await scrape(client)
    by_source = "vllm:prompt_tokens_by_source_total{source=%s}"
    assert samples[by_source % "local_compute"] == samples["vllm:prompt_tokens_total"] == 4
    assert samples[by_source % "local_cache_hit"] == 0
    assert samples[by_source % "external_kv_transfer"] == 0
    assert (
        samples["vllm:prefix_cache_queries_total"] == samples["vllm:prefix_cache_hits_total"] == 0
    )
    # The second choice has a copy of the first's state.
    assert samples["vllm:request_prefill_kv_computed_tokens_sum"] == 4
    assert samples["vllm:request_prefill_kv_computed_tokens_count"] == 2
    assert samples["vllm:request_max_num_generation_tokens_sum"] == 5
    assert samples["vllm:request_max_num_generation_tokens_count"] == 1
    assert samples["vllm:request_num_preemptions_sum"] == 0
    assert samples["vllm:request_num_preemptions_count"] == 2


async def test_who_waits_for_a_grammar_does_not_wait_for_room(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.stats = EngineStats(waiting=5, awaiting_grammars=2)
    samples = await scrape(client)
    by_reason = "vllm:num_requests_waiting_by_reason{reason=%s}"
    assert samples[by_reason % "capacity"] == 3
    assert samples[by_reason % "deferred"] == 2


async def test_vllm_s_names_can_be_turned_off(client_for: Any) -> None:
    assert "vllm:" not in (await client_for(vllm_metrics=False).get("/metrics")).text


async def test_the_states_can_be_held_against_the_kv_cache_they_replace(
    client: httpx.AsyncClient,
) -> None:
    samples = await scrape(client)
    assert samples["dijiang_context_tokens"] == 500
    assert samples["dijiang_state_bytes_per_sequence"] == 4096
    assert samples["dijiang_parent_kv_cache_bytes_per_token"] == 512


async def test_steps_of_the_engine_are_measured(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.report(
        EngineStats(
            step_seconds=(0.001, 0.002, 0.004),
            step_decodes=(3, 0, 2),
            step_prefill_tokens=(0, 64, 62),
            step_batch_sizes=(3, 1, 4),
            num_failed_rows=1,
        )
    )
    samples = await scrape(client)
    assert samples["dijiang_step_seconds_count{kind=decode}"] == 1
    assert samples["dijiang_step_seconds_sum{kind=prefill}"] == 0.002
    assert samples["dijiang_step_seconds_count{kind=mixed}"] == 1
    assert samples["vllm:iteration_tokens_total_sum"] == 131
    assert samples["dijiang_failed_rows_total"] == 1
    assert samples["dijiang_step_batch_size_sum{kind=mixed}"] == 4
    assert samples["dijiang_step_batch_size_bucket{kind=decode,le=2.0}"] == 0


async def test_gaps_are_told_by_position_too(client: httpx.AsyncClient) -> None:
    await client.post(COMPLETIONS, json={**PROMPT, "max_tokens": 5})
    samples = await scrape(client)
    name = "dijiang_itl_seconds_count{position_bucket=%s}"
    assert samples[name % "0-1023"] == 4
    assert samples[name % "16384-"] == 0


@pytest.mark.parametrize(
    ("position", "bucket"),
    [
        (0, "0-1023"),
        (1023, "0-1023"),
        (1024, "1024-4095"),
        (16383, "4096-16383"),
        (10**6, "16384-"),
    ],
)
def test_every_position_has_a_bucket(position: int, bucket: str) -> None:
    assert position_bucket(position) == bucket


async def test_slots_and_the_start_are_told_by_state_and_phase(client: httpx.AsyncClient) -> None:
    samples = await scrape(client)
    assert samples["dijiang_state_slots_by_state{state=active}"] == 3
    assert samples["dijiang_state_slots_by_state{state=free}"] == 1
    assert samples["dijiang_startup_seconds{phase=warmup}"] == 0.25


async def test_every_request_has_one_outcome(
    app_for: Any, client_for: Any, engine: FakeEngine
) -> None:
    app = app_for()
    client = client_for(app)

    async def post(**body: Any) -> None:
        await client.post(COMPLETIONS, json={**PROMPT, **body})

    # ok
    await post()
    await post(stream=True)
    # rejected
    await post(n=0)
    await post(model="other")
    await client.post(COMPLETIONS, content=b"{}")
    engine.raises = EngineOverloadedError("full", retry_after_seconds=1)
    await post(stream=True)
    engine.raises = None
    engine.is_ready = False
    await post()
    engine.is_ready = True
    # error
    for error in (NumericalError(), EngineDeadError(), RuntimeError()):
        engine.script = lambda request, error=error: [error]  # type: ignore[misc]
        await post()
        await post(stream=True)
    # aborted
    engine.script = engine.tell
    engine.gate.clear()
    for is_stream in (False, True):
        visitor = Visitor(app, COMPLETIONS, {**PROMPT, "stream": is_stream})
        async with asyncio.timeout(5):
            while not app.state.context.lifecycle.num_active:
                await asyncio.sleep(0)
            visitor.leave()
            await visitor.task
            await app.state.context.lifecycle.wait_until_idle()

    samples = await scrape(client)
    outcomes = {
        outcome: samples[f"dijiang_requests_finished_total{{outcome={outcome},path={COMPLETIONS}}}"]
        for outcome in ("ok", "rejected", "error", "aborted")
    }
    assert outcomes == {"ok": 2, "rejected": 5, "error": 6, "aborted": 2}
    received = samples[f"dijiang_requests_received_total{{path={COMPLETIONS}}}"]
    assert received == sum(outcomes.values())
    assert samples["dijiang_disconnects_total"] == 2
    assert samples["dijiang_admission_rejections_total{reason=queue_full}"] == 1
    assert samples["dijiang_admission_rejections_total{reason=engine_not_ready}"] == 1


async def test_scanners_do_not_add_series(client: httpx.AsyncClient) -> None:
    async def visit(i: int) -> None:
        await client.get(f"/scan/{i}")
        await client.get(f"/v1/models/{i}")
        await client.request("X" * (i + 1), "/livez")
        await client.post(COMPLETIONS, json={**PROMPT, "model": f"m{i}"})

    await visit(0)
    await client.get("/metrics")
    before = len(await scrape(client))
    for i in range(1, 20):
        await visit(i)
    assert len(await scrape(client)) == before
