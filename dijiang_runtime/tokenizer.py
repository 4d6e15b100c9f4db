"""Text to token ids and back, over the `tokenizers` library. Knows no torch.

Decoding is defined by bytes: every token stands for a fixed string of bytes, a text is their
concatenation read as UTF-8, and what is no UTF-8 becomes U+FFFD. That makes decoding token by
token exact, which the library's own `decode` of pieces is not.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import tokenizers

from dijiang_runtime.errors import ModelLoadError, UnsupportedModelError

LONG_TEXT = 4096
"""Characters from which encoding takes long enough to be worth a thread."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """The tokenizer of one model folder. Safe to share between threads."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.bos_id = bos_id
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.chat_template = chat_template
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._decoder = _Decoder(json.loads(tokenizer.to_str())["decoder"])
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json` and the files beside it.

        Raises:
            ModelLoadError: the file is missing or damaged.
            UnsupportedModelError: it decodes in a way that we do not know.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{folder} has no tokenizer.json.")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as exc:  # The library raises bare Exception.
            raise ModelLoadError(f"{path} cannot be read: {exc}") from exc
        settings = _read_json(folder / "tokenizer_config.json")
        config = _read_json(folder / "config.json")
        generation = _read_json(folder / "generation_config.json")
        bos = _token_content(settings.get("bos_token"))
        eos = _token_content(settings.get("eos_token"))
        eos_ids = [
            *_ids(generation.get("eos_token_id")),
            *_ids(config.get("eos_token_ids")),
            *_ids(tokenizer.token_to_id(eos) if eos else None),
        ]
        return cls(
            tokenizer,
            bos_id=tokenizer.token_to_id(bos) if bos else None,
            eos_ids=eos_ids,
            chat_template=_chat_template(folder, settings),
        )

    @property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows; the model may have more rows than that."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(
        self, text: str, add_special_tokens: bool = True, *, allow_special: bool = True
    ) -> list[int]:
        """The ids of `text`.

        Args:
            add_special_tokens: Put BOS and the like where the model expects them.
            allow_special: Read special tokens spelled in the text as such. Without it they are
                plain text, which is what text from a user must be.
        """
        tokenizer = self._tokenizer if allow_special else self._plain_tokenizer
        if len(text) < LONG_TEXT:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            return ids
        # Only the batch form releases the interpreter lock, so that a long text encoded in a
        # thread does not stop the event loop.
        batch = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids = batch[0].ids
        return ids

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """How the special tokens are spelled, the longest first."""
        spellings = {self.id_to_token(token_id) or "" for token_id in self._special_ids}
        return tuple(sorted(spellings - {""}, key=lambda token: (-len(token), token)))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids` as a text of its own: without the space that some tokenizers put
        before its first word."""
        data = b"".join(
            self.token_bytes(i) for i in ids if not (skip_special_tokens and self.is_special(i))
        )
        return self._decoder.strip(data).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for inside a text; none for an id without a token."""
        data = self._bytes.get(token_id)
        if data is None:
            token = self.id_to_token(token_id)
            data = b"" if token is None else self._decoder.token_bytes(token)
            self._bytes[token_id] = data
        return data

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def id_to_token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token, or None for an id without a token."""
        if not 0 <= token_id < 2**32:
            return None
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    @cached_property
    def _plain_tokenizer(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        plain.encode_special_tokens = True
        return plain


class _Decoder:
    """What the `decoder` of a `tokenizer.json` does to one token, as bytes."""

    def __init__(self, spec: Mapping[str, Any] | None) -> None:
        self._replacements: list[tuple[str, str]] = []
        self._byte_level = self._byte_fallback = False
        self._num_stripped = 0
        for part in _parts(spec):
            self._add(part)

    def token_bytes(self, token: str) -> bytes:
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        if self._byte_level:
            table = _byte_level_table()
            if all(char in table for char in token):
                return bytes(table[char] for char in token)
        return token.encode("utf-8", errors="replace")

    def strip(self, data: bytes) -> bytes:
        """Drop the spaces that the tokenizer adds at the start of a text."""
        for _ in range(self._num_stripped):
            data = data.removeprefix(b" ")
        return data

    def _add(self, part: Mapping[str, Any]) -> None:
        match part:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                self._replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                self._num_stripped += start
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
                self._replacements.append((mark, " "))
                self._num_stripped += scheme != "never"
            case _:
                raise UnsupportedModelError(
                    f"tokenizer.json has a decoder that is not supported: {json.dumps(part)}."
                )


def _parts(spec: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if spec is None:
        raise UnsupportedModelError("tokenizer.json has no decoder, so ids cannot become text.")
    return spec["decoders"] if spec["type"] == "Sequence" else [spec]


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the other
    68 bytes for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ModelLoadError(f"{path} is not valid JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise ModelLoadError(f"{path} must hold a JSON object.")
    return data


def _token_content(token: str | Mapping[str, Any] | None) -> str | None:
    """Both spellings of a token in `tokenizer_config.json`: a string, or an object with one."""
    return token["content"] if isinstance(token, Mapping) else token


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The Jinja source, from its own file, else from the settings, where it may be a list."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template
