"""The engine around a model that reads its answers from a script."""

import logging
from collections.abc import Callable

import pytest

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.engine.messages import EngineInfo
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import RawLogprobs, StepResult
from dijiang_runtime.errors import (
    ContextLengthError,
    EngineOverloadedError,
    InvalidRequestError,
)
from dijiang_runtime.request import FinishReason, RequestError, RequestOutput, SamplingParams
from dijiang_runtime.tokenizer import Tokenizer
from tests.conftest import EOS, make_tokenizer
from tests.engine.requests import make_request

TOKENIZER = Tokenizer(make_tokenizer())
EOS_ID = TOKENIZER.token_to_id(EOS) or 0


class ScriptedRunner:
    """Gives every sequence the tokens of one text, and then EOS for ever."""

    def __init__(self, text: str) -> None:
        self.token_ids = TOKENIZER.encode(text)
        self.failing: set[str] = set()

    def execute(self, plan: SchedulerOutput) -> list[StepResult]:
        return [self._result(item) for item in plan]

    def _result(self, item: ScheduledSequence) -> StepResult:
        sequence = item.sequence
        if sequence.request_id in self.failing:
            return StepResult(error=RequestError("NumericalError", "not finite"))
        sampling = sequence.request.sampling
        predicted = ()
        if sampling.prompt_logprobs >= 0 and sequence.is_prefilling:
            first = sequence.num_computed_tokens + 1
            ids = sequence.request.prompt_token_ids[first : first + item.num_tokens]
            predicted = tuple(RawLogprobs(i, -1.0) for i in ids)
        if not item.completes_prompt or sampling.max_tokens == 0:
            return StepResult(prompt_logprobs=predicted)
        index = len(sequence.output_token_ids)
        token_id = self.token_ids[index] if index < len(self.token_ids) else EOS_ID
        logprobs = RawLogprobs(token_id, float("-inf"), (token_id,), (-0.5,))
        return StepResult(token_id, logprobs if sampling.logprobs >= 0 else None, predicted)


def make_engine(text: str = "the quick brown fox", **changes: object) -> Engine:
    facts: dict[str, object] = {
        "vocab_size": TOKENIZER.vocab_size,
        "max_model_len": 1000,
        "max_logprobs": 20,
        "bos_token_id": None,
        "eos_token_ids": (EOS_ID,),
        "num_slots": 2,
        "state_bytes_per_sequence": 1,
        "state_bytes_total": 2,
        "num_parameters": 0,
        "num_layers": 0,
        "hidden_size": 0,
        "family": "none",
        "device": "none",
        "dtype": "none",
        "num_threads": 1,
        "max_queued_requests": 100,
        "max_queued_tokens": 100_000,
        "load_seconds": 0.0,
        "warmup_seconds": 0.0,
        **changes,
    }
    ticks = iter(range(10**9))
    return Engine(
        ScriptedRunner(text),
        TOKENIZER,
        EngineInfo(**facts),  # type: ignore[arg-type]
        max_batched_tokens=64,
        clock=lambda: float(next(ticks)),
    )


def answer(engine: Engine, **sampling: object) -> RequestOutput:
    [output] = engine.generate([[5, 6, 7]], SamplingParams(**{"max_tokens": 100, **sampling}))
    return output


def run(engine: Engine) -> dict[str, RequestOutput]:
    parts: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            parts.setdefault(output.request_id, []).append(output)
    for some in parts.values():
        assert [output.finished for output in some] == [False] * (len(some) - 1) + [True]
    return {request_id: merge_outputs(some) for request_id, some in parts.items()}


def test_an_answer_ends_at_eos_which_counts_but_is_no_text() -> None:
    output = answer(make_engine("the quick brown fox"))

    assert output.text == "the quick brown fox"
    assert output.token_ids == (*TOKENIZER.encode("the quick brown fox"), EOS_ID)
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, None)
    assert output.num_output_tokens == len(output.token_ids)
    assert output.num_prompt_tokens == 3


def test_an_answer_ends_at_max_tokens_with_all_its_text() -> None:
    output = answer(make_engine("the quick \u20ac"), max_tokens=3, stop=("ck brown",))

    # What was held, because it may have begun the stop string, is given out in the end.
    assert output.text == TOKENIZER.decode(TOKENIZER.encode("the quick \u20ac")[:3])
    assert output.finish_reason is FinishReason.LENGTH


def test_ignoring_eos_goes_on_to_max_tokens() -> None:
    output = answer(make_engine("fox"), max_tokens=8, ignore_eos=True)

    assert output.num_output_tokens == 8
    assert output.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_across_tokens_ends_the_answer(include: bool) -> None:
    engine = make_engine("one. two. three.")
    assert len(TOKENIZER.encode(". two")) > 2

    output = answer(engine, stop=("xyz", ". two"), include_stop_str_in_output=include)

    assert output.text == ("one. two" if include else "one")
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, ". two")
    # No token after the stop string is computed, returned or counted.
    assert TOKENIZER.decode(output.token_ids) == "one. two"
    assert output.num_output_tokens == len(output.token_ids)
    assert engine.scheduler.slots.num_used == 0


def test_a_stop_string_wins_over_the_length_that_it_reaches() -> None:
    num_tokens = len(TOKENIZER.encode("one. two"))

    output = answer(make_engine("one. two. three."), stop=(". two",), max_tokens=num_tokens)

    assert (output.text, output.finish_reason) == ("one", FinishReason.STOP)


def test_stop_strings_count_only_after_min_tokens() -> None:
    text = "a a a a a a"
    num_gated = len(TOKENIZER.encode("a a a"))

    output = answer(make_engine(text), stop=(" a",), min_tokens=num_gated)

    assert output.text == "a a a"
    assert output.num_output_tokens == len(TOKENIZER.encode("a a a a"))


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_ends_the_answer(include: bool) -> None:
    first, second, *_ = TOKENIZER.encode("the quick brown")

    output = answer(
        make_engine("the quick brown"),
        stop_token_ids=(second,),
        include_stop_str_in_output=include,
    )

    assert output.text == ("the quick" if include else "the")
    assert output.token_ids == (first, second)
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, second)


def test_logprobs_come_with_their_tokens_and_are_never_infinite() -> None:
    output = answer(make_engine("the fox"), logprobs=1)

    assert output.logprobs is not None
    assert [entry.chosen.token_id for entry in output.logprobs] == list(output.token_ids)
    assert "".join(entry.chosen.token for entry in output.logprobs) == "the fox" + EOS
    assert {entry.chosen.logprob for entry in output.logprobs} == {-9999.0}
    assert [entry.top[0].logprob for entry in output.logprobs] == [-0.5] * len(output.token_ids)


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs_come_whole_with_the_first_output(max_tokens: int) -> None:
    engine = make_engine()
    prompt = [5 + i % 7 for i in range(150)]
    engine.add_request(make_request("a", prompt, max_tokens=max_tokens, prompt_logprobs=0))

    outputs = []
    while engine.has_work:
        outputs.extend(engine.step())

    assert [o.prompt_logprobs is not None for o in outputs] == [True] + [False] * (len(outputs) - 1)
    nothing, *scored = outputs[0].prompt_logprobs or ()
    assert nothing is None
    assert [entry.chosen.token_id for entry in scored if entry] == prompt[1:]
    assert outputs[-1].num_output_tokens == max_tokens
    assert outputs[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"prompt": []}, InvalidRequestError, "prompt"),
        ({"prompt": [TOKENIZER.vocab_size]}, InvalidRequestError, "prompt"),
        ({"prompt": [-1]}, InvalidRequestError, "prompt"),
        ({"prompt": [5] * 990, "max_tokens": 11}, ContextLengthError, "prompt"),
        ({"max_tokens": 0}, InvalidRequestError, "max_tokens"),
        ({"logprobs": 21}, InvalidRequestError, "logprobs"),
        ({"stop_token_ids": (10**6,)}, InvalidRequestError, "stop_token_ids"),
        ({"temperature": float("nan")}, InvalidRequestError, "temperature"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_its_parameter(
    fields: dict[str, object], error: type[InvalidRequestError], param: str
) -> None:
    engine = make_engine()

    with pytest.raises(error) as refusal:
        engine.add_request(make_request("a", **fields))  # type: ignore[arg-type]

    assert refusal.value.param == param
    assert not engine.has_work


def test_two_running_requests_cannot_share_an_id() -> None:
    engine = make_engine()
    engine.add_request(make_request("a"))

    with pytest.raises(InvalidRequestError):
        engine.add_request(make_request("a"))

    assert list(run(engine)) == ["a"]
    engine.add_request(make_request("a"))


def test_a_refused_request_leaves_nothing_behind() -> None:
    engine = make_engine(num_slots=1, max_queued_requests=0)
    engine.add_request(make_request("a"))

    with pytest.raises(EngineOverloadedError):
        engine.add_request(make_request("b"))

    run(engine)
    engine.add_request(make_request("b"))
    assert list(run(engine)) == ["b"]


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_an_aborted_request_ends_once_and_its_slot_is_free(num_steps: int) -> None:
    engine = make_engine()
    engine.add_request(make_request("a", max_tokens=100))
    for _ in range(num_steps):
        engine.step()

    output = engine.abort("a")

    assert output is not None
    assert output.finish_reason is FinishReason.ABORT
    assert engine.scheduler.slots.num_used == 0
    assert engine.abort("a") is None
    assert engine.step() == []


def test_a_failed_request_says_so_and_the_others_go_on() -> None:
    engine = make_engine("the fox")
    engine.add_request(make_request("bad"))
    engine.add_request(make_request("good"))
    engine.step()
    engine._runner.failing.add("bad")  # type: ignore[attr-defined]

    outputs = run(engine)

    assert outputs["bad"].finish_reason is FinishReason.ERROR
    assert outputs["bad"].error == RequestError("NumericalError", "not finite")
    assert outputs["good"].finish_reason is FinishReason.STOP


def test_a_failure_in_one_text_is_that_requests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("the fox")
    engine.add_request(make_request("bad", logprobs=0))
    engine.add_request(make_request("good"))

    def fail(raw: RawLogprobs) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(engine._processor, "_render", fail)
    outputs = run(engine)

    assert outputs["bad"].finish_reason is FinishReason.ERROR
    assert outputs["good"].text == "the fox"


def test_stages_are_timed_in_order() -> None:
    engine = make_engine("the fox")

    timings = answer(engine).timings

    assert timings is not None
    assert timings.arrival < timings.scheduled < timings.first_token < timings.finished


def test_stats_tell_what_happened_since_the_last_time() -> None:
    engine = make_engine("a", num_slots=1)
    for name in ("a", "b", "c"):
        engine.add_request(make_request(name, [5] * 70, max_tokens=50))
    engine.step()
    engine.step()

    stats = engine.take_stats()
    assert (stats.running, stats.waiting, stats.slots_used, stats.slots_total) == (1, 2, 1, 1)
    assert (stats.prompt_tokens, stats.generation_tokens) == (70, 1)
    assert stats.context_tokens == 70
    assert stats.step_prefill_tokens == (64, 6)
    assert stats.step_decodes == (0, 0)
    assert len(stats.step_seconds) == 2

    run(engine)
    stats = engine.take_stats()
    assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0)
    assert stats.context_tokens == 0
    assert (stats.prompt_tokens, stats.generation_tokens) == (140, 5)
    assert engine.take_stats().step_seconds == ()


def test_offline_answers_come_in_order_however_many_there_are() -> None:
    engine = make_engine("the fox", num_slots=2, max_queued_requests=3)
    prompts = [[5] * (1 + i % 90) for i in range(50)]

    outputs = engine.generate(prompts, SamplingParams(max_tokens=20))

    assert [output.num_prompt_tokens for output in outputs] == [len(p) for p in prompts]
    assert {output.text for output in outputs} == {"the fox"}


def test_a_request_without_a_seed_gets_one_of_its_own() -> None:
    engine = make_engine()
    for name in ("a", "b"):
        engine.add_request(make_request(name))
    seeds = {sequence.seed for sequence in engine.scheduler.waiting.values()}

    assert len(seeds) == 2


def test_logs_name_the_request_and_hold_none_of_its_text(
    caplog: pytest.LogCaptureFixture, make_engine: Callable[..., Engine]
) -> None:
    caplog.set_level(logging.DEBUG, logger="dijiang_runtime")
    engine = make_engine(max_slots=1)
    secret = "xylophone"
    [output] = engine.generate([secret], SamplingParams(max_tokens=8, temperature=0.0))
    engine.add_request(make_request("left-early", max_tokens=100))
    engine.step()
    engine.abort("left-early")

    assert "left-early" in caplog.text
    for words in (secret, output.text, str(output.token_ids), str(TOKENIZER.encode(secret))):
        assert words not in caplog.text
