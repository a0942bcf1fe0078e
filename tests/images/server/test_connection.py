"""What a connection takes, as bytes on the wire, and how it ends."""

import asyncio
import contextlib
import re
import socket
from pathlib import Path

import connection
import pytest
from connection import HEAD
from interface import client, lane, listening, live, say
from lane import Lane
from limits import Limits

pytestmark = pytest.mark.usefixtures("iris")
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


@pytest.mark.parametrize("trailer", [b"X: %b\r\n" % (b"y" * 1000) * 700, b"X: " + b"y" * HEAD * 8])
def test_trailers_have_the_limit_of_headers(iris: Lane, trailer: bytes) -> None:
    assert statuses(say(iris, CHUNKED, trailer)) == [431]


@pytest.mark.parametrize("size", [HEAD - 100, HEAD * 8])  # what one read brings whole is taken
def test_a_head_is_counted_alone(iris: Lane, size: int) -> None:
    wanted = [200, 200] if size < HEAD else [200, 431]
    head = b"GET /healthz HTTP/1.1\r\nConnection: close\r\nX: " + b"y" * (size - 60)
    large = post(b"1.4" + b" " * (HEAD - 100))
    assert statuses(say(iris, large + head[:100], head[100:] + b"\r\n\r\n")) == wanted
    assert statuses(say(iris, post() * 2000 + post(headers=b"Connection: close\r\n"))) == [200] * 2001


def test_a_client_that_sends_much_and_never_reads_is_cut_off(root: Path) -> None:
    server = lane(live(root, limits=Limits(seconds=0.01)))

    async def scene() -> None:
        async with listening(server) as port, asyncio.timeout(20):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setblocking(False)
                while not server.connections:
                    await asyncio.sleep(0)
                (connected,) = server.connections
                with contextlib.suppress(BlockingIOError):
                    while not connected._stuck:
                        client.send(post() * 1000)
                        await asyncio.sleep(0)
                while not connected._stuck:
                    await asyncio.sleep(0)
                while server.connections:
                    connected.check(asyncio.get_running_loop().time())
                    await asyncio.sleep(0)

    asyncio.run(scene())


async def unfinished(port: int, count: int, headers: bytes = b"") -> list[asyncio.StreamWriter]:
    """Connections, each of which has sent 99 bytes of a body of 100."""
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(count)]
    for writer in writers:
        writer.write(b"POST /predict HTTP/1.1\r\n%bContent-Length: 100\r\n\r\n" % headers + b" " * 99)
    return writers


def test_bodies_of_all_connections_have_a_limit_and_are_let_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELD", 900)
    server = lane(live(root, limits=Limits(body=100)))

    async def scene() -> None:
        async with client(server) as asking, asyncio.timeout(20):
            port = asking.base_url.port
            assert port
            writers = await unfinished(port, 9)
            while server.held < 9 * 99:
                await asyncio.sleep(0)
            refused = await asking.post("/predict", content=FLOWER)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            writers[0].close()
            while server.held > 8 * 99:
                await asyncio.sleep(0)
            assert (await asking.post("/predict", content=FLOWER)).status_code == 200
            writers[1].write(b" ")  # answered: 400
            for writer in writers[2:]:
                writer.close()
            while server.held:
                await asyncio.sleep(0)
            writers[1].close()

    asyncio.run(scene())


def test_without_a_key_no_body_is_held(root: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-20-characters")
    server = lane(live(root), keys=tmp_path / "keys")

    async def scene() -> None:
        async with listening(server) as port, asyncio.timeout(20):
            writers = await unfinished(port, 3) + await unfinished(port, 1, b"X-API-Key: a-key-of-20-characters\r\n")
            while server.held < 99 or not all(one._begun for one in server.connections):
                await asyncio.sleep(0)
            assert server.held == 99
            for writer in writers:
                writer.close()

    asyncio.run(scene())
    assert statuses(say(server, post(headers=b"Connection: close\r\n"))) == [401]


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"


@pytest.mark.parametrize("split", [0, 10, 150, -5])
def test_an_upgrade_is_not_taken_up_and_the_request_answered(iris: Lane, split: int) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n%b\r\n"
    sent = (
        post(headers=H2C) + get % H2C + CHUNKED.replace(b"close\r\n", b"close, Upgrade\r\nUpgrade: h2c\r\n") + b"\r\n"
    )
    assert statuses(say(iris, sent[:split], sent[split:])) == [200] * 3
    assert statuses(say(iris, *[get % H2C * 2000 + post(headers=b"Connection: close\r\n")])) == [200] * 2001


def test_a_tunnel_is_refused_once(iris: Lane) -> None:
    assert statuses(say(iris, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nabc", b"abc")) == [400]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD * 8 + b"\r\n\r\n", 431),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", 413),
    ],
)
def test_what_is_refused_waits_for_the_answers_before_it(iris: Lane, bad: bytes, status: int) -> None:
    later = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"  # answered by a task
    assert statuses(say(iris, later * 2 + post() + bad)) == [200, 200, 200, status]
    assert statuses(say(iris, later + bad)) == [200, status]


@pytest.mark.parametrize("target", [b"http://x/healthz", b"HTTPS://x:80/healthz?a=/b", b"http://x", b"http://x?a=/b"])
def test_a_target_with_scheme_and_host_is_its_path(iris: Lane, target: bytes) -> None:
    assert statuses(say(iris, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)) == [200]
    predicting = post(headers=b"Connection: close\r\n").replace(b"/predict", b"http://x/predict")
    assert statuses(say(iris, predicting)) == [200]
