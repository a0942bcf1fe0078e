"""Serve a store's current model over HTTP, and each better one as soon as it is promoted.

Starts before there is a model, and is ready with the first. SIGTERM lets requests in progress finish.
"""

import argparse
import asyncio
import contextlib
import errno
import functools
import gc
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelkit.store import Store, StoreError  # isort: skip - before numpy: it settles the number of threads

import uvicorn
from connection import Connection
from lane import Lane
from limits import Keys, Limits
from live import Live
from metrics import Counts
from service import Service

EXAMPLE = """example:
  python3 serve.py --store .nas/model --model iris --port 8000
  curl -X POST localhost:8000/predict/ -H 'Content-Type: application/json' -d '[5.1,3.5,1.4,0.2]'
  http://localhost:8000 is a page to try the model on, http://localhost:8000/docs describes every endpoint
"""
DRAIN = 25  # seconds for requests in progress after SIGTERM: a pod gets 30
log = logging.getLogger("nas.server")


class Server(uvicorn.Server):
    """Follows the store while it runs, and ends what is too slow. Says where it listens and what it serves."""

    def __init__(self, service: Service, keys: Keys, access_log: bool, poll: float) -> None:
        lane = Lane(service, _routes, keys, access_log)
        http: Any = functools.partial(Connection, service.limits, service.counts)
        super().__init__(
            uvicorn.Config(
                lane, http=http, ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
                server_header=False, proxy_headers=False, timeout_graceful_shutdown=DRAIN, backlog=2048,
            )
        )  # fmt: skip
        self._service, self._keys, self._poll = service, keys, poll
        self.quiet = False
        self.parent: int | None = None  # a worker's; without it the worker ends
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        live, (host, port) = self._service.live, (sockets or [])[0].getsockname()[:2]
        await asyncio.to_thread(live.refresh)
        gc.collect()
        gc.freeze()  # what is loaded now stays: the collector needn't look at it during requests
        await super().startup(sockets)
        self._tasks = [asyncio.create_task(live.follow(self._poll)), asyncio.create_task(self._every_second())]
        if self.quiet:
            return
        url = f"http://{'localhost' if host in ('0.0.0.0', '::', '127.0.0.1') else host}:{port}"
        name = f"{live.store.model} {live.model.manifest.digest[:12]}" if live.model else ""
        print(f"serving {name} on {url}  (POST /predict/)" if name else f"waiting on {url}: {live.problem}", flush=True)

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self.parent not in (None, os.getppid()):
                self.should_exit = True
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.check(now)
            try:
                self._keys.refresh()
            except StoreError as error:
                log.error("%s; the old ones hold", error)


def _routes(service: Service) -> Any:
    from app import create_app  # FastAPI takes longer to import than all else

    return create_app(service)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status: 1 when it can't start."""
    style, limits = argparse.RawDescriptionHelpFormatter, Limits()
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=style)
    parser.add_argument("--store", type=Path, default=Path("/model"), help="the store's folder (default: %(default)s)")
    parser.add_argument("--model", required=True, help="the model's name in the store, for example iris")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    ready = "when /readyz says 200: with the first model, or at once (default: %(default)s)"
    parser.add_argument("--ready", choices=["model", "process"], default="model", help=ready)
    poll = "seconds between two looks at which version is current (default: %(default)s)"
    parser.add_argument("--poll", type=float, default=1.0, metavar="N", help=poll)
    parser.add_argument("--workers", type=_positive, default=1, help="processes on the port (default: %(default)s)")
    keys = "file of API keys, one a line, read again when it changes (default: all may ask)"
    parser.add_argument("--api-keys", type=Path, metavar="FILE", help=keys)
    parser.add_argument("--access-log", action="store_true", help="a line of JSON for each request, on stdout")
    for name, text in (
        ("body", "bytes of a request"),
        ("rows", "rows of a request"),
        ("queue", "requests in progress; more are answered 503"),
        ("seconds", "seconds for a request to arrive, and to wait for its turn"),
        ("connections", "open connections"),
    ):
        kind, default = float if name == "seconds" else _positive, getattr(limits, name)
        parser.add_argument(
            f"--max-{name}", type=kind, default=default, metavar="N", help=f"{text} at most (%(default)s)"
        )
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # numpy's about the headers that clients send are no one's concern
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        limits = Limits(*(getattr(args, f"max_{name}") for name in Limits.__struct_fields__))
        counts, key_file = Counts(args.workers), Keys(args.api_keys)
        live = Live(Store(args.store, args.model), counts, limits.rows)
        listener = socket.create_server((args.host, args.port), family=family, backlog=2048)
    except StoreError as error:
        return _fail(str(error))
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        problem = "in use: choose another with --port, or end what listens there" if in_use else str(error)
        return _fail(f"{args.host} port {args.port}: {problem}")

    def run(worker: int, parent: int | None = None) -> None:
        counts.become(worker)
        server = Server(Service(live, counts, limits, args.ready), key_file, args.access_log, args.poll)
        server.quiet, server.parent = worker > 0, parent
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])

    if args.workers == 1:
        run(0)
    else:
        _supervise(args.workers, run)
    return 0


def _supervise(count: int, run: Callable[[int, int], None]) -> None:
    """Run `run(worker, this process)` in `count` processes until SIGTERM or Ctrl-C; one that dies is started anew."""
    signals, workers, ending, parent = {signal.SIGTERM, signal.SIGINT}, dict[int, int](), False, os.getpid()

    def end(*_: Any) -> None:
        nonlocal ending
        ending = True
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    for number in signals:
        signal.signal(number, end)
    while not ending or workers:
        for worker in set() if ending else set(range(count)) - set(workers.values()):
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # a signal meets this process's handler or the worker's
            pid = os.fork()
            if pid == 0:
                for number in signals:
                    signal.signal(number, lambda *_: os._exit(0))  # until uvicorn's own
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
                run(worker, parent)
                os._exit(0)
            workers[pid] = worker
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        pid, status = os.wait()
        worker = workers.pop(pid)
        if not ending:
            log.error("worker %d ended with status %d: starting it anew", worker, os.waitstatus_to_exitcode(status))
            time.sleep(1)  # no storm of starts if it can't


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn's own takes over while it runs, then raises again
    sys.exit(main())
