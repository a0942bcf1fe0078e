"""The server as a process: what it says, how it starts and how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
from pathlib import Path

import command
import httpx
import models
import pytest
from process import OPTIONS, server

FLOWER = [5.1, 3.5, 1.4, 0.2]


def test_it_says_what_it_serves_and_where_and_then_answers(tmp_path: Path) -> None:
    digest = models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path) as (process, line, url):
        assert line == f"listening on {url}  (POST /predict/)\n"
        assert process.stderr
        assert process.stderr.readline().endswith(f"serving iris {digest[:12]}\n")
        answer = httpx.post(f"{url}/predict/", json=FLOWER).json()
        assert (answer["prediction"], answer["label"], answer["digest"]) == (0, "setosa", digest)


def test_it_waits_for_the_first_model_and_takes_each_new_one(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _, url):
        assert process.stderr
        assert f"WARNING no model 'iris' in {tmp_path}" in process.stderr.readline()
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.post(f"{url}/predict", json=FLOWER).status_code == 503
        for index in range(2):
            digest = models.promote(tmp_path, "iris", models.iris_constant(index))
            assert any(line.endswith(f"serving iris {digest[:12]}\n") for line in process.stderr)
            assert httpx.post(f"{url}/predict", json=FLOWER).json()["prediction"] == index


@pytest.mark.parametrize("words", [[], ["--workers", "2"]])
def test_a_request_in_progress_is_answered_after_two_signals(tmp_path: Path, words: list[str]) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path, *words) as (process, _, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 17\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # the request has reached the application
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionError):  # it has heard the signal when it accepts no one else
                while True:
                    socket.create_connection(client.getpeername(), timeout=10).close()
            process.send_signal(signal.SIGINT)
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
        assert command.main([*OPTIONS, "--store", str(tmp_path), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"error: 127.0.0.1 port {port}: Address already in use: choose another with --host and --port\n"
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
    assert command.main([*OPTIONS, "--store", str(tmp_path), *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith(sentence)
    assert message.count("\n") == 1


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert "curl -X POST localhost:8000/predict/" in capsys.readouterr().out


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)


def everything(client: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and JSON of an answer after which the server closes the connection."""
    data = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


SLOW = {
    "says nothing": b"",
    "stops in its headers": b"POST /predict HTTP/1.1\r\nHost:",
    "stops in its body": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n[5.1",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_client_that_is_too_slow_is_told_so_and_others_are_answered(tmp_path: Path, sent: bytes) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path, "--max-seconds", "0.5") as (_, __, url), connect(url) as client:
        client.sendall(sent)
        assert httpx.post(f"{url}/predict", json=FLOWER).status_code == 200
        status, answer = everything(client)
        assert status == 408
        assert answer["error"] == "a request has to arrive within 0.5 seconds"
        assert 'nas_rejects_total{reason="slow"} 1.0' in httpx.get(f"{url}/metrics").text


def test_a_client_that_drips_one_byte_after_the_other_is_too_slow_as_well(tmp_path: Path) -> None:
    with server(tmp_path, "--max-seconds", "0.5") as (_, __, url), connect(url) as client:
        client.settimeout(0.05)
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        answer = b""
        while not answer:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"X-Drip: 1\r\n")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X-Header: " + b"x" * 66_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_in_the_format_of_every_error(tmp_path: Path, sent: bytes, status: int) -> None:
    with server(tmp_path) as (_, __, url), connect(url) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        assert everything(client)[0] == status
        assert 'nas_rejects_total{reason="malformed"} 1.0' in httpx.get(f"{url}/metrics").text


def test_one_connection_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    with server(tmp_path, "--max-connections", "2") as (_, __, url), connect(url) as first, connect(url) as second:
        with connect(url) as third:
            status, answer = everything(third)
            assert (status, answer["error"]) == (503, "too many connections: try again")
        for client in (first, second):
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert everything(client) == (200, {"status": "alive"})
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    request = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n{}\r\n[5.1,3.5,%s,0.2]"
    with server(tmp_path) as (_, __, url), connect(url) as client:
        lengths = ("1.4", "6.0", "4.0", "1.0")
        text = "".join(request.format("Connection: close\r\n" * (n == 3)) % length for n, length in enumerate(lengths))
        client.sendall(text.encode())
        data = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        assert re.findall(r'"prediction":(\d)', data) == ["0", "2", "1", "0"]


def test_an_answer_to_http_1_0_ends_its_connection(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path) as (_, __, url), connect(url) as client:
        client.sendall(b"POST /predict HTTP/1.0\r\nContent-Length: 17\r\n\r\n[5.1,3.5,1.4,0.2]")
        assert everything(client)[0] == 200


def test_workers_share_port_counters_and_model(tmp_path: Path) -> None:
    digest = models.promote(tmp_path, "iris", models.iris_constant(0))
    with server(tmp_path, "--workers", "2", "--poll", "0.01") as (parent, _, url):
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()]
        assert len(workers) == 1
        for _ in range(20):
            assert httpx.post(f"{url}/predict", json=FLOWER).json()["digest"] == digest
        assert "nas_rows_total 20.0" in httpx.get(f"{url}/metrics").text
        better = models.promote(tmp_path, "iris", models.iris_constant(1))
        answers: list[str] = []
        while answers[-20:] != [better] * 20:
            answers.append(httpx.post(f"{url}/predict", json=FLOWER).json()["digest"])
        assert f"nas_rows_total {20 + len(answers)}.0" in httpx.get(f"{url}/metrics").text
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_a_worker_that_ends_ends_all_so_that_they_are_started_anew(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with server(tmp_path, "--workers", "2", status=1) as (parent, _, __):
        workers = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        status, bit = Path(f"/proc/{workers[0]}/status"), 1 << signal.SIGTERM - 1
        while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & bit:
            pass  # until it has begun to listen for signals
        os.kill(workers[0], number)
        assert parent.wait(timeout=20) == 1
        assert parent.stderr
        assert f"a worker ended with status {code}: " in parent.stderr.read()
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers(tmp_path: Path, number: signal.Signals) -> None:
    with server(tmp_path, "--workers", "2") as (parent, _, __):
        parent.send_signal(number)
        assert parent.wait(timeout=20) == 0


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    with contextlib.suppress(AssertionError), server(tmp_path, "--workers", "2") as (parent, _, url):
        parent.kill()
        parent.wait()
        while True:
            try:
                httpx.get(f"{url}/healthz", timeout=20)
            except httpx.TransportError:
                break


def test_api_keys_are_read_from_a_file_and_their_lack_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    assert command.main([*OPTIONS, "--store", str(tmp_path), "--api-keys", str(keys)]) == 1
    assert capsys.readouterr().err == f"error: API keys: {keys}: No such file or directory\n"
    keys.write_text("first-key-of-someone")
    models.promote(tmp_path, "iris", models.iris_rule())
    with server(tmp_path, "--api-keys", str(keys)) as (_, __, url):
        headers = {"X-API-Key": "second-key-of-someone"}
        assert httpx.post(f"{url}/predict", json=FLOWER).status_code == 401
        assert httpx.post(f"{url}/predict", json=FLOWER, headers=headers).status_code == 401
        keys.write_text("second-key-of-someone")
        while httpx.post(f"{url}/predict", json=FLOWER, headers=headers).status_code != 200:
            pass  # it looks once a second


@pytest.mark.parametrize(
    "words", [["--workers", "0"], ["--workers", "x"], ["--max-rows", "-1"], ["--max-seconds", "x"], ["--ready", "now"]]
)
def test_an_option_out_of_range_is_said_with_the_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main([*OPTIONS, "--store", str(tmp_path), *words])
    assert words[0] in capsys.readouterr().err
