"""`dijiang loadtest` and `dijiang loadtest compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.chat import read_api_key
from server.commands.common import fail
from server.commands.loadtest_options import (
    LoadFlags,
    OutputFlags,
    RequestFlags,
    ServerFlags,
    WorkloadFlags,
)
from server.commands.loadtest_steps import check_outputs, load_options, run_and_show, save
from server.commands.options import given_options, with_config_flags

if TYPE_CHECKING:
    from clients.loadtest.options import ServerOptions

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
@with_config_flags(ServerFlags, LoadFlags, WorkloadFlags, RequestFlags, OutputFlags)
def loadtest(context: typer.Context, *, flags: dict[str, Any]) -> None:
    """Load a server and measure TTFT, ITL, TPOT, E2E latency, throughput and goodput.

    Works with any OpenAI-compatible server. Load only servers that are yours. Exit code 1 says
    that more requests failed than --max-error-rate allows.

    Examples:

        dijiang loadtest --concurrency 32 --duration 60

        dijiang loadtest --rates 1,2,4,8 --slo ttft=200ms --slo itl=50ms --html report.html

        dijiang loadtest --rate 4 --arrivals bursty:3 --workload multi-turn --json a.json

        dijiang loadtest --against http://127.0.0.1:9000 --workload long-context

        dijiang loadtest compare a.json b.json
    """
    if context.invoked_subcommand is not None:
        return
    from clients.loadtest.errors import OptionError
    from clients.loadtest.report import error_rate

    load = given_options(LoadFlags, flags)
    output = given_options(OutputFlags, flags)
    try:
        options = load_options(
            load, given_options(WorkloadFlags, flags), given_options(RequestFlags, flags)
        )
    except OptionError as exc:
        fail(exc, exit_code=2)
    check_outputs(output)
    servers = servers_to_load(given_options(ServerFlags, flags))
    report = run_and_show(servers, options, quiet=str(output.json_file) == "-")
    save(report, output)
    if report["is_interrupted"]:
        raise typer.Exit(130)
    if (failed := error_rate(report)) > load.max_error_rate:
        fail(f"{failed:.1%} of the requests failed, more than {load.max_error_rate:.1%}.")


def servers_to_load(flags: ServerFlags) -> "list[ServerOptions]":
    """The server, and the second one if there is to be one."""
    from clients.loadtest.options import ServerOptions

    servers = [ServerOptions(flags.base_url, flags.model, read_api_key(flags.api_key_file))]
    if flags.against is not None:
        file = flags.against_api_key_file
        key = read_api_key(file) if file else None
        servers.append(ServerOptions(flags.against, flags.against_model, key))
    return servers


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(help="A report that --json wrote.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write one page with everything, to be opened alone."),
    ] = None,
) -> None:
    """Compare two reports, load by load.

    Example:

        dijiang loadtest compare before.json after.json --html comparison.html
    """
    from rich.console import Console

    from clients.loadtest.compare import join_reports, print_comparison
    from clients.loadtest.errors import LoadTestError
    from clients.loadtest.report import read_report

    try:
        joined = join_reports(read_report(before), read_report(after), (before.stem, after.stem))
    except LoadTestError as exc:
        fail(exc)
    print_comparison(joined, Console(highlight=False))
    save(joined, OutputFlags(html_file=html_file))
