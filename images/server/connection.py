"""A client's connection: uvicorn's own, with limits on what the client may keep waiting, send and hold."""

import functools
from typing import Any

from limits import Limits, Refusal
from metrics import Counts
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD = 64 * 2**10  # bytes of request line and headers


class Connection(HttpToolsProtocol):
    """Closes a connection whose request or reading takes too long, whose head is too large, or that is one too many."""

    def __init__(self, limits: Limits, counts: Counts, **settings: Any) -> None:
        super().__init__(**settings)
        self._limits, self._counts = limits, counts
        self._since: float | None = None  # since when the client owes us the rest of a request, or reading an answer
        self._head = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            self._end("connections", Refusal(503, "too many connections: try again", [(b"retry-after", b"1")]))

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            if self._head >= 0 and self._since is not None:
                self._head += len(data)
                if self._head > HEAD:
                    self._end("malformed", Refusal(431, f"at most {HEAD} bytes of headers"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._since, self._head = self.loop.time(), 0

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()
        extensions: dict[str, Any] = {"nas.whole": functools.partial(_whole, self.cycle)}
        self.scope["extensions"] = extensions

    def on_message_complete(self) -> None:
        self._since = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._end("malformed", Refusal(400, msg))

    def check(self, now: float) -> None:
        """Called every second: end the connection if the client is too slow."""
        if self._since is not None and now - self._since > self._limits.seconds:
            self._end("slow", Refusal(408, f"a request has to arrive within {self._limits.seconds:g} seconds"))

    def _end(self, reason: str, refusal: Refusal) -> None:
        self._counts.add(reason)
        self._since = None
        if self.flow.write_paused:
            self.transport.abort()
            return
        status, headers, body = refusal.response()
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        self.transport.write(_bytes(status, headers, body))
        self.transport.close()


def _whole(cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
    """Send a whole response in one write, as uvicorn's own `send` does in two. False: that one has to, for a
    connection that ends or whose client doesn't read."""
    if cycle.disconnected or not cycle.keep_alive or cycle.flow.write_paused or cycle.response_started:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(_bytes(status, cycle.default_headers + headers, body))
    cycle.message_event.set()
    cycle.on_response()
    return True


def _bytes(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [b"%s: %s\r\n" % header for header in headers]
    return b"".join([STATUS_LINE[status], *lines, b"\r\n", body])
