"""One HTTP/1.1 response: bytes in, body out, no I/O. As much of RFC 9112 as servers of streams use.

Thousands of streams need a parser that costs a few microseconds per event; see docs/loadtest.md.
"""

from clients.errors import ProtocolError

MAX_HEAD_BYTES = 65_536
UNTIL_CLOSE = -1


class ResponseParser:
    """Reads one response, cut anywhere. `status` is 0 until its head is complete."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._rest = b""
        self._is_chunked = False
        # Of the body, or of the chunk that is being read. A chunk's line end counts, see below.
        self._left = 0
        self._in_trailer = False

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body that `data` completed.

        Raises:
            ProtocolError: this is not an HTTP/1.1 response.
        """
        if not self.status:
            data = self._read_head(self._rest + data)
            if not self.status:
                return b""
        if self._is_chunked:
            return self._read_chunks(data)
        return self._read_plain(data)

    def end(self) -> None:
        """Say that the connection was closed, which completes a response without a length."""
        if self.status and not self._is_chunked and self._left == UNTIL_CLOSE:
            self.is_complete = True

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may carry another request after this response."""
        is_closing = self.headers.get("connection", "").lower() == "close"
        return self.is_complete and self._left != UNTIL_CLOSE and not is_closing

    def _read_head(self, data: bytes) -> bytes:
        """Read the head if it is there, and return what follows it."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            if len(data) > MAX_HEAD_BYTES or not data.startswith(b"HTTP/1."[: len(data)]):
                raise ProtocolError("What answers at this address does not speak HTTP/1.1.")
            self._rest = data
            return b""
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdigit():
            raise ProtocolError("What answers at this address does not speak HTTP/1.1.")
        if status[0] == "1":
            # An interim response; the real one follows.
            return self._read_head(rest)
        self._rest = b""
        self.status = int(status[:3])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._choose_framing()
        return rest

    def _choose_framing(self) -> None:
        self._is_chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if not self._is_chunked:
            length = self.headers.get("content-length", "")
            self._left = int(length) if length.isdigit() else UNTIL_CLOSE
            self.is_complete = self._left == 0

    def _read_plain(self, data: bytes) -> bytes:
        if self._left != UNTIL_CLOSE:
            data = data[: self._left]
            self._left -= len(data)
            self.is_complete = self._left == 0
        return data

    def _read_chunks(self, data: bytes) -> bytes:
        data = self._rest + data if self._rest else data
        pieces, at, size = [], 0, len(data)
        while at < size and not self.is_complete:
            if self._left > 2:
                end = min(at + self._left - 2, size)
                pieces.append(data[at:end])
                self._left -= end - at
                at = end
            elif self._left:
                # The two bytes of the chunk's own line end.
                skipped = min(self._left, size - at)
                self._left -= skipped
                at += skipped
            else:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                self._read_line(data[at:end])
                at = end + 2
        self._rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_line(self, line: bytes) -> None:
        """Take a line between chunks: a size, or a trailer, of which the last one is empty."""
        if self._in_trailer:
            self.is_complete = not line
            return
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            size = -1
        if size < 0:
            raise ProtocolError("The server sent a chunk without its size.")
        self._in_trailer = size == 0
        self._left = size + 2 if size else 0
