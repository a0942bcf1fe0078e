"""The server as a process: what it says, how it starts and how it ends."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import models
import pytest
import serve

OPTIONS = ["--model", "iris", "--host", "127.0.0.1"]
FLOWER = [5.1, 3.5, 1.4, 0.2]


@contextlib.contextmanager
def server(root: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server on a free port: the process, its first line and its URL. It is ended, and must leave without error."""
    process = subprocess.Popen(
        [sys.executable, serve.__file__, *OPTIONS, "--store", str(root), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"http://localhost:\d+", line)
        assert found, line
        yield process, line, found[0]
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


def test_it_says_what_it_serves_and_where_and_then_answers(tmp_path: Path) -> None:
    digest = models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path) as (_, line, url):
        assert line == f"serving iris {digest[:12]} on {url}  (POST /predict/)\n"
        answer = httpx.post(f"{url}/predict/", json=FLOWER).json()
        assert (answer["prediction"], answer["label"], answer["digest"]) == (0, "setosa", digest)


def test_it_waits_for_the_first_model_and_takes_each_new_one(tmp_path: Path) -> None:
    with server(tmp_path) as (process, line, url):
        assert line.startswith(f"waiting on {url}: no model 'iris' in {tmp_path}")
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.post(f"{url}/predict", json=FLOWER).status_code == 503
        assert process.stderr
        for index in range(2):
            digest = models.promote(tmp_path, "iris", models.iris_constant(index))
            assert process.stderr.readline().endswith(f"serving iris {digest[:12]}\n")
            assert httpx.post(f"{url}/predict", json=FLOWER).json()["prediction"] == index


def test_a_request_in_progress_is_answered_after_sigterm(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path) as (process, _, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # the request has reached the application
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionError):  # it has heard the signal when it accepts no one else
                while True:
                    socket.create_connection(client.getpeername(), timeout=10).close()
            client.sendall(b"[5.1,3.5,1.4,0.2]")
            assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        assert process.wait(timeout=20) == 0


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path) as (process, _, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100")
        assert httpx.post(f"{url}/predict", json=FLOWER).status_code == 200
        assert process.poll() is None


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main([*OPTIONS, "--store", str(tmp_path), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"error: 127.0.0.1 port {port}: in use: choose another with --port, or end what listens there\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "error: 127.0.0.1 port 70000: "),
        (["--host", "256.0.0.1"], "error: 256.0.0.1 port 8000: "),
        (["--model", "../iris"], "error: model name '../iris': letters, digits"),
    ],
)
def test_what_can_not_be_served_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert serve.main([*OPTIONS, "--store", str(tmp_path), *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith(sentence)
    assert message.count("\n") == 1


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        serve.main(["--help"])
    assert "curl -X POST localhost:8000/predict/" in capsys.readouterr().out
