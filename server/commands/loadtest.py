"""`dijiang loadtest` and `dijiang loadtest compare`."""

from pathlib import Path
from typing import Annotated

import typer

from server.commands.chat import BASE_URL_VARIABLE, read_api_key
from server.commands.common import fail
from server.commands.loadtest_steps import check_outputs, load_options, run_and_show, save

app = typer.Typer(rich_markup_mode=None)

HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Write one page with everything, to be opened alone.")
]


@app.callback(invoke_without_command=True)
def loadtest(
    context: typer.Context,
    base_url: Annotated[
        str, typer.Option(envvar=BASE_URL_VARIABLE, help="Address of the server.")
    ] = "http://127.0.0.1:8000",
    against: Annotated[
        str | None, typer.Option(help="Address of a second server, which takes turns with it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to ask. Default: the first that is served.")
    ] = None,
    against_model: Annotated[str | None, typer.Option(help="The second server's.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the API key. Default: the variable DIJIANG_API_KEY."),
    ] = None,
    against_api_key_file: Annotated[
        Path | None, typer.Option(help="The second server's. It gets no other key.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            "--rates",
            metavar="X[,X...]",
            help="Open loop: conversations begun per second; several make a sweep.",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Closed loop: users that wait for their answers. [default: 8]",
        ),
    ] = None,
    arrivals: Annotated[
        str,
        typer.Option(help="poisson, constant, bursty:VARIATION, onoff:ON,OFF or ramp:START_RATE."),
    ] = "poisson",
    workload: Annotated[
        str, typer.Option(help="single, shared-prefix, multi-turn or long-context.")
    ] = "single",
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="N, uniform:LOW,HIGH, normal:MEAN,SD, lognormal:MEDIAN,SIGMA or paragraphs.",
        ),
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Longest answers, the same way.")
    ] = None,
    turns: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Turns of a conversation, the same way.")
    ] = None,
    think_seconds: Annotated[
        float | None, typer.Option(min=0.0, help="From an answer to the next turn.")
    ] = None,
    shared_prefix_tokens: Annotated[
        int | None, typer.Option(min=0, help="Length of a text that conversations begin with.")
    ] = None,
    num_prefixes: Annotated[
        int | None, typer.Option(min=1, help="How many different such texts.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="File to cut prompts from. Default: random common words.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    warmup: Annotated[
        float, typer.Option(min=0.0, help="Seconds at the start that are not measured.")
    ] = 5.0,
    duration: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds of sending after that. [default: 30]"),
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many conversations instead.")
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Most requests in flight in an open loop.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 600.0,
    slo: Annotated[
        list[str] | None,
        typer.Option(metavar="LATENCY=TIME", help="Target for goodput: ttft, itl, tpot or e2e."),
    ] = None,
    max_error_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="More failures than this are exit code 1.")
    ] = 0.0,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0)] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Ask for answers of full length (vLLM's extension)."),
    ] = False,
    body: Annotated[
        str, typer.Option(metavar="JSON", help="More fields for the body of every request.")
    ] = "{}",
    seed: Annotated[int, typer.Option(help="The same seed sends the same, at the same times.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file; - prints it.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Write plots as PNG into this folder.")] = None,
    html_file: HtmlFile = None,
) -> None:
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

    given = dict(locals())
    try:
        options = load_options(given)
    except OptionError as exc:
        fail(exc, exit_code=2)
    check_outputs(json_file, plots, html_file)
    from clients.loadtest.options import ServerOptions

    servers = [ServerOptions(base_url, model, read_api_key(api_key_file))]
    if against is not None:
        key = read_api_key(against_api_key_file) if against_api_key_file else None
        servers.append(ServerOptions(against, against_model, key))
    report = run_and_show(servers, options, quiet=str(json_file) == "-")
    save(report, json_file, plots, html_file)
    from clients.loadtest.report import error_rate

    if report["is_interrupted"]:
        raise typer.Exit(130)
    if (failed := error_rate(report)) > max_error_rate:
        fail(f"{failed:.1%} of the requests failed, more than {max_error_rate:.1%}.")


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(help="A report that --json wrote.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    html_file: HtmlFile = None,
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
    save(joined, None, None, html_file)
