"""The HTTP interface in FastAPI: routes around the live model, and their description at /docs."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import v2
from decode import forms
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from limits import Refusal
from live import EVENTS, Answer, Answers, Live
from metrics import Exposition
from modelkit.artifact import Input
from modelkit.store import told
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
PARTS = "#/components/schemas/{name}"


def create_app(live: Live) -> FastAPI:
    """The application for one model of a store."""
    name = live.store.model
    app = FastAPI(title=f"nas: {name}", version=v2.VERSION, docs_url=None, redoc_url=None, responses=PROBLEMS)
    app.include_router(v2.router(live))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_route("/", lambda _: FileResponse(STATIC / "index.html"))
    app.add_route("/docs", lambda _: FileResponse(STATIC / "docs.html"))

    @app.post("/predict/", include_in_schema=False)
    @app.post("/predict")
    async def predict(request: Request) -> Response:
        """Classify one row (a list of numbers, an object of named features, an image), or a list of rows.

        Values as they were measured, pixels as whole numbers from 0 to 255: the model scales them itself. The answer
        to a list of rows has `predictions`, `labels` and a list of `probabilities`, in the rows' order.
        """
        return Response(await live.answer(await request.body()), media_type="application/json")

    @app.get("/model")
    async def manifest() -> dict[str, Any]:
        """The manifest of the model that answers: its input, classes, scores, and the trial it comes from."""
        return told(live.current().manifest)

    @app.get("/model/lineage")
    async def lineage() -> list[dict[str, Any]]:
        """The manifests of the model that answers, of its parent, and so on to the first ancestor.

        A parent that is no longer in the store ends the list by its digest alone.
        """
        line = await asyncio.to_thread(live.store.lineage, live.current().manifest.digest)
        return [{"digest": one} if isinstance(one, str) else told(one.manifest) for one in line]

    @app.get("/model/history")
    async def history() -> list[dict[str, Any]]:
        """What was promoted, kept, refused, pinned and rolled back lately, and why: the latest 100, newest first.

        Also the versions that this server refused to take up, "by" the server.
        """
        # In the same millisecond a version is promoted before it is refused.
        events = [*msgspec.to_builtins(await asyncio.to_thread(live.store.history)), *live.refused]
        return sorted(events, key=lambda event: event["time"])[: -EVENTS - 1 : -1]

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readiness() -> dict[str, Any]:
        """Ready to answer. `problem` says why the version that was promoted last isn't what answers."""
        digest = live.current().manifest.digest if live.ready == "model" or live.model else None
        return {"ready": True, "model": name, "digest": digest, "problem": live.problem}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        """Requests, times, rows, what was turned away, and which version answers, for Prometheus."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        shown = generate_latest(Exposition(live))  # it asks for collect() alone
        return Response(shown, media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        """What no route takes; a Refusal passes through to the lane."""
        path, allow = request.scope["path"][:80], (error.headers or {}).get("Allow")
        told = f"{path} takes {allow}, not {request.method}" if allow else f"nothing is at {path}"
        body = Refusal(error.status_code, f"{told}: /docs lists what there is").body()
        return Response(body, error.status_code, error.headers, "application/json")

    def openapi() -> dict[str, Any]:
        """The schema, with bodies that the model takes now and what it answers to them."""
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        if chosen := live.model:
            takes, rows = chosen.manifest.input, msgspec.Meta(min_length=1, max_length=live.limits.rows)
            found = forms(takes)
            bodies = [Annotated[form, rows] if start[1:] else form for start, form in found.items()]
            if images := found.get(b"[[["):
                bodies += get_args(images)  # one of them on its own, as its lines
            types = [*bodies, Answer, Answers, v2.Inference, v2.Inferred]
            (*asked, one, many, inference, inferred), parts = msgspec.json.schema_components(types, ref_template=PARTS)
            schema["components"] = {"schemas": parts}
            shown = {
                form: (body, chosen.answer(msgspec.json.encode(body))[0]) for form, body in examples(takes).items()
            }
            operation = schema["paths"]["/predict"]["post"]
            _describe(operation, asked, [one, many], shown)
            operation["requestBody"]["content"]["application/x-npy"] = {
                "schema": {"type": "string", "format": "binary"}
            }
            request = v2.example(takes, row(takes))
            (answer, _), _ = v2.infer_body(chosen, msgspec.json.encode(request), None)
            for path in schema["paths"]:
                if path.endswith("/infer"):
                    _describe(schema["paths"][path]["post"], [inference], [inferred], {"one row": (request, answer)})
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
        found["image"] = [[0] * takes.image[1]] * takes.image[0]
        found["base64 of its bytes"] = {"b64": msgspec.to_builtins(bytes(one))}
    return found


def _describe(operation: Any, takes: list[Any], gives: list[Any], shown: dict[str, tuple[Any, bytes]]) -> None:
    """Put into a POST's description the schemas of its body and answer, with examples of both by their forms."""
    bodies = {form: {"value": body} for form, (body, _) in shown.items()}
    answers = {form: {"value": msgspec.json.decode(answer)} for form, (_, answer) in shown.items()}
    content = {"application/json": {"schema": {"anyOf": takes}, "examples": bodies}}
    operation["requestBody"] = {"required": True, "content": content}
    operation["responses"]["200"]["content"]["application/json"] = {"schema": {"anyOf": gives}, "examples": answers}
