import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.sources import read_documents

TEXTS = ["Once upon a time.", "The end.\nReally."]


def test_every_format_yields_the_same_documents(tmp_path: Path) -> None:
    rows = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(read_documents(path)) == TEXTS, path.name


def test_the_text_column_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"story": " one "}\n\n{"story": null}\n')
    assert list(read_documents(path, text_column="story")) == ["one"]
    with pytest.raises(DataError, match=r"no field 'text'; there are: story\. .*--text-column"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", "line 1, is not JSON"),
        ("a.jsonl", b"[1]", "not a JSON object"),
        ("a.jsonl", b'{"text": 3}', "holds int in 'text', not text"),
        ("a.parquet", b"no parquet", "Cannot read the Parquet file"),
        ("a.txt.gz", b"no gzip", "Cannot read the text file"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_a_missing_file_is_not_mistaken_for_a_data_set() -> None:
    with pytest.raises(DataError, match="datasets:roneneldan/TinyStories"):
        read_documents("stories")
    with pytest.raises(DataError, match=r"ID\[:CONFIG\]\[:SPLIT\]"):
        list(read_documents("datasets:a:b:c:d"))
