"""Serve a store's current model over HTTP, and each better one as soon as it is promoted.

Starts before there is a model, and is ready with the first. SIGTERM lets requests in progress finish.
"""

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelkit.store import Store, StoreError  # isort: skip - before numpy: it settles the number of threads

import uvloop
from connection import Connection
from lane import Lane
from limits import Keys, Limits
from live import Live
from metrics import Counts

EXAMPLE = """example:
  python3 serve.py --store .nas/model --model iris --port 8000
  curl -X POST localhost:8000/predict/ -H 'Content-Type: application/json' -d '[5.1,3.5,1.4,0.2]'
  http://localhost:8000 is a page to try the model on, http://localhost:8000/docs describes every endpoint
"""
DRAIN = 25  # seconds for requests in progress after SIGTERM: a pod gets 30


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


OPTIONS: list[tuple[str, Any, Any, str]] = [
    ("store", Path, Path("/model"), "the store's folder"),
    ("host", str, "0.0.0.0", "address to listen on"),
    ("port", int, 8000, "0 takes a free one"),
    ("poll", float, 1.0, "seconds between two looks at which version is current"),
    ("workers", _positive, 1, "processes on the port"),
    ("api-keys", Path, None, "file of API keys, one a line, read again when it changes; none: all may ask"),
    ("max-body", _positive, Limits().body, "bytes of a request at most"),
    ("max-rows", _positive, Limits().rows, "rows of a request at most"),
    ("max-queue", _positive, Limits().queue, "requests in progress at most; more are answered 503"),
    ("max-seconds", float, Limits().seconds, "seconds at most for a request to arrive, and to wait for its turn"),
    ("max-connections", _positive, Limits().connections, "open connections at most"),
]  # name, type, default, help


async def serve(lane: Lane, listener: socket.socket, poll: float, worker: int, parent: int | None) -> None:
    """Answer on `listener` until SIGTERM, SIGINT or the end of the process `parent`; the first worker says where."""
    live, loop, ending = lane.live, asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    live.refresh()
    gc.freeze()  # what is loaded now stays: the collector, off since the start, needn't look at it
    gc.enable()
    server = await loop.create_server(lambda: Connection(lane), sock=listener, backlog=2048)

    async def every_second() -> None:
        while True:
            await asyncio.sleep(1)
            if parent not in (None, os.getppid()):
                ending.set()
            for connection in list(lane.connections):
                connection.check(loop.time())
            lane.keys.refresh()

    tasks = [loop.create_task(live.follow(poll)), loop.create_task(every_second())]
    host, port = listener.getsockname()[:2]
    url = f"http://{'localhost' if host in ('0.0.0.0', '::', '127.0.0.1') else host}:{port}"
    name = f"{live.store.model} {live.model.manifest.digest[:12]}" if live.model else ""
    if worker == 0:
        print(f"serving {name} on {url}  (POST /predict/)" if name else f"waiting on {url}: {live.problem}", flush=True)
    await ending.wait()
    server.close()
    lane.draining = True
    for connection in list(lane.connections):
        connection.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN):
            while lane.connections:
                await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status: 1 when it can't start, or a worker died."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=style)
    parser.add_argument("--model", required=True, help="the model's name in the store, for example iris")
    for name, kind, default, text in OPTIONS:
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text + shown)
    ready = "when /readyz says 200: with the first model, or at once (default: %(default)s)"
    parser.add_argument("--ready", choices=["model", "process"], default="model", help=ready)
    parser.add_argument("--access-log", action="store_true", help="a line of JSON for each request, on stdout")
    args = parser.parse_args(argv)
    # NumPy warns of .npy headers that Python 2 wrote: what a client sends is no one's concern here.
    warnings.filterwarnings("ignore", "Reading `.npy`")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        limits = Limits(**{name: getattr(args, f"max_{name}") for name in Limits.__struct_fields__})
        counts, key_file, store = Counts(args.workers), Keys(args.api_keys), Store(args.store, args.model)
        listener = socket.create_server((args.host, args.port), family=family, backlog=2048)
    except StoreError as error:
        return _fail(str(error))
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        problem = "in use: choose another with --port, or end what listens there" if in_use else str(error)
        return _fail(f"{args.host} port {args.port}: {problem}")

    def run(worker: int, parent: int | None = None) -> None:
        counts.become(worker)
        lane = Lane(Live(store, counts, limits, args.ready), key_file, args.access_log)
        uvloop.run(serve(lane, listener, args.poll, worker, parent))

    if args.workers > 1:
        return _fork(args.workers, run, listener)
    run(0)
    return 0


def _fork(count: int, run: Callable[[int, int], None], listener: socket.socket) -> int:
    """Run `run(worker, this process)` in `count` processes until a signal. One that dies ends all, for a new start."""
    import multiprocessing.connection

    fork = multiprocessing.get_context("fork")
    # Daemons: multiprocessing sends them SIGTERM, and waits for them, when this process exits.
    workers = [fork.Process(target=run, args=(number, os.getpid()), daemon=True) for number in range(count)]
    for worker in workers:
        worker.start()
    listener.close()  # theirs now: it closes with the last of them

    def leave(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one changes nothing
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    ended = multiprocessing.connection.wait([worker.sentinel for worker in workers])
    dead = next(worker for worker in workers if worker.sentinel in ended)
    dead.join()
    return _fail(f"a worker ended with status {dead.exitcode}: the others end too, to be started anew together")


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
