"""The server's outermost application without a network, for the tests."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from app import create_app
from lane import Lane
from limits import Keys, Limits
from live import Live
from metrics import Counts
from modelkit.store import Store
from service import Service
from starlette.types import ASGIApp


def service(root: Path, name: str = "iris", ready: str = "model", limits: Limits | None = None) -> Service:
    """A service that has looked at the store once."""
    counts, limits = Counts(), limits or Limits()
    live = Live(Store(root, name), counts, limits.rows)
    live.refresh()
    return Service(live, counts, limits, ready)


def lane(answering: Service, keys: Path | None = None, access_log: bool = False) -> Lane:
    return Lane(answering, create_app, Keys(keys), access_log)


def client(server: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://server")


def ask(server: ASGIApp, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
    """One request; a body that isn't bytes is sent as JSON."""

    async def once() -> httpx.Response:
        async with client(server) as asking:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            return await asking.request(method, path, content=content, **more)

    return asyncio.run(once())
