"""Every kind of malformed request that we know, each as the bytes that go over the wire."""

import json
from collections.abc import Iterator
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
VALID: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "the quick", "max_tokens": 2},
    CHAT: {"messages": [{"role": "user", "content": "the quick"}], "max_tokens": 2},
    "/tokenize": {"prompt": "the quick"},
    "/detokenize": {"tokens": [5, 6]},
}
"""A request that each endpoint answers."""

REQUIRED = {COMPLETIONS: "prompt", CHAT: "messages", "/tokenize": "prompt", "/detokenize": "tokens"}

WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("n", "max_tokens", "min_tokens", "top_k", "seed", "priority", "prompt_logprobs"),
        ("2", 1.5, True, [1], {"a": 1}),
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "timeout"),
        ("0.5", True, [1.0], {"a": 1}),
    ),
    **dict.fromkeys(("stream", "ignore_eos", "return_token_ids"), ("true", 1, [], {})),
    **dict.fromkeys(("model", "user"), (5, True, [], {})),
    "logit_bias": ("a", 1, [1], {"x": 1}, {"1": "a"}, {"1": True}),
    "stop": (5, True, {}, [1], [["a"]]),
    "stop_token_ids": ("a", 1, {}, ["a"], [1.5]),
    "stream_options": ("a", 1, [], True),
}
"""Fields that both endpoints for text share, with values that no such field can have."""

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "n": (0, -1, 9, 10**6, 2**63, -(2**63), 10**100),
    "max_tokens": (-1, 2**31, 2**63, 10**30),
    "min_tokens": (-1, 3, 2**63),
    "temperature": (-0.1, 2.1, 1e300, -1e300),
    "top_p": (0, -0.1, 1.01, 1e300),
    "top_k": (-2, 2**31, 2**63),
    "min_p": (-0.1, 1.1),
    "frequency_penalty": (-2.1, 2.1),
    "presence_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, -1),
    "seed": (2**63, -(2**63) - 1, 10**50),
    "priority": (2**31, -(2**31) - 1),
    "timeout": (0, -1, 86_401),
    "prompt_logprobs": (-1, 21),
    "logit_bias": ({"384": 1}, {"-1": 1}, {"1": 101}, {"1": -101}, {str(2**31): 1}),
    "stop": ([""], ["x"] * 17, ["x" * 257], "x" * 257),
    "stop_token_ids": ([384], [-1], [2**31]),
    "allowed_token_ids": ([], [384], [-1]),
    "truncate_prompt_tokens": (0, -2),
}

UNSUPPORTED: dict[str, Any] = {
    "prompt_embeds": "AAAA",
    "chat_template": "{% for x in range(10**9) %}{% endfor %}",
    "logits_processors": ["os.system"],
    "lora_request": {"lora_path": "/etc/passwd"},
    "image_url": "http://127.0.0.1:1/",
    "file_url": "file:///etc/passwd",
    "use_beam_search": True,
    "mm_processor_kwargs": {"a": 1},
    "early_stopping": True,
}

_S = b'{"prompt": "the", "max_tokens": 1'
NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "space": b" \n\t ",
    "nul": b"\0",
    "open brace": b"{",
    "null": b"null",
    "true": b"true",
    "number": b"1",
    "string": b'"x"',
    "array": b"[]",
    "array of objects": b"[" + _S + b"}]",
    "two objects": _S + b"}" + _S + b"}",
    "trailing text": _S + b"} x",
    "trailing comma": _S + b",}",
    "missing comma": b'{"prompt": "the" "max_tokens": 1}',
    "missing colon": b'{"prompt" "the"}',
    "no quotes": b"{prompt: 1}",
    "single quotes": b"{'prompt': 'the'}",
    "comment": _S + b"} // x",
    "block comment": b"/* x */" + _S + b"}",
    "byte order mark": b"\xef\xbb\xbf" + _S + b"}",
    "utf-16": (_S + b"}").decode().encode("utf-16"),
    "utf-32": (_S + b"}").decode().encode("utf-32"),
    "latin-1": '{"prompt": "\xe9"}'.encode("latin-1"),
    "overlong utf-8": b'{"prompt": "\xc0\xaf"}',
    "surrogate in utf-8": b'{"prompt": "\xed\xa0\x80"}',
    "cut utf-8": b'{"prompt": "\xe2\x82"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "reversed surrogates": b'{"prompt": "\\udc00\\ud800"}',
    "bad escape": b'{"prompt": "\\x41"}',
    "cut escape": b'{"prompt": "\\u12"}',
    "raw newline": b'{"prompt": "a\nb"}',
    "raw nul": b'{"prompt": "a\0b"}',
    "NaN": _S + b', "temperature": NaN}',
    "Infinity": _S + b', "temperature": Infinity}',
    "-Infinity": _S + b', "temperature": -Infinity}',
    "1e400": _S + b', "temperature": 1e400}',
    "hexadecimal": _S + b', "n": 0x1}',
    "leading zero": _S + b', "n": 01}',
    "plus sign": _S + b', "n": +1}',
    "bare point": _S + b', "temperature": .5}',
    "5,000 digits": _S + b', "seed": ' + b"9" * 5000 + b"}",
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "deep field": b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    "python": b"{'prompt': None}",
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "form": b"prompt=the&max_tokens=1",
    "xml": b'<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
}

_PROMPTS: tuple[Any, ...] = (
    *("", [], [[]], [""], ["a", ""], [[1], []], None, 5, 1.5, True, {}, {"text": "x"}),
    *(["a", 1], [1, "a"], [1.5], [True], [None], [-1], [384], [2**31], [2**63], [[1], [2**31]]),
    *(["a"] * 33, ["a"] * 100_000, [[[1]]], [{}], "x" * 2_000_000),
)
_MESSAGES: tuple[Any, ...] = (
    *(None, [], "hi", 5, {}, [None], ["hi"], [[]], [{}], [{"role": "user"}], [{"content": "x"}]),
    *([{"role": r, "content": "x"}] for r in ("root", "", "User", "user\0", 5, None, ["user"])),
    *([{"role": "user", "content": c}] for c in ("", None, 5, {}, [""], [None], [{}])),
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
    [{"role": "user", "content": [{"type": "input_audio"}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    [{"role": "user", "content": "x"}] * 1025,
)

_JSON = "Content-Type: application/json"
_BODY = b'{"prompt": "the", "max_tokens": 1}'


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST with a right Content-Length; JSON unless the headers say otherwise."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(headers or (_JSON,))]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def post_json(path: str, body: Any) -> bytes:
    return post(path, json.dumps(body).encode())


def _head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _bodies() -> Iterator[tuple[str, bytes]]:
    """What is wrong with a body."""
    for path in (COMPLETIONS, CHAT):
        for name, value in NOT_JSON.items():
            yield f"{path}: {name}", post(path, value)
        for table, word in ((WRONG_TYPES, "type"), (OUT_OF_RANGE, "range")):
            for field, values in table.items():
                for i, wrong in enumerate(values):
                    yield (
                        f"{path}: {field}, {word} {i}",
                        post_json(path, {**VALID[path], field: wrong}),
                    )
        for field, wrong in UNSUPPORTED.items():
            yield f"{path}: {field}", post_json(path, {**VALID[path], field: wrong})
    for path, field in REQUIRED.items():
        rest = {name: value for name, value in VALID[path].items() if name != field}
        yield f"{path}: no {field}", post_json(path, rest)
    for field, path, values in (("prompt", COMPLETIONS, _PROMPTS), ("messages", CHAT, _MESSAGES)):
        for i, wrong in enumerate(values):
            yield f"{path}: {field} {i}", post_json(path, {**VALID[path], field: wrong})
    for i, wrong in enumerate((None, "a", 5, {}, ["a"], [1.5], [-1], [384], [2**63], [[1]])):
        yield f"/detokenize: tokens {i}", post_json("/detokenize", {"tokens": wrong})
    for i, wrong in enumerate((5, [], {}, True, [1])):
        yield f"/tokenize: prompt {i}", post_json("/tokenize", {"prompt": wrong})
    yield "/tokenize: both", post_json("/tokenize", {**VALID["/tokenize"], **VALID[CHAT]})
    yield "other model", post_json(COMPLETIONS, {**VALID[COMPLETIONS], "model": "../../etc"})


def _addresses() -> Iterator[tuple[str, bytes]]:
    """What is wrong with a method or a path."""
    paths = ("/nothing", "//v1/completions", "/v1/../v1/completions", "/V1/completions", "/v1")
    paths += ("/v1/completions/", "/v1%2f%2fcompletions", "/%00", "/..", "/.env", "/admin", "/docs")
    paths += ("/v1/models/x/../..", "/" + "x" * 60_000, "/?" + "q" * 60_000, "/invocations", "/v1?")
    for path in paths:
        yield f"path {path[:24]} ({len(path)})", post(path, _BODY)
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "HEADS", "get", "X" * 64):
        yield f"method {method[:8]}", _head(f"{method} {COMPLETIONS} HTTP/1.1", "Host: x", _JSON)
    for path in ("/livez", "/metrics", "/v1/models", "/version"):
        yield f"POST {path}", post(path, b"{}")


def _headers() -> Iterator[tuple[str, bytes]]:
    """What is wrong with headers, all told by a status and not only by hanging up."""
    kinds = ("", "text/plain", "multipart/form-data; boundary=x", "application/octet-stream")
    kinds += ("application/x-www-form-urlencoded", "application/json; charset=utf-16", "json")
    kinds += ("application/json; charset=latin-1", "application/jsonp", "application/x-msgpack")
    for kind in kinds:
        yield f"content type {kind}", post(COMPLETIONS, _BODY, f"Content-Type: {kind}")
    for coding in ("gzip", "deflate", "br", "identity, gzip", "x"):
        yield (
            f"content coding {coding}",
            post(COMPLETIONS, _BODY, _JSON, f"Content-Encoding: {coding}"),
        )
    start = f"POST {COMPLETIONS} HTTP/1.1"
    for length in ("-1", "+5", "0x10", "1 1", "1,2", "1_0", "5\x00", "\xb2", "9" * 30, "2097153"):
        yield f"length {length[:8]!r}", _head(start, "Host: x", _JSON, f"Content-Length: {length}")
    two = ("Content-Length: 3", "Content-Length: 4")
    yield "two lengths", _head(start, "Host: x", _JSON, *two) + b"{}{}"
    codings = ("gzip", "identity", "chunked, chunked", "chunked, gzip", "xchunked", "\x0bchunked")
    for coding in codings:
        lines = (start, "Host: x", _JSON, f"Transfer-Encoding: {coding}")
        yield f"transfer coding {coding!r}", _head(*lines) + b"0\r\n\r\n"
    both = ("Content-Length: 4", "Transfer-Encoding: chunked")
    yield "length and chunks", _head(start, "Host: x", _JSON, *both) + b"0\r\n\r\n"
    yield "chunks and length", _head(start, "Host: x", _JSON, *both[::-1]) + b"0\r\n\r\n"
    chunked = _head(start, "Host: x", _JSON, "Transfer-Encoding: chunked")
    sizes = (b"xyz", b"-1", b"+5", b"0x5", b"1 1", b"\xff", b"5" * 30, b"", b" 5", b"1\n")
    for size in sizes:
        yield f"chunk size {size[:8]!r}", chunked + size + b"\r\n{}\r\n"
    yield "chunk end", chunked + b"2\r\n{}xx0\r\n\r\n"
    yield "no host", _head("GET /livez HTTP/1.1")
    yield "two hosts", _head("GET /livez HTTP/1.1", "Host: x", "Host: y")
    bad = ("X : y", "X", ": y", "X: a\0b", "X\0: y", "X: a\rb", "X: a\x7fb\0", "(X): y")
    for line in bad:
        yield f"header {line!r}", _head("GET /livez HTTP/1.1", "Host: x", line)
    yield "folded header", _head("GET /livez HTTP/1.1", "Host: x", "X: a", " b")
    yield "huge header", _head("GET /livez HTTP/1.1", "Host: x", "X: " + "y" * 200_000)
    many = [f"X{i}: y" for i in range(20_000)]
    yield "many headers", _head("GET /livez HTTP/1.1", "Host: x", *many)


def _lines() -> Iterator[tuple[str, bytes]]:
    """What is no request at all."""
    firsts = ("garbage", "GET", "GET /livez", "GET /livez HTTP/x.1", "GET /livez HTTP/1.x", "\0")
    firsts += ("GET  /livez HTTP/1.1", "GET /li vez HTTP/1.1", "GET /livez HTTP/1.1 x", "\xff\xfe")
    firsts += ("G\0T /livez HTTP/1.1", "GET /\0 HTTP/1.1", "(GET) /livez HTTP/1.1", "{}")
    firsts += ("GET /livez HTTP/9.9", "GET /livez HTTP/1.2", "GET /livez HTTP/0.9")
    firsts += ("GET /livez\tHTTP/1.1", "GET /livez http/1.1", "SSH-2.0-x", "GET /\x7f HTTP/1.1")
    for first in firsts:
        yield f"line {first!r}", _head(first, "Host: x")
    yield "tls", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n"
    yield "line without end", b"A" * 200_000 + b"\r\n\r\n"


def all_kinds() -> dict[str, bytes]:
    """Every kind by name."""
    found: dict[str, bytes] = {}
    for some in (_bodies(), _addresses(), _headers(), _lines()):
        for name, data in some:
            assert name not in found, name
            found[name] = data
    return found
