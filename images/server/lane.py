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
from limits import OPEN, Keys, Refusal
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


class Request:
    """A whole request. `keep`: whether its connection stays; `for_lane`: whether the lane answers it;
    `allowed`: whether it has the API key that it needs.

    `headers` are as they came, their names in small letters; `header` the last of each name.
    """

    __slots__ = ("allowed", "body", "client", "for_lane", "header", "headers", "keep", "method", "target")

    def __init__(self, client: str | None) -> None:
        self.client, self.method, self.target, self.body, self.keep = client, "", b"", b"", False
        self.headers: list[tuple[bytes, bytes]] = []
        self.header: dict[bytes, bytes] = {}
        self.for_lane = self.allowed = False

    @property
    def path(self) -> str:
        """The target without its query, as it was sent."""
        return self.target.partition(b"?")[0].decode("latin-1")


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
        path = "/predict" if request.for_lane else request.path
        route, ident = path, request.header.get(b"x-request-id", b"")
        if not 0 < len(ident) <= 128:
            ident = b"%s-%x" % (self._prefix, next(self._number))
        self._busy += 1
        try:
            if not request.allowed:
                counts.add("key")
                sentence = "this needs an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
                raise Refusal(401, sentence, [(b"www-authenticate", b"Bearer")])
            if self._busy > self.live.limits.queue and path not in OPEN:
                counts.add("busy")
                raise Refusal(503, f"{self._busy} requests are waiting: try again", [(b"retry-after", b"1")])
            if request.header.get(b"content-encoding", b"identity") != b"identity":
                raise Refusal(415, "compressed bodies aren't taken: send it as it is, without Content-Encoding")
            if request.for_lane:
                status, headers, body = 200, [JSON], await self.live.answer(request.body)
            else:
                if not self._routes:
                    from app import create_app

                    self._routes = create_app(self.live)
                (status, headers, body), route = await _asgi(self._routes, request)
        except Refusal as refusal:
            status, headers, body = refusal.status, refusal.headers, refusal.body()
        except Exception:
            log.exception("request %s %s %s", ident.decode("latin-1"), request.method, path)
            status, headers, body = 500, [JSON], Refusal(500, "a bug in the server: its log says more").body()
        self._busy -= 1
        seconds = time.perf_counter() - started
        counts.answered(route, status, seconds)
        if self._access_log:
            line = {"time": time.time(), "id": ident.decode("latin-1"), "client": request.client}
            line |= {"method": request.method, "path": path, "status": status, "ms": round(seconds * 1e3, 3)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        return status, [*headers, (b"x-request-id", ident)], body


async def _asgi(application: Any, request: Request) -> tuple[Response, str]:
    """An ASGI application's answer, and the template of the route that gave it."""
    raw, _, query = request.target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "http",
        "method": request.method, "path": unquote(raw.decode("latin-1")), "raw_path": raw, "root_path": "",
        "query_string": query, "headers": request.headers, "client": (request.client, 0), "server": None,
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    came = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return came.pop() if came else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    headers = [
        (name, value) for name, value in sent[0]["headers"] if request.method == "HEAD" or name != b"content-length"
    ]
    return (sent[0]["status"], headers, body), getattr(scope.get("route"), "path", request.path)
