"""Our server without what every request goes through: keys, queue, request ids, security headers, counters."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "images/server"))

import serve
from lane import JSON, respond
from service import Service
from starlette.types import Receive, Scope, Send


class Bare:
    def __init__(self, service: Service, *_: object) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._service.answer(receive, scope["headers"])
        await respond(scope, send, 200, [JSON], answer)


if __name__ == "__main__":
    serve.Lane = Bare  # type: ignore[misc,assignment]
    sys.exit(serve.main())
