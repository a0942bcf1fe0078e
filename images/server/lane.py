"""What holds for every request, and the short way to an answer of POST /predict.

Key, queue, request id, security headers, counting, access log and errors are the same for all. Everything but POST
/predict goes on to FastAPI, which is imported when first needed: that takes longer than all else in a cold start.
FastAPI's own /predict (tests hold the two together) calls the same `Live.answer`.
"""

import itertools
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from limits import Keys, Refusal, is_open
from live import Live

if TYPE_CHECKING:
    from connection import Connection

log = logging.getLogger("nas.server")
Response = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body
JSON = (b"content-type", b"application/json")
SECURITY = (
    b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncache-control: no-store\r\n"
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
)  # headers of every answer


class Request(msgspec.Struct):
    """A request. `for_lane`: whether the lane answers it; `allowed`: whether it has the API key that it needs;
    `keep`: whether its connection stays; `route`: the template of its path, for the counters.

    `headers` are as they came, their names in small letters; `header` the last of each name.
    """

    client: str | None = None
    method: str = ""
    target: bytes = b""
    path: str = ""
    query: bytes = b""
    route: str = ""
    headers: list[tuple[bytes, bytes]] = []
    header: dict[bytes, bytes] = {}
    body: bytes = b""
    for_lane: bool = False
    allowed: bool = False
    keep: bool = False


class Lane:
    """Answers POST /predict itself; hands every other request to FastAPI."""

    def __init__(self, live: Live, keys: Keys, access_log: bool = False) -> None:
        self.live, self.keys, self._access_log = live, keys, access_log
        self.connections: set[Connection] = set()
        self.draining = False
        self.held = 0  # bytes of bodies that aren't answered yet
        self._routes: Any = None
        self._busy, self._prefix, self._number = 0, os.urandom(4).hex().encode(), itertools.count(1)

    async def answer(self, request: Request) -> Response:
        """The whole answer, whatever happens. Doesn't wait for a small body of POST /predict."""
        started, counts = time.perf_counter(), self.live.counts
        ident = request.header.get(b"x-request-id", b"")
        if not 0 < len(ident) <= 128:
            ident = b"%s-%x" % (self._prefix, next(self._number))
        self._busy += 1
        try:
            if not request.allowed:
                counts.add("key")
                raise Refusal(401, "this needs an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
            if self._busy > self.live.limits.queue and not is_open(request.path):
                counts.add("busy")
                raise Refusal(503, f"{self._busy} requests are waiting: try again")
            if request.header.get(b"content-encoding", b"identity") != b"identity":
                raise Refusal(415, "compressed bodies aren't taken: send it as it is, without Content-Encoding")
            if request.for_lane:
                status, headers, body = 200, [JSON], await self.live.answer(request.body)
            else:
                if not self._routes:
                    from app import create_app

                    self._routes = create_app(self.live)
                status, headers, body = await _asgi(self._routes, request)
        except Refusal as refusal:
            status, headers, body = refusal.status, refusal.headers, refusal.body()
        except Exception:
            log.exception("request %s %s %s", ident.decode("latin-1"), request.method, request.path)
            status, headers, body = 500, [JSON], Refusal(500, "a bug in the server: its log says more").body()
        self._busy -= 1
        seconds = time.perf_counter() - started
        counts.answered(request.route, status, seconds)
        if self._access_log:
            line = {"time": time.time(), "id": ident.decode("latin-1"), "client": request.client}
            line |= {"method": request.method, "path": request.path, "status": status, "ms": round(seconds * 1e3, 3)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        return status, [*headers, (b"x-request-id", ident)], body


async def _asgi(application: Any, request: Request) -> Response:
    """An ASGI application's answer. Raises Refusal, as its routes do."""
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "http",
        "method": request.method, "path": unquote(request.path), "root_path": "", "query_string": request.query,
        "headers": request.headers, "client": (request.client, 0), "server": None,
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    try:
        await application(scope, receive, send)
    finally:
        request.route = getattr(scope.get("route"), "path", request.path)
    headers = [header for header in sent[0]["headers"] if header[0] != b"content-length"]
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])
