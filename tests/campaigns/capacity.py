"""Check the capacity model of docs/scaling.md: `python -m tests.campaigns.capacity`.

Takes the model's figures with `dijiang bench` and `bench-http`, runs the page's own functions on
them, loads a server of one engine thread with `dijiang loadtest`, and prints what was said beside
what came. The other cores belong to the API process and the load tester.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dijiang_runtime.bench.facts import shape_config
from dijiang_runtime.bench.made_up import write_random_folder
from tests.campaigns.report import Report, add_out
from tests.e2e.server_process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
SHARES = (0.25, 0.5, 0.75)
"""Rates, as shares of what one replica is said to take."""
ROUNDS = ("--rounds=5",)
NEAR = {"most requests/s": (-0.1, 0.1), "ITL, ms": (-0.5, 0.1)}
"""How far the model may be from the load tester. It is optimistic about gaps between tokens: what
it leaves out, the more so where the engine is nearly full, makes them longer."""


def page_functions() -> dict[str, Callable[..., float]]:
    """The functions in the page's Python block, as a reader would paste them."""
    [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    functions: dict[str, Callable[..., float]] = {}
    exec(compile(block, PAGE.name, "exec"), functions)
    return functions


def dijiang(*arguments: str, report: Path) -> dict[str, Any]:
    """The JSON report of a command, which gets the engine's share of the machine."""
    command = [sys.executable, "-m", "server.cli", *arguments, "--json", str(report)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def figures_of(folder: Path, engine: Sequence[str], slots: int, result: Path) -> dict[str, float]:
    """`P`, `a` and `b` of the page, measured as it says."""
    bench = dijiang("bench", str(folder), *engine, *ROUNDS, report=result)
    longest = max(bench["prefill_by_length"], key=lambda row: row["length"])
    steps = {}
    for streams in (1, slots):
        flags = (*engine, *ROUNDS, f"--streams={streams}")
        server = dijiang("bench-http", str(folder), *flags, report=result)["server"]
        steps[streams] = streams / server["tokens_per_second"]["p50"]
    b = (steps[slots] - steps[1]) / (slots - 1)
    return {"P": longest["tokens_per_second"], "a": steps[1] - b, "b": b}


def campaign(options: argparse.Namespace) -> int:
    name = f"capacity: {options.shape}, {options.slots} slots, {options.prompt} + {options.answer}"
    report = Report(name, options.out)
    functions = page_functions()
    with tempfile.TemporaryDirectory() as temporary:
        folder, result = Path(temporary, "model"), Path(temporary, "report.json")
        write_random_folder(shape_config(options.shape), folder)
        engine = ("--dtype", options.dtype)
        figures = figures_of(folder, (*engine, "--threads=1"), options.slots, result)
        report.figure("P, prompt tokens/s", f"{figures['P']:,.0f}")
        report.figure("a and b, ms", f"{1e3 * figures['a']:.2f}, {1e3 * figures['b']:.3f}")
        slots = f"--max-slots={options.slots}"
        with ServerProcess(folder, *engine, "--num-threads=1", slots) as server:
            url = server.wait_ready()

            def load(*flags: str) -> list[dict[str, Any]]:
                words = (f"--prompt-tokens={options.prompt}", f"--output-tokens={options.answer}")
                runs: list[dict[str, Any]] = dijiang(
                    *("loadtest", "--base-url", url, "--endpoint=completions", "--ignore-eos"),
                    *(*words, "--warmup=3", f"--duration={options.seconds}", *flags),
                    report=result,
                )["servers"][0]["runs"]
                return runs

            [full] = load(f"--concurrency={2 * options.slots}")
            lengths = {key: full["tokens"][key]["mean"] for key in ("prompt", "output")}
            demand = {"p": lengths["prompt"], "o": lengths["output"], **figures}
            most = functions["capacity"](**demand, S=options.slots)
            compare(report, "most requests/s", most, full["throughput"]["requests_per_second"])
            rates = [share * most for share in SHARES]
            runs = load("--rates=" + ",".join(f"{rate:.3f}" for rate in rates))
            for share, rate, run in zip(SHARES, rates, runs, strict=True):
                running = functions["running"](rate=rate, **demand)
                said = 1e3 * running / (rate * demand["o"])
                measured = 1e3 * run["latency"]["itl"]["mean"]
                compare(report, f"{share:.0%} of it, ITL, ms", said, measured)
    return report.end()


def compare(report: Report, name: str, said: float, measured: float) -> None:
    off = said / measured - 1
    report.figure(name, f"said {said:.2f}, measured {measured:.2f}, {off:+.0%}")
    [(low, high)] = [near for figure, near in NEAR.items() if name.endswith(figure)]
    report.check(low <= off <= high, f"{name}: {off:+.0%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="pythia-70m")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--seconds", type=int, default=35, help="of each load")
    add_out(parser)
    return campaign(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
