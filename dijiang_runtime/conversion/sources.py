"""Documents from wherever they lie: plain text, JSONL, Parquet, or a data set of the Hub."""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from dijiang_runtime.conversion.errors import DataError

SEPARATOR = "<|endoftext|>"
"""In plain text, a line that holds only this ends a document."""

DATASET_PREFIX = "datasets:"

_ROWS_PER_BATCH = 1024


def read_documents(source: str | Path, *, text_column: str = "text") -> Iterator[str]:
    """Yield the documents of a source, one after the other.

    Args:
        source: A file, or `datasets:ID[:CONFIG][:SPLIT]`. `.jsonl` holds one JSON object in a line
            and `.parquet` rows; every other file is plain text. Text and JSONL may end in `.gz`.
        text_column: The field of an object or row that holds the text.

    Raises:
        DataError: the source is missing, or not what its name says.
    """
    name = str(source)
    if name.startswith(DATASET_PREFIX):
        return _of_dataset(name.removeprefix(DATASET_PREFIX), text_column)
    path = Path(name)
    if not path.is_file():
        raise DataError(
            f"There is no text file {path}. A data set of the Hub is named "
            f"{DATASET_PREFIX}ID, for instance {DATASET_PREFIX}roneneldan/TinyStories."
        )
    match path.name.removesuffix(".gz").rpartition(".")[2].lower():
        case "jsonl" | "ndjson":
            return _of_jsonl(path, text_column)
        case "parquet":
            return _of_parquet(path, text_column)
        case _:
            return _of_text(path)


def source_name(source: str) -> str:
    """What a model card says of a source: no folder of the machine that read it."""
    return source if source.startswith(DATASET_PREFIX) else Path(source).name


def _of_text(path: Path) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(path):
        if line.strip() == SEPARATOR:
            yield from _document(lines)
            lines = []
        else:
            lines.append(line)
    yield from _document(lines)


def _document(lines: Sequence[str]) -> Iterator[str]:
    if text := "".join(lines).strip():
        yield text


def _of_jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise DataError(f"{path}, line {number}, is not JSON: {exc}.") from exc
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}, is not a JSON object.")
        yield from _text_of(row, column, f"{path}, line {number},")


def _of_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise _needs("Parquet files", "pyarrow") from exc
    try:
        with ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(str(path), column, file.schema_arrow.names)
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=[column]):
                yield from _texts(batch.column(0).to_pylist(), column, str(path))
    except (ArrowException, OSError) as exc:
        raise DataError(f"Cannot read the Parquet file {path}: {exc}.") from exc


def _of_dataset(name: str, column: str) -> Iterator[str]:
    dataset_id, config, split = _parts(name)
    try:
        from datasets import load_dataset
    except ImportError as exc:
        raise _needs("Data sets of the Hub", "datasets") from exc
    try:
        rows = load_dataset(dataset_id, config, split=split, streaming=True)
        for row in rows:
            yield from _text_of(row, column, f"The data set {name}")
    except DataError:
        raise
    except Exception as exc:  # the library raises whatever its network and readers raise
        raise DataError(
            f"Cannot read the data set {name}: {exc}. Without a network, save its text to a file "
            "and name that."
        ) from exc


def _parts(name: str) -> tuple[str, str | None, str]:
    """`ID[:CONFIG][:SPLIT]`; an empty CONFIG is none, and the split is `train` if not given."""
    dataset_id, *rest = name.split(":")
    if not dataset_id or len(rest) > 2:
        raise DataError(f"{name!r} is not of the form ID[:CONFIG][:SPLIT].")
    config = rest[0] if rest else ""
    return dataset_id, config or None, rest[1] if len(rest) == 2 else "train"


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open(path) as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise DataError(f"Cannot read the text file {path}: {exc}.") from exc


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _text_of(row: dict[str, Any], column: str, where: str) -> Iterator[str]:
    if column not in row:
        raise _no_column(where, column, list(row))
    yield from _texts([row[column]], column, where)


def _texts(values: Iterable[Any], column: str, where: str) -> Iterator[str]:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where} holds {type(value).__name__} in {column!r}, not text.")
        if value and (text := value.strip()):
            yield text


def _no_column(where: str, column: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"{where} has no field {column!r}; there are: {', '.join(names)}. "
        "Name the one with the text as --text-column."
    )


def _needs(what: str, package: str) -> DataError:
    return DataError(f"{what} need the package {package}: pip install {package}.")
