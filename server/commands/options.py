"""Flags made from the fields of a config struct, so that an option is declared once."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer


def with_config_flags(*config_types: type[msgspec.Struct]) -> Callable[..., Any]:
    """Decorate `command(model, *, flags)` so that Typer shows the fields of these structs as flags.

    `flags` maps field names to values; None means that the flag was not given. The positional
    `model` argument stays as it is declared.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(model: Any, **flags: Any) -> None:
            # An option that may be repeated and was not given may come as an empty list.
            given = {name: None if value == [] else value for name, value in flags.items()}
            command(model, flags=given)

        parameters = [inspect.signature(command).parameters["model"]]
        for config_type in config_types:
            parameters += config_parameters(config_type)
        run.__doc__ = command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def config_parameters(config_type: type[msgspec.Struct]) -> Iterator[inspect.Parameter]:
    """A keyword parameter, as Typer reads them, for every field that an operator may set."""
    for field in msgspec.structs.fields(config_type):
        base, metas = _unwrap(field.type)
        description = _first(metas, "description")
        # A field without a description is no option: it is resolved, not given.
        if field.name == "model" or description is None:
            continue
        option = typer.Option(
            help=description + _shown_default(field.default),
            show_default=False,
            metavar=_METAVARS.get(base),
            min=_first(metas, "ge"),
            max=_first(metas, "le"),
        )
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=... if field.required else None,
            annotation=Annotated[base if field.required else base | None, option],
        )


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH", list[str]: "TEXT"}


def _unwrap(annotation: Any) -> tuple[Any, list[msgspec.Meta]]:
    """The type of a field as a flag has it, without `None`, and the `Meta`s around it."""
    metas: list[msgspec.Meta] = []
    if typing.get_origin(annotation) is Annotated:
        annotation, *extras = typing.get_args(annotation)
        metas = [extra for extra in extras if isinstance(extra, msgspec.Meta)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        [inner] = (a for a in typing.get_args(annotation) if a is not type(None))
        annotation, inner_metas = _unwrap(inner)
        metas += inner_metas
    if typing.get_origin(annotation) is tuple:
        annotation = list[str]
    return annotation, metas


def _first(metas: list[msgspec.Meta], name: str) -> Any:
    return next((value for m in metas if (value := getattr(m, name)) is not None), None)


def _shown_default(default: Any) -> str:
    match default:
        case None | () | False | msgspec.NODEFAULT:
            return ""
        case True:
            return " [default: on]"
        case _:
            return f" [default: {default}]"
