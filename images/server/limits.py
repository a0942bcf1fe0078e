"""Who may ask, what a request may cost, and how one is turned away."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from modelkit.store import StoreError
from starlette.types import Receive

Headers = Iterable[tuple[bytes, bytes]]


# Asked by probes, Prometheus and browsers, which have no key; none of it tells what the model answers.
OPEN = {"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
OPEN_FOLDER = "/static/"


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
        self.status, self.headers = status, headers

    def body(self) -> bytes:
        """The one format of every error."""
        return msgspec.json.encode({"error": str(self)})

    def response(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers and body."""
        return self.status, [(b"content-type", b"application/json"), *self.headers], self.body()


class Keys:
    """The API keys in a file, one a line; read again when it changes, as a mounted Secret does. None: all may ask."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._digests = path, [b""][:0]
        self.refresh()
        if path and not self._digests:
            raise StoreError(f"{path} holds no API key: write one a line, each of at least 16 characters")

    def refresh(self) -> None:
        """Read the file anew; while it can't be read or holds none, the old keys stay. Raises StoreError."""
        if self._path is None:
            return
        try:
            lines = [line.strip() for line in self._path.read_bytes().splitlines()]
        except OSError as error:
            raise StoreError(f"API keys: {self._path}: {error.strerror}") from error
        if short := [line for line in lines if 0 < len(line) < 16]:
            raise StoreError(f"API keys: {self._path}: {len(short)} shorter than 16 characters")
        self._digests = [hashlib.sha256(line).digest() for line in lines if line] or self._digests

    def allow(self, path: str, headers: Headers) -> bool:
        """Whether a request may be answered: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        if not self._digests or path in OPEN or path.startswith(OPEN_FOLDER):
            return True
        given = b""
        for name, value in headers:
            if name == b"x-api-key":
                given = value
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
        digest = hashlib.sha256(given).digest()
        # All are compared, each in constant time: how long it takes tells nothing about a key.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


class LeftError(Exception):
    """The client went away in the middle of its request: no one is there to read an answer."""


async def read(receive: Receive, headers: Headers, limits: Limits) -> bytes:
    """The body; more than the limit of it is never in memory. Raises Refusal (413, 415), LeftError."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise LeftError
        part, more = message.get("body", b""), message.get("more_body", False)
        parts.append(part)
        size += len(part)
        announced = next((int(v) for n, v in headers if n == b"content-length" and v.isdigit()), 0) if more else 0
        if max(size, announced) > limits.body:
            sentence = f"at most {limits.body} bytes a request: send fewer rows"
            raise Refusal(413, sentence, [(b"connection", b"close")])
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    if dict(headers).get(b"content-encoding", b"identity") != b"identity":
        raise Refusal(415, "compressed bodies aren't taken: send it as it is, without Content-Encoding")
    return body
