"""The model that answers, and its replacement while requests go on."""

import asyncio
import datetime
import logging
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
from decode import NPY, Array, Reader
from limits import Limits, Refusal
from metrics import Counts
from modelkit import cpus
from modelkit.artifact import Model
from modelkit.store import Store

log = logging.getLogger("nas.server")
T = TypeVar("T")
# Bodies up to so many bytes are answered on the event loop (about a millisecond), larger ones in a thread.
INLINE, INLINE_NPY = 64 * 2**10, 256 * 2**10
EVENTS = 100  # of the history, at most


class Answer(msgspec.Struct):
    """To one row: the class's index and name, and the probability of each class."""

    prediction: int
    label: str
    probabilities: list[float]
    model: str
    digest: str


class Answers(msgspec.Struct):
    """To a list of rows, in their order."""

    predictions: list[int]
    labels: list[str]
    probabilities: list[list[float]]
    model: str
    digest: str


class Predictor:
    """One version of the model and how it answers: the same bytes whichever way a request came. Thread-safe."""

    def __init__(self, model: Model, max_rows: int) -> None:
        self.manifest, self._predict = model.manifest, model.predict
        self.reader = Reader(model.manifest.input, max_rows)

    def predict(self, rows: Array) -> Array:
        """Probabilities [N, classes] for rows [N, *shape]. Raises Refusal where the numbers overflow in the model."""
        probabilities = self._predict(rows)
        if not math.isfinite(probabilities.sum()):
            raise Refusal(422, "the model has no answer: values are too far from those that it was trained on")
        return probabilities

    def answer(self, body: bytes) -> tuple[bytes, int]:
        """JSON for the body of a /predict, and the number of rows in it. Raises Refusal."""
        rows, single = self.reader.rows(body)
        probabilities, manifest = self.predict(rows), self.manifest
        answer: Answer | Answers
        if single:
            values = probabilities[0].tolist()
            best = values.index(max(values))
            answer = Answer(best, manifest.classes[best], values, manifest.model, manifest.digest)
        else:
            indices = probabilities.argmax(axis=1).tolist()
            labels = [manifest.classes[i] for i in indices]
            answer = Answers(indices, labels, probabilities.tolist(), manifest.model, manifest.digest)
        return msgspec.json.encode(answer), len(rows)


class Live:
    """Follows the store's CURRENT. A request takes `current()` once, so one version gives its whole answer.

    `problem` says why what CURRENT names isn't what answers: nothing is promoted yet, or the version is refused.
    `refused` are events of versions that were, for the history. `ready` says what /readyz waits for: the "model" or the
    "process".
    """

    def __init__(self, store: Store, counts: Counts, limits: Limits, ready: str = "model") -> None:
        self.store, self.counts, self.limits, self.ready = store, counts, limits, ready
        self.model: Predictor | None = None
        self.problem: str | None = None
        self.refused: deque[dict[str, str]] = deque(maxlen=EVENTS)
        self._threads = ThreadPoolExecutor(cpus(), "large")

    def refresh(self) -> None:
        """Serve what CURRENT names once it is loaded, verified and has answered; until then what was. Blocks.

        Each change is logged once.
        """
        digest = None
        try:
            digest = self.store.current()
            if self.model is None or self.model.manifest.digest != digest:
                model = self.store.load(digest)
                self.model = Predictor(model, self.limits.rows)
                self.counts.add("loads")
                log.info("serving %s %s", self.store.model, model.manifest.digest[:12])
            self.problem = None
        except Exception as error:  # noqa: BLE001 - nothing that a version does may end the following of CURRENT
            if self.problem == str(error):
                return
            self.problem = str(error)
            kept = f"; {self.model.manifest.digest[:12]} keeps serving" if self.model else ""
            log.warning("%s%s", self.problem, kept)
            if digest or self.model:  # else nothing is promoted yet
                self.counts.add("refusals")
            if digest:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
                event = {"time": now, "event": "refused", "digest": digest, "reason": self.problem, "by": "server"}
                self.refused.append(event)

    async def follow(self, interval: float) -> None:
        """Refresh every `interval` seconds in a thread. Runs until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await asyncio.to_thread(self.refresh)

    def current(self) -> Predictor:
        """The version that answers. Raises Refusal (503) before there is one."""
        if self.model is None:
            raise Refusal(503, str(self.problem))
        return self.model

    async def run(self, work: Callable[[bytes], tuple[T, int]], body: bytes) -> T:
        """The answer of `work(body)`, whose rows are counted. Doesn't wait if the body is `inline`.

        Raises Refusal: 503 when its turn in a thread doesn't come in time.
        """
        try:
            if inline(body):
                answer, rows = work(body)
            else:
                async with asyncio.timeout(self.limits.seconds):
                    answer, rows = await asyncio.get_running_loop().run_in_executor(self._threads, work, body)
        except TimeoutError:
            self.counts.add("busy")
            raise Refusal(503, "too busy to answer in time: try again") from None
        self.counts.add("rows", rows)
        return answer

    async def answer(self, body: bytes) -> bytes:
        """JSON for a POST /predict. Raises Refusal."""
        return await self.run(self.current().answer, body)


def inline(body: bytes) -> bool:
    """Whether a body is small enough to be answered on the event loop."""
    return len(body) <= (INLINE_NPY if body.startswith(NPY) else INLINE)
