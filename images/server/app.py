"""The HTTP interface in FastAPI: routes around the live model, and their description at /docs."""

import asyncio
import math
from pathlib import Path
from typing import Any

import msgspec
import v2
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from limits import Refusal
from metrics import Exposition
from modelkit.artifact import Input
from service import Service
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

STATIC = Path(__file__).with_name("static")
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}  # every error's body
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {"application/json": {"schema": ERROR}}}
    for status, description in (
        (400, "The body can't be read"),
        (401, "No API key, or a wrong one"),
        (404, "Not there"),
        (408, "The request took too long to arrive"),
        (413, "Too many bytes or rows"),
        (415, "A compressed body"),
        (422, "Not what the model takes; the sentence says what is expected"),
        (503, "No model has been promoted yet, or too many requests are waiting"),
    )
}
READING: dict[int | str, dict[str, Any]] = {status: PROBLEMS[status] for status in (401, 503)}
ASKING: dict[int | str, dict[str, Any]] = {status: problem for status, problem in PROBLEMS.items() if status != 404}


def create_app(service: Service) -> FastAPI:
    """The application for one model of a store."""
    live, name = service.live, service.live.store.model
    app = FastAPI(title=f"nas: {name}", version="0.2.0", docs_url=None, redoc_url=None)
    app.include_router(v2.router(service, ASKING, READING | {404: PROBLEMS[404]}))
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.post("/predict/", include_in_schema=False)
    @app.post("/predict", responses=ASKING)
    async def predict(request: Request) -> Response:
        """Classify one row (a list of numbers, an object of named features, an image), or a list of rows.

        Values as they were measured, pixels as whole numbers from 0 to 255: the model scales them itself. The answer
        to a list of rows has `predictions`, `labels` and a list of `probabilities`, in the rows' order.
        """
        return Response(await service.answer(request.receive, request.scope["headers"]), media_type="application/json")

    @app.get("/model", responses=READING)
    async def manifest() -> Response:
        """The manifest of the model that answers: its input, classes, scores, and the trial it comes from."""
        told = msgspec.to_builtins(service.current().manifest)
        del told["outcomes"]  # bits of validation rows, for the store's comparisons alone
        return _json(told)

    @app.get("/model/history", responses=READING)
    async def history(limit: int = Query(50, ge=1, le=1000)) -> Response:
        """What was promoted, kept, refused, pinned and rolled back, and why: the newest first."""
        return _json((await asyncio.to_thread(live.store.history))[: -limit - 1 : -1])

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: PROBLEMS[503]})
    async def readiness() -> Response:
        """Ready to answer. `problem` says why the version that was promoted last isn't what answers."""
        digest = service.current().manifest.digest if service.ready == "model" or live.model else None
        return _json({"ready": True, "model": name, "digest": digest, "problem": live.problem})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        """Requests, times, rows, what was turned away, and which version answers, for Prometheus."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(Exposition(service.counts, live))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html")

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        headers = {name.decode(): value.decode() for name, value in refusal.headers}
        return Response(refusal.body(), refusal.status, headers, "application/json")

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:
        return _json({"error": "a bug in the server: its log says more"}, 500)

    @app.exception_handler(HTTPException)
    async def problem(_: Request, error: HTTPException) -> Response:
        return _json({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        where, what = error.errors()[0]["loc"][-1], error.errors()[0]["msg"]
        return _json({"error": f"{where}: {what}"}, 422)

    def openapi() -> dict[str, Any]:
        """The schema, with bodies that the model takes now and what it answers to them."""
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        if chosen := live.model:
            bodies = examples(chosen.manifest.input)
            answers = {form: chosen.answer(msgspec.json.encode(body))[0] for form, body in bodies.items()}
            operation = schema["paths"]["/predict"]["post"]
            content = _shown(bodies, body_schema(chosen.manifest.input, service.limits.rows))
            binary = {"application/x-npy": {"schema": {"type": "string", "format": "binary"}}}
            operation["requestBody"] = {"required": True, "content": content | binary}
            answered = {form: msgspec.json.decode(answer) for form, answer in answers.items()}
            operation["responses"]["200"]["content"] = _shown(answered, {"type": "object"})
            v2.describe(schema, chosen)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def examples(takes: Input) -> dict[str, Any]:
    """A body of each form that the model takes, by the form's name: features midway in their ranges, blank images."""
    features, image, size = takes.features or [], takes.image, math.prod(takes.shape)
    row: list[float] = [round((f.min + f.max) / 2, 2) for f in features] or [0] * size
    forms: dict[str, Any] = {"numbers": row, "rows": [row, row]}
    if features:
        named = {f.name: value for f, value in zip(features, row, strict=True)}
        forms |= {"named features": named, "several of them": [named, named]}
    if image:
        forms |= {
            "image": [[0] * image[1]] * image[0],
            "base64 of its bytes": {"b64": msgspec.json.encode(bytes(size)).decode().strip('"')},
        }
    return forms


def body_schema(takes: Input, max_rows: int) -> dict[str, Any]:
    """JSON Schema of the bodies that /predict takes."""
    size = math.prod(takes.shape)
    number = (
        {"type": "integer", "minimum": 0, "maximum": 255}
        if takes.dtype == "uint8"
        else {"type": "number", "minimum": -3e38, "maximum": 3e38}
    )
    rows = [_fixed(number, size)]
    if takes.features:
        names = [feature.name for feature in takes.features]
        rows.append(
            {
                "type": "object",
                "properties": dict.fromkeys(names, number),
                "required": names,
                "additionalProperties": False,
            }
        )
    if takes.image:
        base64 = {
            "type": "string",
            "contentEncoding": "base64",
            "minLength": -(-size // 3) * 4,
            "maxLength": -(-size // 3) * 4,
            "pattern": "^[A-Za-z0-9+/]*={0,2}$",
        }
        rows += [
            _fixed(_fixed(number, takes.image[1]), takes.image[0]),
            {"type": "object", "properties": {"b64": base64}, "required": ["b64"], "additionalProperties": False},
        ]
    several = [{"type": "array", "items": row, "minItems": 1, "maxItems": max_rows} for row in rows]
    return {"anyOf": [*rows, *several]}


def _shown(values: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "application/json": {"schema": schema, "examples": {form: {"value": value} for form, value in values.items()}}
    }


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _fixed(items: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}
