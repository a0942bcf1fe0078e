"""A client's connection: HTTP/1.1 as httptools parses it, with limits on what the client may send, hold and delay."""

import asyncio
import functools
import time
from collections import deque
from http import HTTPStatus
from typing import Any

import httptools
from lane import SECURITY, Lane, Request, Response
from limits import Refusal, is_open
from live import inline

HEAD = 64 * 2**10  # bytes of target and headers, or of trailers, that reads end in the middle of
HELD = 64 * 2**20  # bytes of all connections' bodies
STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class Connection(asyncio.Protocol):
    """Requests one after another, answered in their order; what is small at once, all else by a task.

    It ends when a request or the reading of an answer takes too long, when a head or body is too large, or when it is
    one connection too many.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane, self._limits, self._loop = lane, lane.live.limits, asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()  # pipelined behind the one that a task answers
        self._task: asyncio.Task[None] | None = None
        self._refusal: Refusal | None = None  # the last answer, after those that wait
        self._begun = self._ending = False  # a request; no further one
        self._head = self._answered = 0  # bytes of an unfinished head or trailer; answers
        self._body = bytearray()
        self._since: float | None = self._loop.time()  # since when the client owes us a request
        self._stuck: float | None = None  # since when it doesn't read

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._end = transport.close
        self._client = (transport.get_extra_info("peername") or [None])[0]
        self._lane.connections.add(self)
        if len(self._lane.connections) > self._limits.connections:
            self._refuse("connections", Refusal(503, "too many connections: try again"))

    def connection_lost(self, _: Exception | None) -> None:
        self._lane.connections.discard(self)
        self._ending, self._since = True, None
        self._let_go()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        self._head, rest = self._head + len(data), data
        while rest and not self._ending:
            try:
                self._parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = self._not_upgraded() + rest[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                self._refuse("malformed", Refusal(400, f"this is no HTTP/1.1 request: {error}"))
        if self._head > HEAD:
            self._refuse("malformed", Refusal(431, f"at most {HEAD} bytes of headers"))

    def on_message_begin(self) -> None:
        self._begun, self._since, self._request = True, self._loop.time(), Request(self._client)

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._request.path:  # else it is a trailer, which may be ignored (RFC 9110, 6.5.1)
            self._request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head, request = 0, self._request
        if self._parser.should_upgrade():
            return
        url = httptools.parse_url(request.target)
        request.path = request.route = (url.path or b"/").decode()
        request.query, header = url.query or b"", dict(request.headers)
        request.header, request.allowed = header, self._lane.keys.allow(request.path, header)
        self._dropping = not request.allowed or is_open(request.path)
        if int(header.get(b"content-length", 0)) > self._limits.body:  # llhttp has made sure that it is a number
            self._too_large()
        elif header.get(b"expect", b"").lower() == b"100-continue" and not self._task:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._head = 0
        if self._ending or self._dropping:
            return
        self._body += part
        self._lane.held += len(part)
        if len(self._body) > self._limits.body:
            self._too_large()
        elif self._lane.held > max(HELD, 8 * self._limits.body):
            self._refuse("busy", Refusal(503, "too many bodies at once: try again"))

    def on_message_complete(self) -> None:
        if self._ending or self._parser.should_upgrade():
            return
        self._begun, self._since, self._head, request = False, None, 0, self._request
        request.method, request.body = self._parser.get_method().decode(), bytes(self._body)
        request.keep = self._parser.should_keep_alive()
        request.for_lane = request.method == "POST" and request.path in ("/predict", "/predict/") and not request.query
        self._body.clear()
        if self._task:
            self._waiting.append(request)
            self._transport.pause_reading()
        else:
            self._start(request)

    def pause_writing(self) -> None:
        self._stuck = self._loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._since, self._stuck = self._since and self._loop.time(), None
        if not self._waiting:
            self._transport.resume_reading()

    def check(self, now: float) -> None:
        """Called every second: end the connection if the client is too slow."""
        since = self._stuck or self._since
        if since is None or now - since <= self._limits.seconds:
            return
        if self._ending:
            self._transport.abort()
        elif self._answered and not (self._begun or self._stuck):
            self._transport.close()  # kept open for a next request, which didn't come
        else:
            self._refuse("slow", Refusal(408, f"a request has to arrive within {self._limits.seconds:g} seconds"))

    def drain(self) -> None:
        """End it after the request in progress."""
        if not (self._task or (self._begun and not self._ending)):
            self._transport.close()

    def _not_upgraded(self) -> bytes:
        """The head for a new parser: without Upgrade, which a server may ignore (RFC 9110, 7.8)."""
        request, method, version = self._request, self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT":
            self._refuse("malformed", Refusal(400, "HTTP/1.1 is all that is spoken here"))
        self._parser = httptools.HttpRequestParser(self)
        lines = [b"%b %b HTTP/%b" % (method, request.target, version.encode())]
        lines += [b"%b: %b" % header for header in request.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"\r\n"])

    def _start(self, request: Request) -> None:
        answering = self._lane.answer(request)
        if request.for_lane and inline(request.body):
            try:
                answering.send(None)  # it never waits, so that this runs to its end
            except StopIteration as answered:
                self._send(request, answered.value)
        else:
            self._task = self._loop.create_task(self._later(request, answering))

    async def _later(self, request: Request, answering: Any) -> None:
        self._send(request, await answering)
        self._task = None
        while self._waiting and not self._task:
            self._start(self._waiting.popleft())
        if self._refusal and not self._task:
            self._say(self._refusal)
        if not (self._task or self._stuck or self._transport.is_closing()):
            self._transport.resume_reading()

    def _send(self, request: Request, response: Response) -> None:
        status, headers, body = response
        self._lane.held -= len(request.body)
        if self._transport.is_closing():
            return
        keep = request.keep and not self._lane.draining
        lines = [STATUS[status], _date(int(time.time())), SECURITY, *[b"%b: %b\r\n" % header for header in headers]]
        length = b"content-length: %d\r\n" % len(body)
        if request.method == "HEAD" or status == 304:
            length = body = b""
        lines += [length, b"\r\n" if keep else b"connection: close\r\n\r\n", body]
        self._transport.write(b"".join(lines))
        self._since = self._loop.time()
        self._answered += 1
        if not keep:
            self._ending = True
            self._let_go()
            self._end()

    def _let_go(self) -> None:
        """Forget what won't be answered."""
        self._lane.held -= len(self._body) + sum(len(request.body) for request in self._waiting)
        self._body.clear()
        self._waiting.clear()
        self._refusal = None

    def _too_large(self) -> None:
        self._refuse("body", Refusal(413, f"at most {self._limits.body} bytes a request: send fewer rows"))

    def _refuse(self, reason: str, refusal: Refusal) -> None:
        """End the connection, for what never became a request, with a sentence if its client reads."""
        if self._ending:
            return
        self._lane.live.counts.add(reason)
        if reason not in ("connections", "slow"):
            # What was sent meanwhile is read and dropped: a reset would take the sentence from the client.
            self._end = self._transport.write_eof
        self._ending = True
        if self._stuck:
            self._transport.abort()
        elif self._task:
            self._refusal, self._since = refusal, None
        else:
            self._say(refusal)

    def _say(self, refusal: Refusal) -> None:
        self._send(Request(), (refusal.status, refusal.headers, refusal.body()))


@functools.lru_cache(1)  # written once a second
def _date(second: int) -> bytes:
    """The header that RFC 9110 (6.6.1) asks of a server with a clock."""
    return time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(second)).encode()
