"""The model that answers, and its replacement while requests go on."""

import asyncio
import logging

from metrics import Counts
from modelkit.store import Store
from predict import Predictor

log = logging.getLogger("nas.server")


class Live:
    """Follows the store's CURRENT. A request takes `model` once, so one version gives its whole answer.

    `problem` says why what CURRENT names isn't what answers: nothing is promoted yet, or the version is refused.
    """

    def __init__(self, store: Store, counts: Counts | None = None, max_rows: int = 4096) -> None:
        self.store, self._counts, self._max_rows = store, counts or Counts(), max_rows
        self.model: Predictor | None = None
        self.problem: str | None = None

    def refresh(self) -> None:
        """Serve what CURRENT names once it is loaded, verified and has answered; until then what was. Blocks."""
        digest = None
        try:
            digest = self.store.current()
            if self.model is None or self.model.manifest.digest != digest:
                model = self.store.load(digest)
                model.check_answer()
                self.model = Predictor(model, self._max_rows)
                self._counts.add("loads")
            self.problem = None
        except Exception as error:  # noqa: BLE001 - nothing that a version does may end the following of CURRENT
            if self.problem != (problem := str(error)):
                self.problem = problem
                if digest or self.model:  # else nothing is promoted yet
                    self._counts.add("refusals")

    async def follow(self, interval: float) -> None:
        """Refresh every `interval` seconds in a thread, and log each change once. Runs until cancelled."""
        while True:
            model, problem = self.model, self.problem
            await asyncio.sleep(interval)
            await asyncio.to_thread(self.refresh)
            if self.model and self.model is not model:
                log.info("serving %s %s", self.store.model, self.model.manifest.digest[:12])
            if self.problem and self.problem != problem:
                kept = f"; {self.model.manifest.digest[:12]} keeps serving" if self.model else ""
                log.warning("%s%s", self.problem, kept)
