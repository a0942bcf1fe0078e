"""Who may ask, what a request may cost, and how one is turned away."""

import hashlib
import hmac
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from modelkit.store import StoreError

log = logging.getLogger("nas.server")

# Asked by probes, Prometheus and browsers, which have no key; none of it tells what the model answers.
OPEN = {"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
HEADERS = {401: [(b"www-authenticate", b"Bearer")], 503: [(b"retry-after", b"1")]}  # of refusals, by their status


def is_open(path: str) -> bool:
    """Whether a path is answered without a key, and without its body."""
    return path in OPEN or path.startswith("/static/")


class Limits(msgspec.Struct, frozen=True):
    """Bytes and rows a request, requests in progress, seconds to send and to answer one, connections."""

    body: int = 8 * 2**20
    rows: int = 4096
    queue: int = 256
    seconds: float = 30.0
    connections: int = 1000


class Refusal(Exception):
    """A request that isn't answered as asked: an HTTP status, and a sentence that says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, [(b"content-type", b"application/json"), *HEADERS.get(status, [])]

    def body(self) -> bytes:
        """The one format of every error."""
        return msgspec.json.encode({"error": str(self)})


class Keys:
    """The API keys in a file, one a line; read again when it changes, as a mounted Secret does. None: all may ask."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._digests, self._problem = path, _digests(path), ""

    def refresh(self) -> None:
        """Read the file anew; while it can't be read or holds a wrong key the old keys stay, which is logged once."""
        problem = ""
        try:
            self._digests = _digests(self._path)
        except StoreError as error:
            problem = str(error)
        if problem not in ("", self._problem):
            log.error("%s; the old ones hold", problem)
        self._problem = problem

    def allow(self, path: str, header: Mapping[bytes, bytes]) -> bool:
        """Whether a request may be answered: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        if not self._digests or is_open(path):
            return True
        scheme, _, bearer = header.get(b"authorization", b"").partition(b" ")
        given = header.get(b"x-api-key") or (bearer.strip() if scheme.lower() == b"bearer" else b"")
        digest = hashlib.sha256(given).digest()
        # All are compared, each in constant time: how long it takes tells nothing about a key.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digests(path: Path | None) -> list[bytes]:
    """Of the keys in a file. Raises StoreError."""
    try:
        keys = path.read_bytes().split() if path else []
    except OSError as error:
        raise StoreError(f"API keys: {path}: {error.strerror}") from error
    if path and min(map(len, keys), default=0) < 16:
        raise StoreError(f"API keys: {path}: write one a line, each of at least 16 characters")
    return [hashlib.sha256(key).digest() for key in keys]
