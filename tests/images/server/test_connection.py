"""What a connection takes, as bytes on the wire, and how it ends."""

import asyncio
import contextlib
import re
import socket
from pathlib import Path

import pytest
from connection import HEAD
from interface import lane, listening, live, say
from lane import Lane
from limits import Limits

FLOWER = b"[5.1,3.5,1.4,0.2]"
CHUNKED = (
    b"POST /predict HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n" + FLOWER + b"\r\n0\r\n"
)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3})", answers)]


def post(length: bytes = b"1.4", headers: bytes = b"") -> bytes:
    body = FLOWER.replace(b"1.4", length)
    return b"POST /predict HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (headers, len(body), body)


def test_a_trailer_is_no_header(iris: Lane) -> None:
    inferring = CHUNKED.replace(b"/predict", b"/v2/models/iris/infer")
    without, with_one = (say(iris, inferring + t) for t in (b"\r\n", b"Inference-Header-Content-Length: x\r\n\r\n"))
    assert without.rpartition(b"\r\n")[2] == with_one.rpartition(b"\r\n")[2]


@pytest.mark.parametrize("trailer", [b"X: %b\r\n" % (b"y" * 1000) * 70, b"X: " + b"y" * HEAD * 8])
def test_trailers_have_the_limit_of_headers(iris: Lane, trailer: bytes) -> None:
    assert statuses(say(iris, CHUNKED, trailer)) == [431]


@pytest.mark.parametrize("size", [HEAD - 100, HEAD + 100])
def test_a_head_is_counted_alone(iris: Lane, size: int) -> None:
    wanted = [200, 200] if size < HEAD else [200, 431]
    head = b"GET /healthz HTTP/1.1\r\nConnection: close\r\nX: " + b"y" * (size - 60)
    large = post(b"1.4" + b" " * (HEAD - 100))
    assert statuses(say(iris, large + head[:100], head[100:] + b"\r\n\r\n")) == wanted
    assert statuses(say(iris, post() * 2000 + post(headers=b"Connection: close\r\n"))) == [200] * 2001


def test_a_client_that_sends_much_and_never_reads_is_cut_off(root: Path, iris: Lane) -> None:  # noqa: ARG001
    server = lane(live(root, limits=Limits(seconds=0.01)))

    async def scene() -> None:
        async with listening(server) as port, asyncio.timeout(20):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setblocking(False)
                while not server.connections:
                    await asyncio.sleep(0)
                (connection,) = server.connections
                with contextlib.suppress(BlockingIOError):
                    while not connection._stuck:
                        client.send(post() * 1000)
                        await asyncio.sleep(0)
                while not connection._stuck:
                    await asyncio.sleep(0)
                while server.connections:
                    connection.check(asyncio.get_running_loop().time())
                    await asyncio.sleep(0)

    asyncio.run(scene())
