"""The small benchmark set: the hot paths of a step and of its way to the client, each by itself.

`make benchmark` runs it, on as many threads as `OMP_NUM_THREADS` says, one by default. What a round
computed is checked, so that no failure is timed.
"""

import json
from typing import Any, cast

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dijiang_runtime.bench.engine import Bench, BenchOptions
from dijiang_runtime.bench.facts import shape_config
from dijiang_runtime.bench.made_up import made_up_tokenizer
from dijiang_runtime.bench.random_models import random_serving_model
from dijiang_runtime.engine.admission import QueueLimits
from dijiang_runtime.engine.messages import EngineStats, StepDone, decode_engine_message, encode
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.output_processor import OutputProcessor
from dijiang_runtime.engine.scheduler import Scheduler
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import RawLogprobs, Sequence, StepResult
from dijiang_runtime.models.compiled import CompiledDecoder
from dijiang_runtime.ops.cpu.library import targets
from dijiang_runtime.ops.cpu.packed import WeightFormat, multiply, pack, unpack
from dijiang_runtime.request import PositionLogprobs, RequestOutput, TokenLogprob
from dijiang_runtime.tokenizer import Tokenizer
from server.generation import Generation
from server.protocol.chat import ChatCompletionRequest
from server.routes.chat_writer import ChatStream
from server.routes.common import AnswerHead
from tests.engine.requests import make_request

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not targets(), reason="built without a C++ compiler"),
]

CPU = torch.device("cpu")
ROWS = 32
POSITION = 128
VOCAB_SIZE = 50_304
ENDLESS = 10**9
"""Tokens that no benchmark comes to."""
NUM_TOP = 5

# Relative, of a product of random numbers: rounding of the activations.
TOLERANCE = {"bfloat16": 3e-3, "int8": 1.2e-2}
# At this temperature top_p keeps a few of random logits, as it does of a model's.
SHARP, TOP_P = 0.1, 0.9
SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top_p": {"temperature": SHARP, "top_p": TOP_P},
    "logprobs": {"temperature": 0.0, "logprobs": NUM_TOP},
}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def make_sequence(slot: int, *, num_prompt_tokens: int = POSITION, **sampling: Any) -> Sequence:
    """A sequence that has not begun."""
    prompt = [i * 7919 % VOCAB_SIZE for i in range(num_prompt_tokens)]
    request = make_request(f"request-{slot}", prompt, **{"max_tokens": ENDLESS, **sampling})
    return Sequence(request, seed=slot, slot=slot)


def decode_step(batch: int, num_decoded: int) -> SchedulerOutput:
    """A step of sequences that have read their prompts and so many tokens after them."""
    items = []
    for slot in range(1, batch + 1):
        sequence = make_sequence(slot, temperature=0.0)
        for _ in range(num_decoded + 1):
            sequence.append(1)
        sequence.num_computed_tokens = POSITION + num_decoded
        items.append(ScheduledSequence(sequence, 1))
    return SchedulerOutput(decodes=tuple(items))


def raw_logprobs(token_id: int) -> RawLogprobs:
    top = tuple(range(token_id, token_id + NUM_TOP))
    return RawLogprobs(token_id, -0.5, top, tuple(-0.5 - i for i in range(NUM_TOP)))


def output(row: int, *, has_logprobs: bool) -> RequestOutput:
    """What is new for one row after a step."""
    top = tuple(TokenLogprob(i, f" token{i}", b" token%d" % i, -0.5 - i) for i in range(NUM_TOP))
    return RequestOutput(
        request_id=f"request-{row}",
        text=" token0",
        token_ids=(row,),
        logprobs=(PositionLogprobs(top[0], top),) if has_logprobs else None,
        num_prompt_tokens=POSITION,
        num_output_tokens=17,
    )


with_and_without_logprobs = pytest.mark.parametrize(
    "has_logprobs", [False, True], ids=["plain", "logprobs"]
)


@pytest.mark.benchmark(group="matrix product")
@pytest.mark.parametrize("rows", [1, 32, 512])
@pytest.mark.parametrize("weight_format", ["int8", "bfloat16"])
@pytest.mark.parametrize("shape", [(512, 2048), (2048, 512)], ids=["up", "down"])
def test_packed_product(
    benchmark: BenchmarkFixture, shape: tuple[int, int], weight_format: WeightFormat, rows: int
) -> None:
    inputs, outputs = shape
    matrix = pack(normal(outputs, inputs), torch.zeros(outputs), weight_format)
    x = normal(rows, inputs)

    y = benchmark(multiply, x, matrix)

    truth = x.double() @ unpack(matrix).double().T
    assert float((y - truth).norm() / truth.norm()) < TOLERANCE[weight_format]


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    """The one that `dijiang bench` times, of random weights."""
    model = random_serving_model(shape_config("pythia-70m"), CPU, "int8")
    assert isinstance(model, CompiledDecoder)
    return Bench(model, BenchOptions(batches=(ROWS,)), lambda text: None)._runner


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("batch", [1, 8, ROWS])
def test_four_decode_steps(benchmark: BenchmarkFixture, runner: ModelRunner, batch: int) -> None:
    """As many as there are between two that write the states, and one of those."""
    plans = [decode_step(batch, n) for n in range(runner.model.num_pending_tokens + 1)]
    assert len(plans) == 4

    steps = benchmark(lambda: [runner.execute(plan) for plan in plans])

    assert [len(results) for results in steps] == [batch] * 4
    for result in (result for results in steps for result in results):
        assert result.error is None and result.token_id is not None


@pytest.mark.benchmark(group="step")
def test_a_prompt_step(benchmark: BenchmarkFixture, runner: ModelRunner) -> None:
    sequence = make_sequence(1, num_prompt_tokens=512, temperature=0.0)
    # The slot is emptied each time, so that every round computes the same.
    plan = SchedulerOutput(prefills=(ScheduledSequence(sequence, 512),), new_slots=(1,))

    [result] = benchmark(runner.execute, plan)

    assert result.error is None and result.token_id is not None
    assert [result] == runner.execute(plan)


@pytest.mark.benchmark(group="sampler")
@pytest.mark.parametrize("kind", SAMPLED)
def test_sampler(benchmark: BenchmarkFixture, runner: ModelRunner, kind: str) -> None:
    logits = normal(ROWS, VOCAB_SIZE)
    before = logits.clone()
    sequences = [make_sequence(row, **SAMPLED[kind]) for row in range(ROWS)]

    tokens = benchmark(runner.sampler.sample, logits, sequences)

    # Nothing asked for a change, so that every round read the same.
    assert torch.equal(logits, before)
    chosen = torch.tensor([token.token_id for token in tokens])
    if kind == "top_p":
        found = (before.double() / SHARP).softmax(-1)
        is_likelier = found > found.gather(1, chosen[:, None])
        assert bool(((found * is_likelier).sum(-1) < TOP_P).all())
    else:
        assert torch.equal(chosen, before.argmax(-1))
    if kind == "logprobs":
        top = before.double().log_softmax(-1).topk(NUM_TOP)
        for token, ids, values in zip(tokens, top.indices, top.values, strict=True):
            assert token.logprobs is not None
            assert token.logprobs.top_ids == tuple(ids.tolist())
            assert token.logprobs.top_logprobs == pytest.approx(values.tolist(), rel=1e-5)


@pytest.mark.benchmark(group="scheduler")
def test_scheduler(benchmark: BenchmarkFixture) -> None:
    scheduler = Scheduler(num_slots=ROWS, max_batched_tokens=512, limits=QueueLimits(ROWS, ENDLESS))
    for row in range(ROWS):
        scheduler.add(make_sequence(row, num_prompt_tokens=1))
    results = [StepResult(token_id=1)] * ROWS

    def step() -> SchedulerOutput:
        plan = scheduler.schedule(now=0.0)
        scheduler.update(plan, results, now=0.0)
        return plan

    assert len(step().prefills) == ROWS
    plan = benchmark(step)

    assert len(plan.decodes) == len(plan) == len(scheduler.running) == ROWS
    [num_tokens] = {len(item.sequence.output_token_ids) for item in plan}
    assert num_tokens > 1


@pytest.mark.benchmark(group="output processor")
@pytest.mark.parametrize("kind", ["plain", "stop strings", "logprobs"])
def test_output_processor(benchmark: BenchmarkFixture, kind: str) -> None:
    tokenizer = Tokenizer(made_up_tokenizer(VOCAB_SIZE))
    processor = OutputProcessor(tokenizer)
    stop = ("\n\n", "User:") if kind == "stop strings" else ()
    sequences = [make_sequence(row, stop=stop) for row in range(ROWS)]
    token_ids = [1000 + row for row in range(ROWS)]
    results = [
        StepResult(token_id=i, logprobs=raw_logprobs(i) if kind == "logprobs" else None)
        for i in token_ids
    ]
    for sequence, token_id in zip(sequences, token_ids, strict=True):
        processor.add(sequence)
        sequence.append(token_id)

    def process() -> list[tuple[RequestOutput | None, str | None]]:
        pairs = zip(sequences, results, strict=True)
        return [processor.process(sequence, result) for sequence, result in pairs]

    processed = benchmark(process)

    for (news, stopped), token_id in zip(processed, token_ids, strict=True):
        assert news is not None and stopped is None
        assert news.text == tokenizer.token_bytes(token_id).decode() != ""
        assert news.token_ids == (token_id,)
        num_top = [len(position.top) for position in news.logprobs or ()]
        assert num_top == ([NUM_TOP] if kind == "logprobs" else [])


@pytest.mark.benchmark(group="SSE chunk")
@with_and_without_logprobs
def test_sse_chunk(benchmark: BenchmarkFixture, has_logprobs: bool) -> None:
    body = ChatCompletionRequest.model_validate(
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "logprobs": has_logprobs,
            "top_logprobs": NUM_TOP if has_logprobs else None,
        }
    )
    head = AnswerHead("chatcmpl-1", 1_700_000_000, "a-model", "a-fingerprint")
    # The generation is only asked for usage, which this request does not want.
    stream = ChatStream(body, head, cast(Generation, None), (), None)
    news = output(0, has_logprobs=has_logprobs)

    data = benchmark(stream.chunk, 0, news)

    assert data.startswith(b"data: ") and data.endswith(b"\n\n")
    [choice] = json.loads(data.removeprefix(b"data: "))["choices"]
    assert choice["delta"]["content"] == news.text
    if has_logprobs:
        [position] = choice["logprobs"]["content"]
        assert len(position["top_logprobs"]) == NUM_TOP


@pytest.mark.benchmark(group="message")
@pytest.mark.parametrize("way", ["encode", "decode"])
@with_and_without_logprobs
def test_step_message(benchmark: BenchmarkFixture, has_logprobs: bool, way: str) -> None:
    outputs = tuple(output(row, has_logprobs=has_logprobs) for row in range(ROWS))
    stats = EngineStats(running=ROWS, generation_tokens=ROWS, step_seconds=(0.005,))
    message = StepDone(outputs, stats)

    if way == "encode":
        assert decode_engine_message(benchmark(encode, message)) == message
    else:
        assert benchmark(decode_engine_message, encode(message)) == message
