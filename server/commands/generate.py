"""`dijiang generate`."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from dijiang_runtime.config import EngineConfig
from server.commands.common import (
    ModelArgument,
    fail,
    leave_closed_pipe,
    log_plainly,
    model_folder,
)
from server.commands.options import given_options, with_config_flags
from server.config import merge_options

if TYPE_CHECKING:
    from dijiang_runtime.engine.engine import Engine
    from dijiang_runtime.request import RequestOutput, SamplingParams


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, besides how to sample it."""

    prompt: Annotated[
        str,
        Meta(
            description="Text to continue. - reads standard input.",
            extra={"flags": ("--prompt", "-p")},
        ),
    ] = "-"
    n: Annotated[
        int,
        Meta(ge=1, description="Answers, made side by side.", extra={"flags": ("--n", "-n")}),
    ] = 1
    as_json: Annotated[
        bool,
        Meta(description="Print one JSON object at the end.", extra={"flags": ("--json",)}),
    ] = False
    device: Annotated[str | None, Meta(description="auto, cpu or cuda.")] = None
    dtype: Annotated[str | None, Meta(description="auto, float32 or bfloat16.")] = None


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample. `SamplingParams` checks the values; None leaves them to the model."""

    max_tokens: Annotated[int, Meta(description="Longest answer, in tokens.")] = 256
    temperature: Annotated[float | None, Meta(description="0 chooses the most likely token.")] = (
        None
    )
    top_p: Annotated[
        float | None, Meta(description="Sample from the likeliest tokens of this total.")
    ] = None
    top_k: Annotated[int | None, Meta(description="Sample from this many likeliest tokens.")] = None
    min_p: Annotated[
        float | None, Meta(description="Drop tokens below this share of the likeliest's.")
    ] = None
    repetition_penalty: Annotated[
        float | None, Meta(description="Above 1, tokens seen before become less likely.")
    ] = None
    seed: Annotated[int | None, Meta(description="Answer i uses seed + i. Default: random.")] = None
    stop: Annotated[tuple[str, ...], Meta(description="Text that ends an answer. Repeatable.")] = ()
    ignore_eos: Annotated[
        bool,
        Meta(
            description="Go on to --max-tokens whatever comes.",
            extra={"flags": ("--ignore-eos",)},
        ),
    ] = False


@with_config_flags(GenerateOptions, SamplingOptions)
def generate(model: ModelArgument = None, *, flags: dict[str, Any]) -> None:
    """Continue a text offline, streaming to the terminal. Needs no server.

    Sampling parameters that are not given come from the model's generation_config.json.

    Examples:

        dijiang generate --prompt "Once upon a time"

        dijiang generate ./model --prompt "Once" --n 3 --seed 7 --temperature 0.8

        cat prompt.txt | dijiang generate ./model --prompt - --json
    """
    log_plainly()
    folder = model_folder(model)
    options = given_options(GenerateOptions, flags)
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    sampling = sampling_params(folder, given_options(SamplingOptions, flags))
    engine = load_engine(engine_config(folder, options))
    outputs = run(engine, text, sampling, options.n)
    try:
        answers = collect(outputs if options.as_json else show(outputs, options.n), options.n)
        if options.as_json:
            print(json.dumps(to_json(folder, text, answers), ensure_ascii=False, indent=2))
    except BrokenPipeError:
        leave_closed_pipe()
    if not options.as_json and sys.stderr.isatty():
        print(summary(answers), file=sys.stderr)
    for answer in answers:
        if answer.error is not None:
            fail(f"answer {answer.request_id} failed: {answer.error.message}")


def sampling_params(folder: Path, options: SamplingOptions) -> "SamplingParams":
    """The sampling parameters given, and the model's defaults for the others."""
    from dijiang_runtime.request import SamplingParams
    from server.served_model import load_defaults

    given = {k: v for k, v in msgspec.structs.asdict(options).items() if v is not None}
    return SamplingParams(**{**msgspec.structs.asdict(load_defaults(folder)), **given})


def engine_config(folder: Path, options: GenerateOptions) -> EngineConfig:
    """An engine with a slot for each answer."""
    flags = {"device": options.device, "dtype": options.dtype}
    return merge_options(
        EngineConfig, {"model": folder, "max_slots": options.n, **flags}, os.environ
    )


def load_engine(config: EngineConfig) -> "Engine":
    """Load a model, showing that something happens where someone watches."""
    from rich.console import Console

    with Console(stderr=True).status(f"Loading {config.model}"):
        from dijiang_runtime.engine.engine import Engine

        return Engine.from_config(config)


def run(
    engine: "Engine", prompt: str, sampling: "SamplingParams", n: int
) -> Iterator["RequestOutput"]:
    """Yield what is new for any of `n` answers, step by step. Request ids are their numbers."""
    from dijiang_runtime.request import Request

    prompt_token_ids = tuple(engine.tokenizer.encode(prompt))
    for i in range(n):
        seed = None if sampling.seed is None else sampling.seed + i
        request = Request(
            request_id=str(i),
            prompt_token_ids=prompt_token_ids,
            sampling=msgspec.structs.replace(sampling, seed=seed),
            arrival_time=time.time(),
        )
        engine.add_request(request)
    while engine.has_work:
        yield from engine.step()


def show(outputs: Iterator["RequestOutput"], n: int) -> Iterator["RequestOutput"]:
    """Pass the outputs on, writing the first unfinished answer as it grows and others in turn."""
    from clients.terminal import Screen

    screen = Screen(sys.stdout)
    pending, finished = [""] * n, [False] * n
    current = 0
    for output in outputs:
        i = int(output.request_id)
        pending[i] += output.text
        finished[i] = output.finished
        while current < n and (pending[current] or finished[current]):
            screen.write(pending[current])
            pending[current] = ""
            if not finished[current]:
                break
            screen.end_line()
            current += 1
            if current < n:
                screen.note("---")
        yield output


def collect(outputs: Iterator["RequestOutput"], n: int) -> list["RequestOutput"]:
    """Run to the end and return each answer whole."""
    from dijiang_runtime.engine.merge import merge_outputs

    parts: list[list[RequestOutput]] = [[] for _ in range(n)]
    for output in outputs:
        parts[int(output.request_id)].append(output)
    return [merge_outputs(part) for part in parts]


def summary(answers: list["RequestOutput"]) -> str:
    """Tokens, TTFT and decode throughput of answers that ran side by side."""
    num_tokens = sum(answer.num_output_tokens for answer in answers)
    timings = [answer.timings for answer in answers if answer.timings is not None]
    first = min(t.first_token for t in timings)
    seconds = max(t.finished for t in timings) - first
    parts = [f"{num_tokens} tokens", f"TTFT {first - min(t.arrival for t in timings):.2f} s"]
    if seconds > 0:
        parts.append(f"{(num_tokens - len(answers)) / seconds:.0f} tokens/s")
    return " · ".join(parts)


def to_json(folder: Path, prompt: str, answers: list["RequestOutput"]) -> dict[str, Any]:
    """The `--json` object."""
    return {
        "model": folder.name,
        "prompt": prompt,
        "choices": [
            {
                "index": int(answer.request_id),
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
                "num_output_tokens": answer.num_output_tokens,
            }
            for answer in answers
        ],
        "num_prompt_tokens": answers[0].num_prompt_tokens,
    }
