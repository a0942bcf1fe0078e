"""Requests and rows a second, latency, cold start and memory of the server, beside the plain tutorial's and a peer's.

One core for the server, the other for wrk. All servers run during a round and are asked in turn; a figure is the
median over the rounds, with the least and the most. Any answer but 200 ends the bench.

make bench-serving                          # three rounds, into bench/results/serving.md
make bench-serving ARGS="--rounds 1 --seconds 1 --no-peer"     # a try, in a minute
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".nas/bench/serving"
PEER = ROOT / ".nas/bench/mlserver"
PEER_PACKAGES = ROOT / "bench/mlserver.txt"
ROW = [5.1, 3.5, 1.4, 0.2]
KEY = "a-key-for-the-bench"
SERVER, LOAD = {0}, {1}  # cores
Figures = dict[str, list[float]]


class Server:
    """A process that answers on `port`; `path` and `body` are what it is asked."""

    def __init__(self, name: str, command: list[str], folder: Path, path: str = "/predict/") -> None:
        self.name, self.command, self.folder, self.path = name, command, folder, path
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.command = [word.replace("PORT", str(self.port)) for word in command]

    def start(self, cores: set[int]) -> None:
        environment = os.environ | {"MLSERVER_HTTP_PORT": str(self.port), "OMP_NUM_THREADS": "1", "NAS_CPUS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an image has its modules compiled
        self.started = time.perf_counter()
        with (HOME / "servers.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
                start_new_session=True,
            )

    def wait(self, body: bytes, headers: str = "") -> float:
        """Seconds from start to the first 200."""
        head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        request = f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
        while time.perf_counter() - self.started < 60:
            assert self.process.poll() is None, f"{self.name} ended: see {HOME / 'servers.log'}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as client:
                client.sendall(request)
                if client.recv(4096).split()[1:2] == [b"200"]:
                    return time.perf_counter() - self.started
            time.sleep(0.001)
        raise SystemExit(f"error: {self.name} doesn't answer: see {HOME / 'servers.log'}")

    def family(self) -> list[int]:
        """The process and its children, at any depth."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13] for pid in self.family()]
        return sum(int(t) for pair in times for t in pair) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident MB."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.family()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def ours(name: str, model: str, *words: str, script: str = "images/server/serve.py") -> Server:
    command = python(str(ROOT / script), "--store", str(HOME / "store"), "--model", model, "--host", "127.0.0.1")
    return Server(name, [*command, "--port", "PORT", *words], HOME)


def tutorial(model: str) -> Server:
    # What `pip install fastapi uvicorn` brings: asyncio's own loop and h11. Our environment has uvicorn's extras too.
    plain = ["--loop", "asyncio", "--http", "h11", "--app-dir", str(ROOT / "bench/tutorial")]
    app = python("-m", "uvicorn", *plain, f"serve_{model}:app", "--port", "PORT")
    return Server("the plain tutorial", app, HOME)


def peer() -> Server:
    """MLServer with its scikit-learn runtime, metrics off, no second process."""
    if not (PEER / "ready").exists():
        print("setting up: MLServer", flush=True)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(PEER)], check=True)
        words = ["--no-config", "--quiet", "--python", str(PEER / "bin/python"), "-r", str(PEER_PACKAGES)]
        subprocess.run([uv, "pip", "install", *words], check=True)
        (PEER / "ready").touch()
    folder = HOME / "mlserver"
    folder.mkdir(exist_ok=True)
    model = {"name": "iris", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "model.pkl"}}
    shutil.copy(HOME / "model.pkl", folder / "model.joblib")
    model["parameters"] = {"uri": "./model.joblib"}
    (folder / "model-settings.json").write_text(json.dumps(model))
    settings = {"parallel_workers": 0, "host": "127.0.0.1", "metrics_endpoint": None, "debug": False, "grpc_port": 0}
    (folder / "settings.json").write_text(json.dumps(settings))
    return Server("MLServer 1.7.1", [str(PEER / "bin/mlserver"), "start", "."], folder, "/v2/models/iris/infer")


def wrk(server: Server, body: Path, connections: int, seconds: float, headers: dict[str, str]) -> tuple[float, float]:
    """Requests a second and the 99th percentile of latency in ms."""
    script = HOME / "ask.lua"
    lines = [f'wrk.method = "POST"; wrk.body = io.open("{body}", "rb"):read("*all")']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text("\n".join(lines))
    url = f"http://127.0.0.1:{server.port}{server.path}"
    words = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--latency",
        "--timeout",
        "20s",
        "-s",
        str(script),
        url,
    ]
    told = subprocess.run(
        words, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, LOAD)
    ).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"error: {server.name} failed under load:\n{told}")
    rate, unit = re.search(r"Requests/sec:\s+([\d.]+)", told), re.search(r"99%\s+([\d.]+)(us|ms|s)\b", told)
    assert rate
    assert unit
    return float(rate[1]), float(unit[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit[2]]


@contextlib.contextmanager
def slow_clients(server: Server, count: int) -> Iterator[None]:
    """Connections whose request never ends, during the block."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(f"POST {server.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[".encode())
        yield


def cell(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3, help="of load for each figure (default: %(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave MLServer out")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("error: wrk is not on PATH: apt-get install wrk")
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    subprocess.run(python(str(ROOT / "bench/tutorial/models.py"), str(HOME)), check=True)
    (HOME / "keys").write_text(KEY)
    import numpy as np

    digits = np.load(HOME / "digits.npy")
    v2 = {"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": [ROW]}]}
    binary = {"binary_data_output": True}
    tensor = {
        "name": "input",
        "shape": [256, 784],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": digits.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": binary}).encode()
    contents = {
        "row": json.dumps(ROW).encode(),
        "v2-row": json.dumps(v2).encode(),
        "digits.json": json.dumps(digits.tolist()).encode(),
        "digits.v2": head + digits.tobytes(),
    }
    for name, content in contents.items():
        (HOME / name).write_bytes(content)

    def sets(name: str) -> Server:
        return ours(name, "iris", "--api-keys", str(HOME / "keys"))

    iris = [
        tutorial("iris"),
        ours("without keys, limits and metrics", "iris", script="bench/bare.py"),
        sets("this server"),
    ]
    iris += [] if args.no_peer else [peer()]
    mnist = [tutorial("mnist"), ours("this server", "mnist")]
    plain, bare, us = iris[:3]
    key = {"X-API-Key": KEY}
    figures: dict[str, Figures] = defaultdict(lambda: defaultdict(list))

    def body(server: Server) -> Path:
        return HOME / ("v2-row" if server.path.startswith("/v2") else "row")

    os.sched_setaffinity(0, LOAD)  # whoever waits for an answer leaves the server its core
    print("cold starts", flush=True)
    for _ in range(args.rounds):
        for server in (s for s in iris if s is not bare):
            server.start(SERVER)
            line = f"X-API-Key: {KEY}\r\n" if server is us else ""
            figures["cold start, s"][server.name].append(server.wait(body(server).read_bytes(), line))
            figures["resident, MB"][server.name].append(server.memory())
            server.stop()
    two = ours("two workers", "iris", "--workers", "2", "--api-keys", str(HOME / "keys"))
    everyone = [*iris, *mnist, two]
    try:
        for server in everyone:
            server.start(SERVER | LOAD if server is two else SERVER)
        for server in everyone:
            content = json.dumps([[0] * 784]).encode() if server in mnist else body(server).read_bytes()
            server.wait(content, f"X-API-Key: {KEY}\r\n" if server in (us, two) else "")
        urllib.request.urlopen(f"http://127.0.0.1:{mnist[1].port}/healthz").close()  # FastAPI is imported now
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", flush=True)

            def ask(figure: str, server: Server, path: Path, connections: int = 16, rows: int = 1, **more: str) -> None:
                headers = {"Content-Type": "application/json"} | more | (key if server in (us, two) else {})
                before = server.cpu()
                begun = time.perf_counter()
                rate, p99 = wrk(server, path, connections, args.seconds, headers)
                used = server.cpu() - before
                figures[figure][server.name].append(rate * rows)
                figures[f"{figure}: p99 ms"][server.name].append(p99)
                figures[f"{figure}: per CPU-second"][server.name].append(
                    rate * rows * (time.perf_counter() - begun) / used
                )

            for server in (*iris, two):
                ask("single rows, 16 connections", server, body(server))
            for connections in (1, 64, 256):
                for server in (plain, us):
                    ask(
                        f"single rows, {connections} connection{'s' * (connections > 1)}",
                        server,
                        body(server),
                        connections,
                    )
            for server in (plain, us):
                with slow_clients(server, 50):
                    ask("single rows, 16 connections, 50 slow clients", server, body(server))
            for server in mnist:
                ask("256 images a request, JSON lists", server, HOME / "digits.json", rows=256)
            ask("256 images a request, .npy", mnist[1], HOME / "digits.npy", rows=256)
            mnist[1].path, path = "/v2/models/mnist/infer", mnist[1].path
            length = {"Inference-Header-Content-Length": str(len(head))}
            ask("256 images a request, v2 binary", mnist[1], HOME / "digits.v2", rows=256, **length)
            mnist[1].path = path
    finally:
        for server in everyone:
            with contextlib.suppress(AttributeError):
                server.stop()
    report(figures, args.rounds, args.seconds)


def report(figures: dict[str, Figures], rounds: int, seconds: float) -> None:
    """Print the tables and write them to bench/results/serving.md."""
    plain, us = "the plain tutorial", "this server"
    lines = ["| iris, 16 connections | requests/s | p99 ms | requests per CPU-second |", "| --- | --- | --- | --- |"]
    single = "single rows, 16 connections"
    for name in figures[single]:
        cells = [
            cell(figures[single + more][name], digits)
            for more, digits in (("", 0), (": p99 ms", 2), (": per CPU-second", 0))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| requests/s and p99 ms | tutorial | this server | requests, ratio | p99, ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for figure in [f for f in figures if f.startswith("single rows") and ": " not in f]:
        rates, slow = figures[figure], figures[f"{figure}: p99 ms"]
        cells = [f"{cell(rates[name], 0)}; {cell(slow[name], 2)}" for name in (plain, us)]
        lines.append(
            f"| {figure} | {' | '.join(cells)} | {ratio(rates[us], rates[plain])} | {ratio(slow[plain], slow[us])} |"
        )
    lists = figures["256 images a request, JSON lists"]
    lines += ["", "| mnist | rows/s | to the tutorial's JSON lists |", "| --- | --- | --- |"]
    lines.append(f"| the plain tutorial, JSON lists | {cell(lists[plain], 0)} | 1 |")
    for figure in [f for f in figures if f.startswith("256 images") and ": " not in f]:
        lines.append(
            f"| this server, {figure} | {cell(figures[figure][us], 0)} | {ratio(figures[figure][us], lists[plain])} |"
        )
    lines += ["", "| | cold start, s | resident, MB |", "| --- | --- | --- |"]
    for name in figures["cold start, s"]:
        lines.append(
            f"| {name} | {cell(figures['cold start, s'][name], 2)} | {cell(figures['resident, MB'][name], 0)} |"
        )
    per = figures[f"{single}: per CPU-second"]
    goals: list[tuple[str, Callable[[], float], str]] = [
        ("iris single rows, requests/s to the tutorial", lambda: _over(figures[single], us, plain), "≥ 11"),
        ("its p99 to the tutorial", lambda: _over(figures[f"{single}: p99 ms"], plain, us), "≥ 30 times less"),
        (
            "256 images as .npy to the tutorial's lists",
            lambda: _median(figures["256 images a request, .npy"][us]) / _median(lists[plain]),
            "≥ 24",
        ),
        ("256 images as JSON lists", lambda: _over(lists, us, plain), "≥ 3"),
        ("cold start, s", lambda: _median(figures["cold start, s"][us]), "≤ 0.2"),
        ("cold start to the tutorial", lambda: _over(figures["cold start, s"], plain, us), "≥ 6 times less"),
        ("resident, MB", lambda: _median(figures["resident, MB"][us]), "≤ 80"),
        (
            "with keys, limits and metrics to without",
            lambda: _over(per, us, "without keys, limits and metrics"),
            "≥ 0.85",
        ),
        ("two workers to one, requests per CPU-second", lambda: _over(per, "two workers", us), "≥ 0.9"),
    ]
    lines += ["", "| | goal | measured |", "| --- | --- | --- |"]
    lines += [f"| {name} | {goal} | {value():.2f} |" for name, value, goal in goals]
    text = "\n".join(lines) + "\n"
    print(text)
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("fastapi", "uvicorn", "httptools", "onnxruntime", "scikit-learn", "torch")
    )
    head = f"# Serving\n\n{_machine()}, Python {platform.python_version()}, {versions}. The server on one core, wrk "
    head += f"on the other; {rounds} rounds of {seconds:g} s for each figure: median (least–most). "
    head += f"Load of the machine at the end: {os.getloadavg()[0]:.1f}.\n\n"
    target = ROOT / "bench/results/serving.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(head + text)


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _over(figure: Figures, name: str, other: str) -> float:
    return _median(figure[name]) / _median(figure[other])


def _machine() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores ({found[1] if found else platform.machine()})"


if __name__ == "__main__":
    main()
