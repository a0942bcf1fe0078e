"""The outermost ASGI application: what holds for every request, and the short way to an answer of POST /predict.

Key, queue, request id, security headers, counting, access log and errors are the same for all. Everything but POST
/predict goes on to FastAPI, which is imported when first needed: that takes longer than all else in a cold start.
FastAPI's own /predict (tests hold the two together) calls the same `Service.answer`.
"""

import itertools
import logging
import secrets
import sys
import time
from collections.abc import Callable

import msgspec
from limits import OPEN, Keys, LeftError, Refusal
from service import Service
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("nas.server")
JSON = (b"content-type", b"application/json")
SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class Lane:
    """Answers POST /predict itself; hands every other request to the application that `routes` makes."""

    def __init__(
        self, service: Service, routes: Callable[[Service], ASGIApp], keys: Keys, access_log: bool = False
    ) -> None:
        self._service, self._make, self._keys, self._access_log = service, routes, keys, access_log
        self._counts, self._limits = service.counts, service.limits
        self._routes: ASGIApp | None = None
        self._busy, self._prefix, self._number = 0, secrets.token_hex(4).encode(), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status, headers, path = time.perf_counter(), 0, scope["headers"], scope["path"]
        ident = b""
        for name, value in headers:
            if name == b"x-request-id" and len(value) <= 128:
                ident = value
        ident = ident or b"%s-%x" % (self._prefix, next(self._number))

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", ident), *SECURITY]
            await send(message)

        self._busy += 1
        try:
            if not self._keys.allow(path, headers):
                self._counts.add("key")
                sentence = "this needs an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
                raise Refusal(401, sentence, [(b"www-authenticate", b"Bearer")])
            if self._busy > self._limits.queue and path not in OPEN:
                self._counts.add("busy")
                raise Refusal(503, f"{self._busy} requests are waiting: try again", [(b"retry-after", b"1")])
            if path in ("/predict", "/predict/") and scope["method"] == "POST":
                body = await self._service.answer(receive, headers)
                status = 200
                await respond(scope, send, 200, [JSON, (b"x-request-id", ident), *SECURITY], body)
            else:
                self._routes = self._routes or self._make(self._service)
                await self._routes(scope, receive, answer)
        except Refusal as refusal:
            status, more, body = refusal.response()
            await respond(scope, send, status, [*more, (b"x-request-id", ident), *SECURITY], body)
        except LeftError:
            status = 400
        except Exception:
            log.exception("request %s %s %s", ident.decode("latin-1"), scope["method"], path)
            if not status:
                status, more, body = Refusal(500, "a bug in the server: its log says more").response()
                await respond(scope, send, status, [*more, (b"x-request-id", ident), *SECURITY], body)
        finally:
            self._busy -= 1
            seconds = time.perf_counter() - started
            route: str = getattr(scope.get("route"), "path", None) or path
            self._counts.answered(route, status, seconds)
            if self._access_log:
                line = {"time": time.time(), "id": ident.decode("latin-1"), "client": (scope["client"] or [None])[0]}
                line |= {"method": scope["method"], "path": path, "status": status, "ms": round(seconds * 1e3, 3)}
                sys.stdout.write(msgspec.json.encode(line).decode() + "\n")


async def respond(scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole response; where the server is ours in one write, which takes a quarter off a small request."""
    headers.append((b"content-length", b"%d" % len(body)))
    if not ((whole := scope.get("extensions", {}).get("nas.whole")) and whole(status, headers, body)):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
