"""What `dijiang loadtest` is told. Its flags follow from these fields."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from server.commands.chat import BASE_URL_VARIABLE

Seconds = Annotated[float, Meta(ge=0.0)]
AtLeastTenth = Annotated[float, Meta(ge=0.1)]
Count = Annotated[int, Meta(ge=1)]

AS_LENGTH = {"metavar": "LENGTH"}


class ServerFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to load."""

    base_url: Annotated[
        str, Meta(description="Address of the server.", extra={"envvar": BASE_URL_VARIABLE})
    ] = "http://127.0.0.1:8000"
    against: Annotated[
        str | None, Meta(description="Address of a second server, which takes turns with it.")
    ] = None
    model: Annotated[
        str | None, Meta(description="Model to ask. Default: the first that is served.")
    ] = None
    against_model: Annotated[str | None, Meta(description="The second server's.")] = None
    api_key_file: Annotated[
        Path | None,
        Meta(description="File with the API key. Default: the variable DIJIANG_API_KEY."),
    ] = None
    against_api_key_file: Annotated[
        Path | None, Meta(description="The second server's. It gets no other key.")
    ] = None


class LoadFlags(msgspec.Struct, frozen=True, kw_only=True):
    """When to send, how much, for how long, and what to ask of the answers."""

    rate: Annotated[
        str | None,
        Meta(
            description="Open loop: conversations begun per second; several make a sweep.",
            extra={"flags": ("--rate", "--rates"), "metavar": "X[,X...]"},
        ),
    ] = None
    concurrency: Annotated[
        str | None,
        Meta(
            description="Closed loop: users that wait for their answers. [default: 8]",
            extra={"metavar": "N[,N...]"},
        ),
    ] = None
    arrivals: Annotated[
        str,
        Meta(description="poisson, constant, bursty:VARIATION, onoff:ON,OFF or ramp:START_RATE."),
    ] = "poisson"
    warmup: Annotated[Seconds, Meta(description="Seconds at the start that are not measured.")] = (
        5.0
    )
    duration: Annotated[
        AtLeastTenth | None, Meta(description="Seconds of sending after that. [default: 30]")
    ] = None
    num_requests: Annotated[
        Count | None, Meta(description="Stop after so many conversations instead.")
    ] = None
    max_concurrency: Annotated[
        Count | None, Meta(description="Most requests in flight in an open loop.")
    ] = None
    timeout: Annotated[AtLeastTenth, Meta(description="Seconds for one request.")] = 600.0
    slo: Annotated[
        tuple[str, ...],
        Meta(
            description="Target for goodput: ttft, itl, tpot or e2e. Repeatable.",
            extra={"metavar": "LATENCY=TIME"},
        ),
    ] = ()
    max_error_rate: Annotated[
        float, Meta(ge=0.0, le=1.0, description="More failures than this are exit code 1.")
    ] = 0.0


class WorkloadFlags(msgspec.Struct, frozen=True, kw_only=True):
    """What the conversations are. What is not given comes from the workload named."""

    workload: Annotated[
        str, Meta(description="single, shared-prefix, multi-turn or long-context.")
    ] = "single"
    prompt_tokens: Annotated[
        str | None,
        Meta(
            description="N, uniform:LOW,HIGH, normal:MEAN,SD, lognormal:MEDIAN,SIGMA or "
            "paragraphs.",
            extra=AS_LENGTH,
        ),
    ] = None
    output_tokens: Annotated[
        str | None, Meta(description="Longest answers, the same way.", extra=AS_LENGTH)
    ] = None
    turns: Annotated[
        str | None, Meta(description="Turns of a conversation, the same way.", extra=AS_LENGTH)
    ] = None
    think_seconds: Annotated[
        Seconds | None, Meta(description="From an answer to the next turn.")
    ] = None
    shared_prefix_tokens: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Length of a text that conversations begin with."),
    ] = None
    num_prefixes: Annotated[Count | None, Meta(description="How many different such texts.")] = None
    text: Annotated[
        Path | None,
        Meta(description="File to cut prompts from. Default: random common words."),
    ] = None
    seed: Annotated[int, Meta(description="The same seed sends the same, at the same times.")] = 0


class RequestFlags(msgspec.Struct, frozen=True, kw_only=True):
    """What every request says besides its text."""

    endpoint: Annotated[str, Meta(description="chat or completions.")] = "chat"
    temperature: Annotated[
        Annotated[float, Meta(ge=0.0, le=2.0)] | None,
        Meta(description="0 chooses the most likely token."),
    ] = None
    ignore_eos: Annotated[
        bool,
        Meta(
            description="Ask for answers of full length (vLLM's extension).",
            extra={"flags": ("--ignore-eos",)},
        ),
    ] = False
    body: Annotated[
        str,
        Meta(description="More fields for the body of every request.", extra={"metavar": "JSON"}),
    ] = "{}"


class OutputFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Where the report goes, besides the terminal."""

    json_file: Annotated[
        Path | None,
        Meta(
            description="Write the report to this file; - prints it.", extra={"flags": ("--json",)}
        ),
    ] = None
    plots: Annotated[Path | None, Meta(description="Write plots as PNG into this folder.")] = None
    html_file: Annotated[
        Path | None,
        Meta(
            description="Write one page with everything, to be opened alone.",
            extra={"flags": ("--html",)},
        ),
    ] = None
