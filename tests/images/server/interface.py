"""The server on a loopback port in the test's own process."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from connection import Connection
from lane import Lane
from limits import Keys, Limits
from live import Live
from metrics import Counts
from modelkit.store import Store


def live(root: Path, name: str = "iris", ready: str = "model", limits: Limits | None = None) -> Live:
    """A model that has looked at the store once."""
    found = Live(Store(root, name), Counts(), limits or Limits(), ready)
    found.refresh()
    return found


def lane(answering: Live, keys: Path | None = None, access_log: bool = False) -> Lane:
    return Lane(answering, Keys(keys), access_log)


@contextlib.asynccontextmanager
async def listening(server: Lane) -> AsyncIterator[int]:
    """The port where the server answers meanwhile."""
    listener = await asyncio.get_running_loop().create_server(lambda: Connection(server), "127.0.0.1", 0)
    yield listener.sockets[0].getsockname()[1]
    listener.close()


@contextlib.asynccontextmanager
async def client(server: Lane) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server, which answers meanwhile."""
    async with listening(server) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as asking:
        yield asking


def say(server: Lane, *parts: bytes) -> bytes:
    """All that the server sends on one connection until it closes it; the parts are sent one after another."""

    async def once() -> bytes:
        async with listening(server) as port, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            answers = await reader.read()
            writer.close()
            return answers

    return asyncio.run(once())


def ask(server: Any, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
    """One request; a body that isn't bytes is sent as JSON. Routes alone (FastAPI's) are asked without a network."""

    async def once() -> httpx.Response:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        routes = httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://routes")
        async with client(server) if isinstance(server, Lane) else routes as asking:
            return await asking.request(method, path, content=content, **more)

    return asyncio.run(once())
