"""The steps of `dijiang loadtest`: from its options to a report, printed and written."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.common import fail

if TYPE_CHECKING:
    from clients.loadtest.options import LoadOptions, ServerOptions


def load_options(given: dict[str, Any]) -> "LoadOptions":
    """The options as the load tester wants them.

    Raises:
        OptionError: they make no sense.
    """
    from clients.loadtest.errors import OptionError
    from clients.loadtest.options import LoadOptions, parse_loads
    from clients.loadtest.targets import parse_target
    from clients.loadtest.workloads import WorkloadOptions, workload_options

    if given["rate"] and given["concurrency"]:
        raise OptionError("--rate makes an open loop and --concurrency a closed one: choose one.")
    loads = (
        parse_loads("rate", given["rate"])
        if given["rate"]
        else parse_loads("concurrency", given["concurrency"] or "8")
    )
    names = [field.name for field in dataclasses.fields(WorkloadOptions)]
    return LoadOptions(
        loads=loads,
        arrivals=given["arrivals"],
        workload=workload_options(given["workload"], **{name: given[name] for name in names}),
        text=given["text"],
        endpoint=given["endpoint"],
        warmup_seconds=given["warmup"],
        duration_seconds=given["duration"],
        num_requests=given["num_requests"],
        max_concurrency=given["max_concurrency"],
        timeout_seconds=given["timeout"],
        seed=given["seed"],
        targets=tuple(parse_target(target) for target in given["slo"] or ()),
        extra=extra_body(given),
    )


def extra_body(given: dict[str, Any]) -> dict[str, Any]:
    from clients.loadtest.errors import OptionError

    try:
        extra = json.loads(given["body"])
    except ValueError as exc:
        raise OptionError(f"--body is not JSON: {exc}.") from exc
    if not isinstance(extra, dict):
        raise OptionError("--body is not a JSON object.")
    if given["temperature"] is not None:
        extra.setdefault("temperature", given["temperature"])
    if given["ignore_eos"]:
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


def save(
    report: dict[str, Any], json_file: Path | None, plots: Path | None, html_file: Path | None
) -> None:
    """Write what was asked for."""
    from clients.loadtest.errors import LoadTestError
    from clients.loadtest.report import write_report

    try:
        if json_file is not None:
            write_report(report, json_file)
        if plots is not None:
            from clients.loadtest.plots import write_plots

            write_plots(report, plots)
        if html_file is not None:
            from clients.loadtest.html import write_page

            write_page(report, html_file)
    except (OSError, LoadTestError) as exc:
        fail(exc)


def check_outputs(json_file: Path | None, plots: Path | None, html_file: Path | None) -> None:
    """Fail before the load test rather than after it if what it finds out cannot be written."""
    from importlib.util import find_spec

    for file in (json_file, html_file):
        if file is not None and not file.parent.is_dir():
            fail(f"there is no folder {file.parent}.", exit_code=2)
    if (plots is not None or html_file is not None) and find_spec("matplotlib") is None:
        fail("--plots and --html need matplotlib: pip install 'dijiang-serving[plots]'.")
