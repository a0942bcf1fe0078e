"""What lane and routes share: the live model, its counters, the limits, and the threads for large bodies."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from decode import NPY
from limits import Headers, Limits, Refusal, read
from live import Live
from metrics import Counts
from modelkit import cpus
from predict import Predictor
from starlette.types import Receive

# Bodies up to so many bytes are answered on the event loop (about a millisecond), larger ones in a thread.
INLINE, INLINE_NPY = 64 * 2**10, 256 * 2**10
T = TypeVar("T")


class Service:
    """Answers bodies within the limits; `ready` says what /readyz waits for."""

    def __init__(self, live: Live, counts: Counts, limits: Limits, ready: str = "model") -> None:
        self.live, self.counts, self.limits, self.ready = live, counts, limits, ready
        self._threads: ThreadPoolExecutor | None = None

    def current(self) -> Predictor:
        """The version that answers. Raises Refusal (503) before there is one."""
        if self.live.model is None:
            raise Refusal(503, str(self.live.problem), [(b"retry-after", b"5")])
        return self.live.model

    async def run(self, work: Callable[[bytes], T], body: bytes) -> T:
        """`work(body)`, in a thread if it may take long. Raises Refusal (503) when its turn doesn't come in time."""
        if len(body) <= (INLINE_NPY if body.startswith(NPY) else INLINE):
            return work(body)
        self._threads = self._threads or ThreadPoolExecutor(cpus(), "large")
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, body)
        except TimeoutError:
            self.counts.add("busy")
            raise Refusal(503, "too busy to answer in time: try again", [(b"retry-after", b"1")]) from None

    async def answer(self, receive: Receive, headers: Headers) -> bytes:
        """JSON for a POST /predict. Raises Refusal."""
        chosen = self.current()
        answer, rows = await self.run(chosen.answer, await read(receive, headers, self.limits))
        self.counts.add("rows", rows)
        return answer
