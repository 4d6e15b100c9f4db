"""Flags made from the fields of a config struct, so that an option is declared once."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

T = TypeVar("T", bound=msgspec.Struct)


def with_config_flags(*config_types: type[msgspec.Struct]) -> Callable[..., Any]:
    """Decorate `command(..., *, flags)` so that Typer shows the fields of these structs as flags.

    `flags` maps field names to values; None means that the flag was not given. The other
    parameters of the command, such as a positional `model`, stay as they are declared.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            p for p in inspect.signature(command).parameters.values() if p.name != "flags"
        ]
        own = {parameter.name for parameter in parameters}
        for config_type in config_types:
            parameters += [p for p in config_parameters(config_type) if p.name not in own]

        def run(**values: Any) -> None:
            kept = {name: values.pop(name) for name in own}
            # An option that may be repeated and was not given may come as an empty list.
            given = {name: None if value == [] else value for name, value in values.items()}
            command(**kept, flags=given)

        run.__doc__ = command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def given_options(kind: type[T], flags: dict[str, Any]) -> T:
    """The options of this kind among the flags; what was not given keeps its default."""
    names = (field.name for field in msgspec.structs.fields(kind))
    given = {name: flags[name] for name in names if flags.get(name) is not None}
    return msgspec.convert(given, kind)


def config_parameters(config_type: type[msgspec.Struct]) -> Iterator[inspect.Parameter]:
    """A keyword parameter, as Typer reads them, for every field that an operator may set.

    `Meta(extra=...)` of a field may hold `flags` (its names, where `--field-name` is not the one,
    or where a switch has no `--no-` form), a `metavar` and an `envvar`.
    """
    for field in msgspec.structs.fields(config_type):
        base, metas = _unwrap(field.type)
        description = _first(metas, "description")
        # A field without a description is no option: it is resolved, not given.
        if description is None:
            continue
        extra = _first(metas, "extra") or {}
        option = typer.Option(
            *extra.get("flags", ()),
            help=description + _shown_default(field.default),
            show_default=False,
            metavar=extra.get("metavar") or _METAVARS.get(base),
            envvar=extra.get("envvar"),
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
