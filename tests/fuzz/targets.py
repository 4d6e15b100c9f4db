"""What must hold for any bytes whatever: for bodies, model files, tokens and stop strings.

Each target reads bytes and raises where a promise is broken. `guided.py` looks for such bytes,
guided by coverage; `test_targets.py` tries the seeds and what hypothesis makes of them.
"""

import codecs
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dijiang_runtime.engine.detokenizer import Detokenizer, StopMatch, StopMatcher
from dijiang_runtime.errors import DiJiangError, ModelLoadError
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.tokenizer import Tokenizer
from server.errors import describe, encode_error
from server.protocol.chat import ChatCompletionRequest
from server.protocol.common import parse_body
from server.protocol.completions import CompletionRequest
from server.protocol.embeddings import EmbeddingRequest
from server.protocol.responses import ResponsesRequest
from server.protocol.tokens import DetokenizeRequest, TokenizeRequest
from tests.conftest import make_tokenizer, save_tiny_model
from tests.fuzz.kinds import CHAT, COMPLETIONS, OUT_OF_RANGE, UNSUPPORTED, VALID, WRONG_TYPES

BODIES: tuple[Any, ...] = (
    CompletionRequest,
    ChatCompletionRequest,
    ResponsesRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MAX_CHOICES = 8


def read_body(data: bytes) -> None:
    """The first byte chooses the endpoint, the rest is the body: it is read, or refused in JSON."""
    if not data:
        return
    model = BODIES[data[0] % len(BODIES)]
    try:
        request = parse_body(model, data[1:])
        if model is TokenizeRequest:
            request.check()
        elif model is not DetokenizeRequest:
            request.check(max_choices=MAX_CHOICES)
        request.ignored_fields()
    except DiJiangError as exc:
        status, body = describe(exc, "a")
        assert 400 <= status < 500, (status, body)
        error = json.loads(encode_error(body).decode())["error"]
        assert error["message"] and "Traceback" not in error["message"], error


def read_model_file(data: bytes) -> None:
    """The first byte chooses the file, the rest is what it holds: it loads, or is refused."""
    if not data:
        return
    folder, files = _model_folder()
    name = FILES[data[0] % len(FILES)]
    (folder / name).write_bytes(data[1:])
    try:
        load_model(folder)
        Tokenizer.load(folder)
    except ModelLoadError as exc:
        assert str(exc)
    finally:
        (folder / name).write_bytes(files[name])


def detokenise(data: bytes) -> None:
    """The first byte parts prompt and answer; each pair of bytes is a token."""
    tokenizer = _tokenizer()
    pairs = struct.iter_unpack("<H", data[1 : 1 + (len(data) - 1) // 2 * 2])
    ids = [number % (tokenizer.vocab_size + 2) for (number,) in pairs]
    num_prompt = min(data[0] if data else 0, len(ids))
    prompt, answer = ids[:num_prompt], ids[num_prompt:]
    detokenizer = Detokenizer(tokenizer, prompt)
    text = "".join([*(detokenizer.add(token_id) for token_id in answer), detokenizer.finish()])
    said = b"".join(tokenizer.token_bytes(i) for i in answer if not tokenizer.is_special(i))
    read = b"".join(tokenizer.token_bytes(i) for i in prompt if not tokenizer.is_special(i))
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(read)
    # The answer completes the prompt's last character, or has nothing to do with it.
    allowed = [
        (decoder.getstate()[0] + said).decode(errors="replace"),
        said.decode(errors="replace"),
    ]
    assert text in allowed, (prompt, answer, text, allowed)


def match_stops(data: bytes) -> None:
    """Fields that a zero byte ends: a switch, stop strings until an empty one, pieces of text."""
    fields = [field.decode("utf-8", errors="replace") for field in data[1:].split(b"\0")]
    end = fields.index("") if "" in fields else len(fields)
    stops, pieces = fields[: min(end, 4)], fields[end + 1 :]
    include = bool(data[:1] and data[0] & 1)
    matcher, given, stop = StopMatcher(stops, include_stop=include), "", None
    for piece in pieces:
        found = matcher.add(piece)
        if isinstance(found, StopMatch):
            given, stop = given + found.text, found.stop
            break
        given += found
    else:
        given += matcher.finish()
    expected = _stopped("".join(pieces), stops, include)
    assert (given, stop) == expected, (stops, pieces, given, stop, expected)


def _stopped(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The answer, by trying every end."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text.endswith(stop, 0, end)]:
            longest = max(complete, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer(make_tokenizer())


@cache
def _model_folder() -> tuple[Path, dict[str, bytes]]:
    """A model's folder, kept for as long as the process lives, and what its files hold."""
    folder = save_tiny_model(Path(tempfile.mkdtemp(prefix="dijiang-fuzz-")))
    return folder, {name: _bytes_of(folder / name) for name in FILES}


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b"{}"


def _body_seeds() -> list[bytes]:
    bodies: list[tuple[int, dict[str, Any]]] = []
    for number, path in enumerate((COMPLETIONS, CHAT)):
        for values in (WRONG_TYPES, OUT_OF_RANGE):
            bodies += [(number, {**VALID[path], k: v[0]}) for k, v in values.items()]
        bodies += [(number, {**VALID[path], k: v}) for k, v in UNSUPPORTED.items()]
    bodies += [(2, {"input": "the quick", "model": "tiny"}), (3, {"input": ["a", [1, 2]]})]
    bodies += [(4, VALID["/tokenize"]), (5, VALID["/detokenize"])]
    return [bytes([number]) + json.dumps(body).encode() for number, body in bodies]


def _file_seeds() -> list[bytes]:
    _, files = _model_folder()
    return [bytes([number]) + files[name] for number, name in enumerate(FILES)]


def _token_seeds() -> list[bytes]:
    tokens = struct.pack("<8H", 2, 5, 198, 130, 172, 300, 0, 1)
    return [bytes([split]) + tokens for split in (0, 1, 3)]


def _stop_seeds() -> list[bytes]:
    return [b"\0ab\0bc\0\0xa\0bc", b"\1END\0EN\0\0the E\0N\0D.", "\0é\0\0a\0é".encode()]


def _body_words() -> set[str]:
    fields = {name for model in BODIES for name in model.model_fields}
    return {f'"{name}":' for name in fields | UNSUPPORTED.keys()} | LITERALS


def _config_words() -> set[str]:
    _, files = _model_folder()
    config = json.loads(files["config.json"])
    return {f'"{name}":' for name in (*config, *config["attention"])} | LITERALS


def _no_words() -> set[str]:
    return set()


LITERALS = {
    "null",
    "true",
    "false",
    "NaN",
    "1e400",
    "-1",
    str(2**63),
    '"\\ud800"',
    "[]",
    "{}",
    "[[",
}


@dataclass(frozen=True)
class Target:
    """What reads bytes, inputs to begin with, and words that are worth putting in."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: Callable[[], set[str]] = _no_words


TARGETS: dict[str, Target] = {
    "bodies": Target(read_body, _body_seeds, _body_words),
    "model-files": Target(read_model_file, _file_seeds, _config_words),
    "detokenisation": Target(detokenise, _token_seeds),
    "stop-strings": Target(match_stops, _stop_seeds),
}
