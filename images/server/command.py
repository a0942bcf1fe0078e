"""Serve a store's current model over HTTP, and each better one as soon as it is promoted.

Starts before there is a model, and is ready with the first. SIGTERM lets requests in progress finish.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import warnings
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
SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN = 25  # seconds for requests in progress after SIGTERM: a pod gets 30


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("model", {"required": True}, "the model's name in the store, for example iris"),
    ("store", {"type": Path, "default": Path("/model")}, "the store's folder"),
    ("host", {"default": "0.0.0.0"}, "address to listen on"),
    ("port", {"type": int, "default": 8000}, "0 takes a free one"),
    ("poll", {"type": float, "default": 1.0}, "seconds between two looks at which version is current"),
    ("workers", {"type": _positive, "default": 1}, "processes on the port"),
    ("api-keys", {"type": Path}, "file of API keys, one a line, read again when it changes; none: all may ask"),
    ("max-body", {"type": _positive, "default": Limits().body}, "bytes of a request at most"),
    ("max-rows", {"type": _positive, "default": Limits().rows}, "rows of a request at most"),
    ("max-queue", {"type": _positive, "default": Limits().queue}, "requests at once at most; more are answered 503"),
    ("max-seconds", {"type": float, "default": Limits().seconds}, "for a request to arrive, and to wait for its turn"),
    ("max-connections", {"type": _positive, "default": Limits().connections}, "open connections at most"),
    ("ready", {"choices": ["model", "process"], "default": "model"}, "what /readyz waits for before it says 200"),
    ("access-log", {"action": "store_true"}, "a line of JSON for each request, on stdout"),
]


async def serve(lane: Lane, listener: socket.socket, poll: float, parent: int | None, workers: list[Any]) -> list[int]:
    """Answer on `listener` until SIGTERM, SIGINT, or the end of `parent` or of `workers`: gives their exit statuses."""
    live, loop, ending, lost = lane.live, asyncio.get_running_loop(), asyncio.Event(), list[int]()
    for number in SIGNALS:
        loop.add_signal_handler(number, ending.set)
    live.refresh()
    gc.freeze()  # what is loaded now stays: the collector, off since the start, needn't look at it
    gc.enable()
    server = await loop.create_server(lambda: Connection(lane), sock=listener, backlog=2048)

    async def every_second() -> None:
        while True:
            await asyncio.sleep(1)
            lost.extend(worker.exitcode for worker in workers if not (ending.is_set() or worker.is_alive()))
            if lost or parent not in (None, os.getppid()):
                ending.set()
            for connection in list(lane.connections):
                connection.check(loop.time())
            lane.keys.refresh()

    tasks = [loop.create_task(live.follow(poll)), loop.create_task(every_second())]
    if parent is None:
        host, port = listener.getsockname()[:2]
        host = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host
        print(f"listening on http://{host}:{port}  (POST /predict/)", flush=True)
    await ending.wait()
    for worker in workers:
        worker.terminate()
    server.close()
    lane.draining = True
    for connection in list(lane.connections):
        connection.drain()
    deadline = loop.time() + DRAIN
    while lane.connections and loop.time() < deadline:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    return lost


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status: 1 when it can't start, or a worker died."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=style)
    for name, settings, text in OPTIONS:
        shown = " (default: %(default)s)" if "default" in settings else ""
        parser.add_argument(f"--{name}", help=text + shown, **settings)
    args = parser.parse_args(argv)
    # NumPy warns of .npy headers that Python 2 wrote: what a client sends is no one's concern here.
    warnings.filterwarnings("ignore", "Reading `.npy`")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        limits = Limits(**{name: getattr(args, f"max_{name}") for name in Limits.__struct_fields__})
        counts, keys, store = Counts(args.workers), Keys(args.api_keys), Store(args.store, args.model)
        listener = socket.create_server((args.host, args.port), family=family, backlog=2048)
    except StoreError as error:
        return _fail(str(error))
    except (OSError, OverflowError) as error:
        problem = str(error.args[-1]).partition(" (")[0]  # the address is told already
        return _fail(f"{args.host} port {args.port}: {problem}: choose another with --host and --port")

    def run(number: int, parent: int | None, workers: list[Any]) -> list[int]:
        counts.become(number)
        lane = Lane(Live(store, counts, limits, args.ready), keys, args.access_log)
        lost = uvloop.run(serve(lane, listener, args.poll, parent, workers))
        for ending in SIGNALS:
            signal.signal(ending, signal.SIG_IGN)  # a second one changes nothing
        return lost

    workers = []
    if args.workers > 1:
        import multiprocessing

        fork, parent = multiprocessing.get_context("fork"), os.getpid()
        # Daemons: multiprocessing sends them SIGTERM, and waits for them, when this process exits.
        workers = [fork.Process(target=run, args=(i, parent, []), daemon=True) for i in range(1, args.workers)]
        for worker in workers:
            worker.start()
    if dead := run(0, None, workers) or [worker.exitcode for worker in workers if worker.exitcode]:
        return _fail(f"a worker ended with status {dead[0]}: the others end too, to be started anew together")
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
