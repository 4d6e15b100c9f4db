"""The steps of `dijiang loadtest`: from its options to a report, printed and written."""

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from server.commands.common import fail
from server.commands.loadtest_options import LoadFlags, OutputFlags, RequestFlags, WorkloadFlags

if TYPE_CHECKING:
    from clients.loadtest.options import LoadOptions, ServerOptions
    from clients.loadtest.sender import Endpoint


def load_options(load: LoadFlags, workload: WorkloadFlags, request: RequestFlags) -> "LoadOptions":
    """The options as the load tester wants them.

    Raises:
        OptionError: they make no sense.
    """
    from clients.loadtest.errors import OptionError
    from clients.loadtest.options import LoadOptions, parse_loads
    from clients.loadtest.targets import parse_target
    from clients.loadtest.workloads import WorkloadOptions, workload_options

    if load.rate and load.concurrency:
        raise OptionError("--rate makes an open loop and --concurrency a closed one: choose one.")
    loads = (
        parse_loads("rate", load.rate)
        if load.rate
        else parse_loads("concurrency", load.concurrency or "8")
    )
    names = [field.name for field in dataclasses.fields(WorkloadOptions)]
    return LoadOptions(
        loads=loads,
        arrivals=load.arrivals,
        workload=workload_options(
            workload.workload, **{name: getattr(workload, name) for name in names}
        ),
        text=workload.text,
        endpoint=cast("Endpoint", request.endpoint),
        warmup_seconds=load.warmup,
        duration_seconds=load.duration,
        num_requests=load.num_requests,
        max_concurrency=load.max_concurrency,
        timeout_seconds=load.timeout,
        seed=workload.seed,
        targets=tuple(parse_target(target) for target in load.slo),
        extra=extra_body(request),
    )


def extra_body(request: RequestFlags) -> dict[str, Any]:
    """The fields that every request has."""
    from clients.loadtest.errors import OptionError

    try:
        extra = json.loads(request.body)
    except ValueError as exc:
        raise OptionError(f"--body is not JSON: {exc}.") from exc
    if not isinstance(extra, dict):
        raise OptionError("--body is not a JSON object.")
    if request.temperature is not None:
        extra.setdefault("temperature", request.temperature)
    if request.ignore_eos:
        extra.setdefault("ignore_eos", True)
    return extra


def run_and_show(
    servers: "list[ServerOptions]", options: "LoadOptions", *, quiet: bool
) -> dict[str, Any]:
    """Run the test with its progress on standard error, and print the report."""
    from rich.console import Console

    from clients.errors import ClientError
    from clients.loadtest.compare import print_comparison
    from clients.loadtest.errors import OptionError
    from clients.loadtest.progress import LiveDisplay
    from clients.loadtest.run import run
    from clients.loadtest.table import print_report

    try:
        with LiveDisplay(Console(stderr=True)) as display:
            report = run(servers, options, watch=display.show, loop_factory=loop_factory())
    except OptionError as exc:
        fail(exc, exit_code=2)
    except ClientError as exc:
        fail(exc)
    if not quiet:
        console = Console(highlight=False)
        print_report(report, console)
        if len(servers) > 1:
            print_comparison(report, console)
    return report


def loop_factory() -> Callable[[], Any] | None:
    """uvloop where there is one: it halves what an event costs."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def save(report: dict[str, Any], output: OutputFlags) -> None:
    """Write what was asked for."""
    from clients.loadtest.errors import LoadTestError
    from clients.loadtest.report import write_report

    try:
        if output.json_file is not None:
            write_report(report, output.json_file)
        if output.plots is not None:
            from clients.loadtest.plots import write_plots

            write_plots(report, output.plots)
        if output.html_file is not None:
            from clients.loadtest.html import write_page

            write_page(report, output.html_file)
    except (OSError, LoadTestError) as exc:
        fail(exc)


def check_outputs(output: OutputFlags) -> None:
    """Fail before the load test rather than after it if what it finds out cannot be written."""
    from importlib.util import find_spec

    for file in (output.json_file, output.html_file):
        if file is not None and not file.parent.is_dir():
            fail(f"there is no folder {file.parent}.", exit_code=2)
    if (output.plots is not None or output.html_file is not None) and find_spec(
        "matplotlib"
    ) is None:
        fail("--plots and --html need matplotlib: pip install 'dijiang-serving[plots]'.")
