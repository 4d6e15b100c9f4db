"""The turns of a conversation and the client that continues them."""

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from clients.chat.figures import Memory, Timing, read_memory
from clients.client import Client
from clients.errors import APIError, ClientError, ProtocolError
from clients.messages import Message, Sampling, Usage
from clients.wire import as_json

FORMAT = "dijiang-chat/1"


class SavedChatError(ClientError):
    """A file that cannot be written, or that holds no conversation."""


class Conversation:
    """What was said, what is asked for next, and how. Nothing of it is lost when a server is."""

    def __init__(self, client: Client, sampling: Sampling, *, system: str | None = None) -> None:
        self.client = client
        self.sampling = sampling
        self.system = system
        self.turns: list[Message] = []
        self.usage: Usage | None = None
        """Of the last answer: its prompt is the whole conversation before it."""
        self._unanswered: str | None = None
        self._memory: Memory | None = None
        self._is_foreign = False

    @property
    def memory(self) -> Memory | None:
        """What the model keeps of a conversation, if the server is one of ours and has told."""
        if self._memory is None and not self._is_foreign:
            try:
                metrics = self.client.metrics()
            except ClientError as exc:
                self._is_foreign = isinstance(exc, APIError | ProtocolError)
                return None
            self._is_foreign = not any(name.startswith("dijiang_") for name in metrics)
            self._memory = read_memory(metrics)
        return self._memory

    @property
    def last_question(self) -> str | None:
        """What was asked last, answered or not."""
        if self._unanswered is not None:
            return self._unanswered
        return self.turns[-2].content if self.turns else None

    def clear(self) -> None:
        """Forget what was said, and keep the system prompt."""
        self.turns.clear()
        self.usage, self._unanswered = None, None

    def ask(self, text: str, timing: Timing, *, again: bool = False) -> Generator[str]:
        """Yield the answer to `text` piece by piece, and remember both.

        An answer that ends early is remembered as far as it was seen, so that the conversation
        goes on from what the user read. A turn that got no answer is forgotten.

        Args:
            again: Ask in place of the last question, whose answer is forgotten when a new one
                has begun.
        """
        before = self.turns[:-2] if again and self._unanswered is None else self.turns
        question = Message("user", text)
        head = [Message("system", self.system)] if self.system else []
        # Only our own server is known to understand this.
        counts = self._memory is not None
        self._unanswered = text
        seen: list[str] = []
        try:
            with self.client.stream_chat(
                [*head, *before, question], continuous_usage=counts, **self.sampling
            ) as stream:
                for delta in stream:
                    timing.saw(delta)
                    if delta.text:
                        seen.append(delta.text)
                        yield delta.text
        finally:
            if seen:
                self.turns = [*before, question, Message("assistant", "".join(seen))]
                self.usage, self._unanswered = timing.usage, None

    def save(self, file: Path, *, may_replace: bool) -> None:
        """Write everything that `load` reads, for its owner alone.

        Raises:
            SavedChatError: it cannot be written, or there is one that must not be replaced.
        """
        content = {
            "format": FORMAT,
            "system": self.system,
            "params": self.sampling,
            "messages": as_json(self.turns),
        }
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if may_replace else os.O_EXCL)
        try:
            with os.fdopen(os.open(file, flags, 0o600), "w", encoding="utf-8") as out:
                json.dump(content, out, ensure_ascii=False, indent=2)
                out.write("\n")
        except FileExistsError as exc:
            raise SavedChatError(f"{file} exists already: choose another name.") from exc
        except (OSError, UnicodeError) as exc:
            raise SavedChatError(f"{file} cannot be written: {exc}.") from exc

    def load(self, file: Path) -> None:
        """Go on with a saved conversation in place of this one.

        Raises:
            SavedChatError: there is none in that file. This one is kept then.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise SavedChatError(f"{file} cannot be read: {exc}.") from exc
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SavedChatError(f"{file} holds no conversation that /save wrote.")
        try:
            turns = [Message(turn["role"], turn["content"]) for turn in content["messages"]]
        except (TypeError, LookupError) as exc:
            raise SavedChatError(f"{file} holds no conversation that /save wrote.") from exc
        self.clear()
        self.turns = turns
        self.system = content.get("system")
        self.sampling = cast(Sampling, dict[str, Any](content.get("params") or {}))
