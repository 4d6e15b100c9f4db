"""One end of a line between two processes of this machine. Knows no torch."""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import zmq
import zmq.asyncio

_MAX_SOCKET_PATH = 90
"""Unix limits the path of a socket to 107 characters."""


class Endpoint:
    """A ZeroMQ socket for one peer, used from an event loop. Send and receive bytes.

    The end that is made first is in a private folder. That is removed as soon as both ends are
    connected, so a crash leaves no file behind.
    """

    def __init__(self, address: str | None = None) -> None:
        """
        Args:
            address: Of the other end, to connect to it. None makes the first end of a new line.
        """
        self._folder: Path | None = None
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = self._context.socket(zmq.PAIR)
        self._socket.linger = 0
        if address is None:
            self._folder = _private_folder()
            self.address = f"ipc://{self._folder / 'line'}"
            self._socket.bind(self.address)
        else:
            self.address = address
            self._socket.connect(address)

    async def receive(self) -> bytes:
        return await self._socket.recv()

    def send(self, data: bytes) -> bool:
        """Send without waiting. Returns whether there was room for it."""
        # With NOBLOCK the future is done at once.
        sent = cast("asyncio.Future[Any]", self._socket.send(data, zmq.NOBLOCK))
        return sent.exception() is None

    def hide(self) -> None:
        """Remove the folder: the peer is connected, and nobody else will be."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Drop what was not sent, and leave nothing behind."""
        self._socket.close()
        self._context.term()
        self.hide()


def _private_folder() -> Path:
    """A new folder that only this user can enter, with a path short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="dijiang-")
    if len(folder) <= _MAX_SOCKET_PATH:
        return Path(folder)
    os.rmdir(folder)
    return Path(tempfile.mkdtemp(prefix="dijiang-", dir="/tmp"))
