"""The engine in its own process: `python -m dijiang_runtime.engine.process`.

Started by `supervisor.EngineProcess`, which writes an `EngineStart` to its standard input as one
line of JSON and keeps the pipe open: its end means that the parent is gone. Serves one client over
a ZeroMQ socket, and leaves nothing behind.
"""

import gc
import logging
import signal
import sys

import zmq

from dijiang_runtime.engine.messages import (
    ClientMessage,
    EngineMessage,
    Hello,
    LoadFailed,
    Ready,
    Shutdown,
    StepDone,
    decode_client_message,
    decode_start,
    encode,
)
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.processes import die_with_parent
from dijiang_runtime.request import RequestOutput

logger = logging.getLogger(__name__)

FLUSH_MILLISECONDS = 2000
"""How long the last message may take to leave."""


class SocketChannel:
    """The engine's end of the socket. Implements `loop.Channel`."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._socket.linger = FLUSH_MILLISECONDS
        self._socket.connect(address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._stdin = sys.stdin.fileno()
        self._poller.register(self._stdin, zmq.POLLIN)
        self._unsent: list[RequestOutput] = []

    def receive(self, timeout_seconds: float) -> list[ClientMessage]:
        """Return what has arrived, waiting for so long if nothing has."""
        events = dict(self._poller.poll(max(0, round(timeout_seconds * 1000))))
        if self._stdin in events:
            # Nothing follows the first line, so this is the end of the pipe.
            logger.warning("the parent process is gone; leaving")
            return [Shutdown()]
        messages = []
        while self._socket in events:
            try:
                messages.append(decode_client_message(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        return messages

    def send(self, message: EngineMessage) -> None:
        """Send now, or with the next message if the client is not keeping up."""
        if self._unsent and isinstance(message, StepDone):
            message = StepDone((*self._unsent, *message.outputs), message.stats)
            self._unsent = []
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            if isinstance(message, StepDone):
                self._unsent.extend(message.outputs)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def main() -> int:
    """Serve until told to stop. Returns the exit status."""
    die_with_parent()
    # Ctrl-C reaches the whole terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = decode_start(sys.stdin.buffer.readline())
    logging.basicConfig(
        level=start.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    channel = SocketChannel(start.address)
    try:
        channel.send(Hello())
        # Torch is imported only now, after the client knows that the process lives.
        from dijiang_runtime.engine import loop
        from dijiang_runtime.engine.engine import Engine

        try:
            engine = Engine.from_config(start.config)
        except ModelLoadError as exc:
            channel.send(LoadFailed(str(exc)))
            return 1
        # What was loaded stays: looking through it for garbage would stop a step for 20 ms.
        gc.collect()
        gc.freeze()
        channel.send(Ready(engine.info))
        loop.run(engine, channel)
        return 0
    finally:
        channel.close()


if __name__ == "__main__":
    sys.exit(main())
