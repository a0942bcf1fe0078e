"""The HTTP interface: FastAPI routes around the live model, and one format for every error."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import decode
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from live import Live
from metrics import Measured, Metrics
from modelkit.artifact import Model
from modelkit.store import Store
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

MAX_BODY = 8 * 2**20  # bytes
INLINE_BODY = 64 * 2**10  # bytes; a body up to this size is answered on the event loop, a larger one in a thread

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}  # every error's body
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {"application/json": {"schema": ERROR}}}
    for status, description in (
        (400, "The body isn't JSON"),
        (413, "Too many bytes or rows"),
        (422, "Not what the model takes; the sentence says what is expected"),
        (503, "No model has been promoted yet"),
    )
}


def create_app(store_root: Path, model: str, *, ready: str = "model", poll: float = 1.0) -> FastAPI:
    """The application for one model of a store; `app.state.live` is what it serves.

    Ready with the first model (`ready="model"`) or at once ("process"); looks at CURRENT every `poll` seconds.
    Raises StoreError for a name that no model can have.
    """
    live = Live(Store(store_root, model))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(live.refresh)
        following = asyncio.create_task(live.follow(poll))
        yield
        following.cancel()

    app = FastAPI(title=f"nas: {model}", lifespan=lifespan)
    app.state.live = live
    metrics = Metrics(live)
    app.add_middleware(Measured, metrics=metrics)

    def current() -> Model:
        if live.model is None:
            raise HTTPException(503, live.problem, {"Retry-After": "5"})
        return live.model

    @app.post("/predict/", include_in_schema=False)
    @app.post("/predict", responses=PROBLEMS)
    async def predict(request: Request) -> Response:
        """Classify one row (a list of numbers, an object of named features, an image), or a list of rows.

        Values as they were measured, pixels as whole numbers from 0 to 255: the model scales them itself. The answer
        to a list of rows has `predictions`, `labels` and a list of `probabilities`, in the rows' order.
        """
        chosen, body = current(), await _read(request)
        if len(body) <= INLINE_BODY:
            answer = _answer(chosen, body)
        else:
            answer = await asyncio.to_thread(_answer, chosen, body)
        metrics.rows.inc(len(answer.get("predictions", [0])))
        return _json(answer)

    @app.get("/model", responses={503: PROBLEMS[503]})
    async def manifest() -> Response:
        """The manifest of the model that answers: its input, classes, scores, and the trial it comes from."""
        return _json(current().manifest)

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: PROBLEMS[503]})
    async def readiness() -> Response:
        """Ready to answer. `problem` says why the version that was promoted last isn't what answers."""
        digest = current().manifest.digest if ready == "model" or live.model else None
        return _json({"ready": True, "model": model, "digest": digest, "problem": live.problem})

    @app.get("/metrics")
    async def measured() -> Response:
        """Requests, times, rows, and which version answers, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def problem(_: Request, error: HTTPException) -> Response:
        return _json({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # no one is there to read it

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:
        return _json({"error": "a bug in the server: its log says more"}, 500)

    def openapi() -> dict[str, Any]:
        """The schema, with bodies that the model takes now and what it answers to them."""
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        if chosen := live.model:
            bodies = decode.examples(chosen.manifest.input)
            answers = {form: _answer(chosen, msgspec.json.encode(body)) for form, body in bodies.items()}
            operation = schema["paths"]["/predict"]["post"]
            operation["requestBody"] = {"required": True, "content": _shown(bodies)}
            operation["responses"]["200"]["content"] = _shown(answers)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {}, "examples": {form: {"value": value} for form, value in values.items()}}}


def _answer(model: Model, body: bytes) -> dict[str, Any]:
    manifest = model.manifest
    rows, single = decode.rows(body, manifest.input)
    probabilities = model.predict(rows)
    best = probabilities.argmax(axis=1).tolist()
    labels, source = [manifest.classes[i] for i in best], {"model": manifest.model, "digest": manifest.digest}
    if single:
        return {"prediction": best[0], "label": labels[0], "probabilities": probabilities[0].tolist(), **source}
    return {"predictions": best, "labels": labels, "probabilities": probabilities.tolist(), **source}


async def _read(request: Request) -> bytes:
    """The body; more than MAX_BODY of it is never in memory."""
    body, announced = bytearray(), request.headers.get("content-length", "0")
    too_large = HTTPException(413, f"at most {MAX_BODY} bytes a request: send fewer rows", {"Connection": "close"})
    if int(announced) > MAX_BODY:
        raise too_large
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")
