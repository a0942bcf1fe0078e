"""The HTTP interface in FastAPI: routes around the live model, and their description at /docs."""

import asyncio
import itertools
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import v2
from decode import forms
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from limits import Refusal
from live import Answer, Answers, Live
from metrics import Exposition
from modelkit.artifact import Input, Manifest
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


def create_app(live: Live) -> FastAPI:
    """The application for one model of a store."""
    name = live.store.model
    app = FastAPI(title=f"nas: {name}", version=v2.VERSION, docs_url=None, redoc_url=None)
    app.include_router(v2.router(live, ASKING, READING | {404: PROBLEMS[404]}))
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.post("/predict/", include_in_schema=False)
    @app.post("/predict", responses=ASKING)
    async def predict(request: Request) -> Response:
        """Classify one row (a list of numbers, an object of named features, an image), or a list of rows.

        Values as they were measured, pixels as whole numbers from 0 to 255: the model scales them itself. The answer
        to a list of rows has `predictions`, `labels` and a list of `probabilities`, in the rows' order.
        """
        return Response(await live.answer(await request.body()), media_type="application/json")

    @app.get("/model", responses=READING)
    async def manifest() -> Response:
        """The manifest of the model that answers: its input, classes, scores, and the trial it comes from."""
        return _json(_told(live.current().manifest))

    @app.get("/model/lineage", responses=READING)
    async def lineage() -> Response:
        """The manifests of the model that answers, of its parent, and so on to the first ancestor.

        A parent that is no longer in the store ends the list by its digest alone.
        """
        line = await asyncio.to_thread(live.store.lineage, live.current().manifest.digest)
        return _json([{"digest": one} if isinstance(one, str) else _told(one.manifest) for one in line])

    @app.get("/model/history", responses=READING)
    async def history(limit: int = Query(50, ge=1, le=1000)) -> Response:
        """What was promoted, kept, refused, pinned and rolled back, and why: the newest first.

        Also the version that this server refused to take up last, "by" the server.
        """
        events = msgspec.to_builtins(await asyncio.to_thread(live.store.history))
        events = sorted([*events, *filter(None, [live.refused])], key=operator.itemgetter("time"))
        return _json(events[: -limit - 1 : -1])

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: PROBLEMS[503]})
    async def readiness() -> Response:
        """Ready to answer. `problem` says why the version that was promoted last isn't what answers."""
        digest = live.current().manifest.digest if live.ready == "model" or live.model else None
        return _json({"ready": True, "model": name, "digest": digest, "problem": live.problem})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        """Requests, times, rows, what was turned away, and which version answers, for Prometheus."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        shown = generate_latest(Exposition(live.counts, live))  # it asks for collect() alone
        return Response(shown, media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html")

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return Response(refusal.body(), refusal.status, {k.decode(): v.decode() for k, v in refusal.headers})

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
            takes, rows = chosen.manifest.input, msgspec.Meta(min_length=1, max_length=live.limits.rows)
            bodies = [Annotated[form, rows] if start[1:] else form for start, form in forms(takes).items()]
            shown = {form: (body, chosen.answer(_encode(body))[0]) for form, body in examples(takes).items()}
            _describe(schema, ["/predict"], bodies, [Answer, Answers], shown)
            operation = schema["paths"]["/predict"]["post"]["requestBody"]
            operation["content"]["application/x-npy"] = {"schema": {"type": "string", "format": "binary"}}
            infers = [path for path in schema["paths"] if path.endswith("/infer")]
            request = v2.example(takes, row(takes))
            answer = v2.infer_body(chosen, _encode(request), None)[0]
            _describe(schema, infers, [v2.Inference], [v2.Inferred], {"one row": (request, answer)})
            known = {"name": name, "version": chosen.manifest.digest}
            for operation in itertools.chain(*(o.values() for o in schema["paths"].values())):
                for parameter in operation.get("parameters", []):
                    if parameter["name"] in known:
                        parameter["schema"] = {"type": "string", "enum": [known[parameter["name"]]]}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def row(takes: Input) -> list[Any]:
    """A row of the model's input: features midway in their ranges, the first of a category's values, a blank image."""
    middles = [f.values[0] if f.values else round((f.min + f.max) / 2, 2) for f in takes.features or []]
    return middles or [0] * takes.shape[0]


def examples(takes: Input) -> dict[str, Any]:
    """A body of each form that the model takes, by the form's name."""
    one = row(takes)
    found: dict[str, Any] = {"numbers": one, "rows": [one, one]}
    if takes.features:
        named = {f.name: value for f, value in zip(takes.features, one, strict=True)}
        found |= {"named features": named, "several of them": [named, named]}
    if takes.image:
        coded = msgspec.json.decode(_encode(bytes(one)))
        found |= {"image": [[0] * takes.image[1]] * takes.image[0], "base64 of its bytes": {"b64": coded}}
    return found


def _describe(
    schema: dict[str, Any],
    paths: Iterable[str],
    takes: list[Any],
    gives: list[Any],
    shown: dict[str, tuple[Any, bytes]],
) -> None:
    """Put into `schema` what the POSTs of `paths` take and give (types), with bodies and answers by their forms."""
    types = [*takes, *gives]
    described, parts = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema.setdefault("components", {}).setdefault("schemas", {}).update(parts)
    asked, answered = list(described[: len(takes)]), list(described[len(takes) :])
    bodies = {form: {"value": body} for form, (body, _) in shown.items()}
    answers = {form: {"value": msgspec.json.decode(answer)} for form, (_, answer) in shown.items()}
    for operation in (schema["paths"][path]["post"] for path in paths):
        content = {"application/json": {"schema": {"anyOf": asked}, "examples": bodies}}
        operation["requestBody"] = {"required": True, "content": content}
        content = {"application/json": {"schema": {"anyOf": answered}, "examples": answers}}
        operation["responses"]["200"]["content"] = content


def _told(manifest: Manifest) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(manifest)
    for kept in ("outcomes", "learned"):  # of validation and training rows, for the store's comparisons alone
        del told[kept]
    return told


def _encode(content: Any) -> bytes:
    return msgspec.json.encode(content)


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(_encode(content), status, headers, "application/json")
