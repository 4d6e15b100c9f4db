"""Grammars of clients, tried out in a process that may die of them. Knows no torch.

A grammar can be made to take minutes, gigabytes, or more stack than there is. The engine, which
must live, compiles only what a child process of the server has compiled before it, within limits:
`python -m dijiang_runtime.grammar_check`, started with the first grammar and kept.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from dijiang_runtime.errors import EngineOverloadedError, GrammarCheckError, InvalidRequestError
from dijiang_runtime.request import Grammar

logger = logging.getLogger(__name__)

MAX_VERDICTS = 1024
MAX_WAITING = 32
"""Grammars that may wait for the one that is being tried out."""

START_SECONDS = 60.0
PAUSE_SECONDS = 5.0
"""After a start that failed, before the next one is tried. All who ask meanwhile are refused."""

MEMORY_BYTES = 512 * 2**20
"""What a grammar may need beyond what the process has when it is ready."""

STACK_BYTES = 4 * 2**20
"""Half of what a thread of the engine has."""


class CheckStart(msgspec.Struct, frozen=True):
    """What the child reads first."""

    folder: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    timeout_seconds: float


class Verdict(msgspec.Struct, frozen=True):
    """What the child answers to a grammar."""

    error: str | None = None


class GrammarChecker:
    """Says of each grammar whether the engine may compile it. Remembers what it has said."""

    def __init__(self, folder: Path, *, timeout_seconds: float, max_bytes: int) -> None:
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar-check")
        self._child = _Child()
        self._num_waiting = 0
        self._finalizer = weakref.finalize(self, self._child.end)

    async def check(
        self, grammar: Grammar, *, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        """Return if the grammar can be used.

        Raises:
            InvalidRequestError: it cannot, and why.
            EngineOverloadedError: too many are waiting to be tried out.
            GrammarCheckError: the process that tries them out does not start.
        """
        size = len(grammar.text.encode("utf-8", errors="replace"))
        if size > self._max_bytes:
            raise InvalidRequestError(
                f"{grammar.param} must not be larger than {self._max_bytes} bytes; it has {size}.",
                param=grammar.param,
            )
        key = hashlib.sha256(f"{grammar.kind.value}\0{grammar.text}".encode()).digest()
        verdict = self._verdicts.get(key)
        if verdict is None:
            start = CheckStart(str(self._folder), vocab_size, eos_token_ids, self._timeout_seconds)
            verdict = await self._ask(start, grammar)
            self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        if verdict.error is not None:
            raise InvalidRequestError(f"{grammar.param} {verdict.error}", param=grammar.param)

    def close(self) -> None:
        """End the child process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._finalizer()

    async def _ask(self, start: CheckStart, grammar: Grammar) -> Verdict:
        if self._num_waiting >= MAX_WAITING:
            raise EngineOverloadedError(
                f"{self._num_waiting} grammars are waiting already. Try again later.",
                retry_after_seconds=self._timeout_seconds,
            )
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._child.ask, start, grammar)
        finally:
            self._num_waiting -= 1


class _Child:
    """The process, from the first grammar on; a new one after one that died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._next_start = 0.0
        """By the monotonic clock: no start is tried before."""

    def ask(self, start: CheckStart, grammar: Grammar) -> Verdict:
        """Try a grammar out. Blocks, at most until its time is over."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start(start)
            assert self._process is not None
            line = _talk(self._process, msgspec.json.encode(grammar), start.timeout_seconds)
            if line:
                return msgspec.json.decode(line, type=Verdict)
            self.end()
            # No line is the end of the process; None is that it goes on and on.
            limit = f"{start.timeout_seconds:g} seconds"
            return Verdict(
                f"cannot be used: compiling it takes more than {limit}."
                if line is None
                else "cannot be used: compiling it takes too much memory or depth."
            )

    def _start(self, start: CheckStart) -> None:
        """Start the process, or a new one. Raises `GrammarCheckError`."""
        self.end()
        seconds_left = self._next_start - time.monotonic()
        if seconds_left > 0:
            raise GrammarCheckError(retry_after_seconds=seconds_left)
        reason = "it did not become ready"
        try:
            self._process = _spawn()
            if _talk(self._process, msgspec.json.encode(start), START_SECONDS):
                return
        except OSError as exc:
            reason = str(exc)
        if self._process is not None and (status := self._process.poll()) is not None:
            reason = f"it ended with status {status}"
        logger.error("The process that tries grammars out does not start: %s.", reason)
        self.end()
        self._next_start = time.monotonic() + PAUSE_SECONDS
        raise GrammarCheckError(retry_after_seconds=PAUSE_SECONDS)

    def end(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dijiang_runtime.grammar_check"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _talk(process: subprocess.Popen[bytes], line: bytes, timeout_seconds: float) -> bytes | None:
    """Send a line and return the one that answers it; empty at the end, None when time is over."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + timeout_seconds
    answer = b""
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except OSError:
        return b""
    while not answer.endswith(b"\n"):
        seconds_left = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], seconds_left)[0]:
            return None
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            # The alarm of the process itself is set to the same time.
            is_late = process.wait() == -signal.SIGALRM
            return None if is_late else b""
        answer += data
    return answer


def main() -> None:
    """The child: compile the grammars that come, one a line, until the parent is gone."""
    from dijiang_runtime.grammar import GrammarCompiler
    from dijiang_runtime.tokenizer import Tokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=CheckStart)
    tokenizer = Tokenizer.load(Path(start.folder))
    compiler = GrammarCompiler(tokenizer, start.vocab_size, start.eos_token_ids)
    compiler.warm_up()
    _limit()
    _tell(Verdict())
    for line in sys.stdin.buffer:
        # Even when the parent has died, and nobody else ends it.
        signal.setitimer(signal.ITIMER_REAL, start.timeout_seconds)
        error = None
        try:
            compiler.compile(msgspec.json.decode(line, type=Grammar)).compute_bitmask()
        except InvalidRequestError as exc:
            error = str(exc).partition(" ")[2]
        except MemoryError:
            error = "cannot be used: compiling it takes too much memory or depth."
        signal.setitimer(signal.ITIMER_REAL, 0)
        _tell(Verdict(error))


def _tell(verdict: Verdict) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
    sys.stdout.buffer.flush()


def _limit() -> None:
    """Bound what the process may take from here on."""
    os.nice(5)
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        fields = Path("/proc/self/status").read_text(encoding="ascii").split()
        used = int(fields[fields.index("VmData:") + 1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY_BYTES, used + MEMORY_BYTES))


if __name__ == "__main__":
    main()
