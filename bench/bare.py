"""Our server without what every request goes through: keys, queue, request ids, counters."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "images/server"))

import command
from lane import JSON, Lane, Request, Response


class Bare(Lane):
    async def answer(self, request: Request) -> Response:
        return 200, [JSON], await self.live.answer(request.body)


if __name__ == "__main__":
    command.Lane = Bare  # type: ignore[misc]
    sys.exit(command.main())
