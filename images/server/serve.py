"""Serve a store's current model over HTTP, and each better one as soon as it is promoted.

Starts before there is a model, and is ready with the first. SIGTERM lets requests in progress finish.
"""

import argparse
import contextlib
import errno
import logging
import signal
import socket
import sys
from pathlib import Path

from modelkit.store import StoreError  # isort: skip - before numpy: it settles the number of threads

import uvicorn
from app import create_app
from live import Live

EXAMPLE = """example:
  python3 serve.py --store .nas/model --model iris --port 8000
  curl -X POST localhost:8000/predict/ -H 'Content-Type: application/json' -d '[5.1,3.5,1.4,0.2]'
  http://localhost:8000/docs describes every endpoint
"""
DRAIN = 25  # seconds for requests in progress after SIGTERM: a pod gets 30


class Server(uvicorn.Server):
    """Says where it listens and what it serves once both are so."""

    def __init__(self, config: uvicorn.Config, live: Live) -> None:
        super().__init__(config)
        self._live = live

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        live, (host, port) = self._live, (sockets or [])[0].getsockname()[:2]
        url = f"http://{'localhost' if host in ('0.0.0.0', '::', '127.0.0.1') else host}:{port}"
        name = f"{live.store.model} {live.model.manifest.digest[:12]}" if live.model else ""
        print(f"serving {name} on {url}  (POST /predict/)" if name else f"waiting on {url}: {live.problem}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status: 1 when it can't start."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=style)
    parser.add_argument("--store", type=Path, default=Path("/model"), help="the store's folder (default: %(default)s)")
    parser.add_argument("--model", required=True, help="the model's name in the store, for example iris")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    ready = "when /readyz says 200: with the first model, or at once (default: %(default)s)"
    parser.add_argument("--ready", choices=["model", "process"], default="model", help=ready)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        app = create_app(args.store, args.model, ready=args.ready)
        listener = socket.create_server((args.host, args.port), family=family, backlog=2048)
    except StoreError as error:
        return _fail(str(error))
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        problem = "in use: choose another with --port, or end what listens there" if in_use else str(error)
        return _fail(f"{args.host} port {args.port}: {problem}")
    config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=DRAIN)
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, app.state.live).run(sockets=[listener])
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn's own takes over while it runs, then raises again
    sys.exit(main())
