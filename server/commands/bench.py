"""`dijiang bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.bench_engine import measure_engine, report_engine
from server.commands.bench_neighbours import bench_neighbours
from server.commands.bench_peers import bench_ratios
from server.commands.bench_phases import bench_phases
from server.commands.bench_training import bench_training
from server.commands.common import PresetName, fail, log_plainly, model_folder

if TYPE_CHECKING:
    from dijiang_runtime.models.serving import ServingModel


def bench(
    model: Annotated[
        Path | None, typer.Argument(help="A DiJiang model folder. Default: --shape.")
    ] = None,
    shape: Annotated[
        str,
        typer.Option(help="A published Pythia shape, with random weights: pythia-70m to -6.9b."),
    ] = "pythia-70m",
    preset: Annotated[
        PresetName, typer.Option(help="What attention --shape has in place of the parent's.")
    ] = PresetName.DIJIANG,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto (what serve takes), float32, bfloat16, int8.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: the cores this may use.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds that each figure comes from.")] = 15,
    full: Annotated[
        bool,
        typer.Option("--full", help="Really run the prompt of 100,000 tokens; takes a minute."),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw it into this file, as PNG or SVG by its suffix.")
    ] = None,
    training: Annotated[
        bool,
        typer.Option("--training", help="Measure the training operator instead, by length."),
    ] = False,
    neighbours: Annotated[
        bool,
        typer.Option(
            "--neighbours",
            help="Measure instead what sampled, constrained and logprob rows cost others.",
        ),
    ] = False,
    phases: Annotated[
        bool,
        typer.Option("--phases", help="Take a step apart instead: where its microseconds go."),
    ] = False,
    ratios: Annotated[
        bool,
        typer.Option(
            "--ratios", help="Measure --shape beside memory bandwidth, matrix peak and the peers."
        ),
    ] = False,
    llama_python: Annotated[
        Path | None,
        typer.Option(help="With --ratios: a Python that has llama-cpp-python and gguf."),
    ] = None,
    transformers: Annotated[
        list[str] | None,
        typer.Option(help="With --ratios: transformers in this dtype is a peer. Repeatable."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="With --ratios: batch@position of a decode. Repeatable."),
    ] = None,
    prompt: Annotated[
        list[int] | None,
        typer.Option(min=1, help="With --ratios: tokens of a prompt. Repeatable."),
    ] = None,
) -> None:
    """Measure decode by batch and by position, and prefill by length, side by side in one run.

    Decode at position 100 is compared with decode at position 100,000: the state has one size, so
    they should be equally fast.

    Examples:

        dijiang bench

        dijiang bench --shape pythia-160m --dtype bfloat16 --full --json result.json

        dijiang bench ./model

        dijiang bench --device cuda --shape pythia-2.8b

        dijiang bench --ratios --transformers float32 --point 1@128 --point 32@8192
    """
    from rich.console import Console

    log_plainly()
    console = Console(highlight=False)
    if plot is not None:
        check_plot(plot, is_drawn=not (training or neighbours or phases))
    if training:
        bench_training(console, threads, rounds, json_file)
        return
    with Console(stderr=True).status("Loading torch") as status:
        import torch

        from dijiang_runtime.engine.loading import resolve_device
        from dijiang_runtime.engine.resources import available_cpus

        check_dtype(dtype)
        if device not in ("auto", "cpu", "cuda"):
            fail(f"--device {device!r} is none of auto, cpu and cuda.", exit_code=2)
        where = resolve_device(device)
        num_threads = threads or available_cpus()
        torch.set_num_threads(num_threads)
        if ratios:
            status.stop()
            points = tuple(map(parse_point, point or ("1@128", "8@128", "32@128")))
            lengths = tuple(prompt or ())
            bench_ratios(
                console,
                shape,
                preset,
                dtype,
                where,
                points,
                lengths,
                rounds,
                llama_python,
                transformers_dtypes(transformers),
                json_file,
                plot,
            )
            return
        decoder = load(model, shape, preset, dtype, where)
        if neighbours:
            status.stop()
            bench_neighbours(console, decoder, model, rounds, json_file)
            return
        if phases:
            bench_phases(console, status, decoder, rounds, json_file)
            return
        name = model.name if model else shape_name(shape, preset)
        result = measure_engine(status, decoder, name, rounds, full=full)
    # The kernels' own; torch is left with one.
    result["machine"]["threads"] = num_threads
    report_engine(console, result, json_file, plot)


def check_dtype(dtype: str) -> None:
    """Leave with a message unless weights can have it."""
    if dtype not in ("auto", "float32", "bfloat16", "int8"):
        fail(f"dtype {dtype!r} is none of auto, float32, bfloat16 and int8.", exit_code=2)


def check_plot(path: Path, *, is_drawn: bool) -> None:
    """Leave with a message unless there will be a picture, before anything is measured for it."""
    from importlib.util import find_spec

    if not is_drawn:
        fail("--plot draws decode and prefill, and nothing else that is measured.", exit_code=2)
    if path.suffix not in (".png", ".svg"):
        fail(f"--plot {path}: the name must end in .png or .svg.", exit_code=2)
    if find_spec("matplotlib") is None:
        fail("--plot needs matplotlib: pip install 'dijiang-serving[plots]'.", exit_code=2)


def transformers_dtypes(given: list[str] | None) -> tuple[str, ...]:
    for dtype in given or ():
        if dtype not in ("float32", "bfloat16", "float16"):
            fail(f"--transformers {dtype!r} is none of float32, bfloat16, float16.", exit_code=2)
    return tuple(given or ())


def parse_point(text: str) -> tuple[int, int]:
    """`8@2048`: eight sequences at position 2,048."""
    batch, _, position = text.partition("@")
    if not (batch.isdecimal() and position.isdecimal() and int(batch) and int(position)):
        fail(f"--point {text!r}: write the batch and the position, as in 8@2048.", exit_code=2)
    return int(batch), int(position)


def shape_name(shape: str, preset: PresetName) -> str:
    of_preset = "" if preset is PresetName.DIJIANG else f"{preset}, "
    return f"{shape}, {of_preset}random weights"


def load(
    model: Path | None, shape: str, preset: PresetName, dtype: Any, device: Any
) -> "ServingModel":
    """A folder's model or a shape's, on a torch device."""
    from dijiang_runtime.bench.facts import shape_config
    from dijiang_runtime.bench.random_models import random_serving_model
    from dijiang_runtime.models.serving import load_for_serving

    if model is not None:
        return load_for_serving(model_folder(model), device, dtype)[0]
    return random_serving_model(shape_config(shape, preset.value), device, dtype)
