"""The API without I/O: requests as values, and what turns the bytes of responses into values.

`Client` and `AsyncClient` send a `Call` and give the body of the response to `Call.read`, or the
pieces of it, as they come, to an `AnswerDecoder`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from clients.errors import ConnectionLostError, ProtocolError, error_from_event
from clients.messages import Answer, Choice, Delta, Message, Model, Sampling, Tokens, Usage
from clients.sse import SSEDecoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its answer is read. Without fields it is a GET."""

    path: str
    read: Callable[[bytes], T]
    fields: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        return "GET" if self.fields is None else "POST"

    @property
    def body(self) -> bytes | None:
        """The fields as JSON. Half a surrogate pair, which no UTF-8 can hold, becomes a `?`."""
        if self.fields is None:
            return None
        return json.dumps(self.fields, ensure_ascii=False).encode(errors="replace")

    def streamed(self, *, continuous_usage: bool) -> "Call[T]":
        """The same request with its answer in pieces, for an `AnswerDecoder`."""
        options = {"include_usage": True}
        if continuous_usage:
            options["continuous_usage_stats"] = True
        streaming = {"stream": True, "stream_options": options}
        return dataclasses.replace(self, fields={**(self.fields or {}), **streaming})


def list_models() -> Call[list[Model]]:
    return Call("/v1/models", read_models)


def complete(model: str, prompt: str, sampling: Sampling) -> Call[Answer]:
    return Call("/v1/completions", read_answer, {"model": model, "prompt": prompt, **sampling})


def chat(model: str, messages: Sequence[Message], sampling: Sampling) -> Call[Answer]:
    fields = {"model": model, "messages": as_json(messages), **sampling}
    return Call("/v1/chat/completions", read_answer, fields)


def tokenize(model: str, text: str | Sequence[Message]) -> Call[Tokens]:
    content = {"prompt": text} if isinstance(text, str) else {"messages": as_json(text)}
    return Call("/tokenize", read_tokens, {"model": model, **content})


def detokenize(model: str, tokens: Sequence[int]) -> Call[str]:
    return Call("/detokenize", read_text, {"model": model, "tokens": list(tokens)})


def embed(model: str, texts: Sequence[str]) -> Call[list[tuple[float, ...]]]:
    return Call("/v1/embeddings", read_embeddings, {"model": model, "input": list(texts)})


def metrics() -> Call[dict[str, float]]:
    return Call("/metrics", read_metrics)


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [dataclasses.asdict(message) for message in messages]


@contextlib.contextmanager
def openai_shape() -> Iterator[None]:
    """Turn the failure to read a body into one error that says what it means."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as exc:
        raise ProtocolError(
            "What answers at this address is not an OpenAI-compatible API."
        ) from exc


def read_models(body: bytes) -> list[Model]:
    with openai_shape():
        cards = json.loads(body)["data"]
        return [Model(str(card["id"]), card.get("max_model_len")) for card in cards]


def read_answer(body: bytes) -> Answer:
    with openai_shape():
        answer = json.loads(body)
        choices = tuple(
            Choice(choice["index"], _text(choice), choice["finish_reason"])
            for choice in answer["choices"]
        )
        return Answer(answer["id"], answer["model"], choices, _usage(answer))


def read_tokens(body: bytes) -> Tokens:
    with openai_shape():
        answer = json.loads(body)
        return Tokens(tuple(answer["tokens"]), answer.get("max_model_len"))


def read_text(body: bytes) -> str:
    with openai_shape():
        return str(json.loads(body)["prompt"])


def read_embeddings(body: bytes) -> list[tuple[float, ...]]:
    with openai_shape():
        items = sorted(json.loads(body)["data"], key=lambda item: item["index"])
        return [tuple(float(number) for number in item["embedding"]) for item in items]


def read_metrics(body: bytes) -> dict[str, float]:
    """The samples of a page in the Prometheus text format by name, those with one name added."""
    totals: dict[str, float] = {}
    with openai_shape():
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                # A label may hold spaces: the name is read from one end, the value from the other.
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                totals[name] = totals.get(name, 0.0) + float(value)
    return totals


class AnswerDecoder:
    """Turns the bytes of a streamed answer, cut anywhere, into deltas."""

    def __init__(self) -> None:
        self._events = SSEDecoder()
        self.is_done = False
        """Whether the end mark has come. What follows it is not read."""

    def feed(self, chunk: bytes) -> Iterator[Delta]:
        """Yield the deltas that `chunk` completed.

        Raises:
            StreamError: the server ended the answer with an error, after the deltas before it.
        """
        for event in self._events.feed(chunk):
            if self.is_done:
                return
            if event.data == "[DONE]":
                self.is_done = True
            else:
                yield from read_deltas(event.data)

    def end(self) -> None:
        """The response is over. Without the end mark that must not look like success."""
        if not self.is_done:
            raise ConnectionLostError("The stream ended before the answer did.")


def read_deltas(data: str) -> list[Delta]:
    """What one event of a stream adds, choice by choice."""
    with openai_shape():
        event = json.loads(data)
        if "error" in event:
            raise error_from_event(event["error"])
        deltas = [
            Delta(choice["index"], _text(choice), choice.get("finish_reason"))
            for choice in event["choices"]
        ]
        usage = _usage(event)
    return [*deltas, Delta(usage=usage)] if usage else deltas


def _usage(body: Mapping[str, Any]) -> Usage | None:
    usage = body.get("usage")
    return Usage(usage["prompt_tokens"], usage.get("completion_tokens", 0)) if usage else None


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice, which chat and completions, streamed or not, put in three places."""
    for name in ("delta", "message"):
        if name in choice:
            return choice[name].get("content") or ""
    return choice["text"] or ""
