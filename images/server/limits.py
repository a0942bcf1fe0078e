"""Who may ask, what a request may cost, and how one is turned away."""

import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from modelkit.store import StoreError

log = logging.getLogger("nas.server")

# Asked by probes, Prometheus and browsers, which have no key; none of it tells what the model answers.
OPEN = {"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
OPEN_FOLDER = "/static/"


def is_open(path: str) -> bool:
    """Whether a path is answered without a key, and without its body."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


class Limits(msgspec.Struct, frozen=True):
    """Bytes and rows a request, requests in progress, seconds to send and to answer one, connections."""

    body: int = 8 * 2**20
    rows: int = 4096
    queue: int = 256
    seconds: float = 30.0
    connections: int = 1000


class Refusal(Exception):
    """A request that isn't answered as asked: an HTTP status, a sentence that says why, and headers for the client."""

    def __init__(self, status: int, sentence: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = [(b"content-type", b"application/json"), *headers]

    def body(self) -> bytes:
        """The one format of every error."""
        return msgspec.json.encode({"error": str(self)})


class Keys:
    """The API keys in a file, one a line; read again when it changes, as a mounted Secret does. None: all may ask."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._digests, self._problem = path, [b""][:0], ""
        self._read()
        if path and not self._digests:
            raise StoreError(f"{path} holds no API key: write one a line, each of at least 16 characters")

    def refresh(self) -> None:
        """Read the file anew; while it can't be read or holds none the old keys stay, which is logged once."""
        try:
            self._read()
            self._problem = ""
        except StoreError as error:
            if self._problem != str(error):
                self._problem = str(error)
                log.error("%s; the old ones hold", error)

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            lines = [line.strip() for line in self._path.read_bytes().splitlines()]
        except OSError as error:
            raise StoreError(f"API keys: {self._path}: {error.strerror}") from error
        if short := [line for line in lines if 0 < len(line) < 16]:
            raise StoreError(f"API keys: {self._path}: {len(short)} shorter than 16 characters")
        self._digests = [hashlib.sha256(line).digest() for line in lines if line] or self._digests

    def allow(self, path: str, header: Mapping[bytes, bytes]) -> bool:
        """Whether a request may be answered: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        if not self._digests or is_open(path):
            return True
        scheme, _, bearer = header.get(b"authorization", b"").partition(b" ")
        given = header.get(b"x-api-key") or (bearer.strip() if scheme.lower() == b"bearer" else b"")
        digest = hashlib.sha256(given).digest()
        # All are compared, each in constant time: how long it takes tells nothing about a key.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
