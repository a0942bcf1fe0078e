"""The Open Inference Protocol v2, JSON and binary tensor data, as KServe's and Triton's clients speak it.

https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension of it.
"""

import itertools
import math
import struct
from typing import Any

import msgspec
import numpy as np
from decode import Array, numbers
from fastapi import APIRouter, Request, Response
from limits import Refusal, read
from predict import Predictor
from service import Service

DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"} | {
    f"{'U' * unsigned}INT{8 * size}": f"<{'u' if unsigned else 'i'}{size}"
    for unsigned in (0, 1)
    for size in (1, 2, 4, 8)
}
HEADER = "inference-header-content-length"  # bytes of JSON ahead of the tensors
Parameters = dict[str, Any]


class Tensor(msgspec.Struct, omit_defaults=True):
    """An input or an output; without `data` its bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] | None = None


class Wanted(msgspec.Struct):
    """An output that a client asks for."""

    name: str
    parameters: Parameters = {}


class Inference(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: Parameters = {}
    outputs: list[Wanted] | None = None


_read = msgspec.json.Decoder(Inference).decode


def router(service: Service, asking: dict[int | str, Any], reading: dict[int | str, Any]) -> APIRouter:
    """The protocol's endpoints; `asking` and `reading` describe the errors of its POSTs and GETs."""
    routes, own = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"]), service.live.store.model

    def chosen(name: str, version: str | None = None) -> Predictor:
        if name != own:
            raise Refusal(404, f"no model {name[:40]!r} here: this server has {own}")
        current = service.current()
        if version and current.manifest.digest != version:
            raise Refusal(404, f"version {version[:12]} doesn't answer here: {current.manifest.digest} does")
        return current

    @routes.get("/health/live")
    async def live() -> Response:
        """The process is alive."""
        return _json({"live": True})

    @routes.get("/health/ready", responses=reading)
    async def ready() -> Response:
        """A model answers."""
        service.current()
        return _json({"ready": True})

    @routes.get("", responses=reading)
    async def server() -> Response:
        """Which server this is."""
        return _json({"name": "nas", "version": "0.2.0", "extensions": ["binary_tensor_data"]})

    @routes.get("/models/{name}/versions/{version}", responses=reading)
    @routes.get("/models/{name}", responses=reading)
    async def metadata(name: str, version: str | None = None) -> Response:
        """Inputs and outputs. A version is a digest."""
        manifest = (current := chosen(name, version)).manifest
        takes, classes = manifest.input, len(manifest.classes)
        inputs = [Tensor(takes.name, _datatype(np.dtype(takes.dtype)), [-1, *takes.shape])]
        outputs = [
            Tensor(o, _datatype(a.dtype), [-1, *a.shape[1:]])
            for o, a in _outputs(current, np.zeros((1, classes))).items()
        ]
        return _json(
            {
                "name": name,
                "versions": [manifest.digest],
                "platform": "onnxruntime_onnx",
                "inputs": inputs,
                "outputs": outputs,
            }
        )

    @routes.get("/models/{name}/versions/{version}/ready", responses=reading)
    @routes.get("/models/{name}/ready", responses=reading)
    async def model_ready(name: str, version: str | None = None) -> Response:
        """The model, or this version of it, answers."""
        return _json({"name": name, "ready": bool(chosen(name, version))})

    @routes.post("/models/{name}/versions/{version}/infer", responses=asking | reading)
    @routes.post("/models/{name}/infer", responses=asking | reading)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Classify rows: outputs `probabilities`, `prediction` (class indices) and `label`."""
        current, length = chosen(name, version), request.headers.get(HEADER)
        body = await read(request.receive, request.scope["headers"], service.limits)
        content, header, rows = await service.run(lambda body: infer_body(current, body, length), body)
        service.counts.add("rows", rows)
        if header is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER: str(header)}, media_type="application/octet-stream")

    return routes


def infer_body(current: Predictor, body: bytes, length: str | None) -> tuple[bytes, int | None, int]:
    """The answer to a request's body, the length of its JSON if tensors follow it, and the number of rows.

    `length` is that of the request's JSON, None where all of it is. Raises Refusal.
    """
    if length is not None and not (length.isdecimal() and len(length) < 10 and int(length) <= len(body)):
        raise Refusal(400, f"Inference-Header-Content-Length {length[:20]!r}: expected at most the body's {len(body)}")
    size = len(body) if length is None else int(length)
    try:
        asked = _read(body[:size])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body can't be read as an inference request: {error}") from None
    takes = current.manifest.input
    if len(asked.inputs) != 1 or asked.inputs[0].name != takes.name:
        got = ", ".join(tensor.name[:40] for tensor in asked.inputs) or "none"
        raise Refusal(422, f"expected one input, named {takes.name!r}; got {got}")
    rows, _ = current.reader.fit(_array(asked.inputs[0], body[size:]))
    outputs = _outputs(current, current.predict(rows))
    wanted = asked.outputs or [Wanted(name) for name in outputs]
    tensors, blobs = [], []
    for output in wanted:
        if output.name not in outputs:
            raise Refusal(422, f"no output {output.name[:40]!r}: expected {', '.join(outputs)}")
        if "classification" in output.parameters:
            raise Refusal(422, f"{output.name}: classification isn't spoken here; ask for `label`")
        array = outputs[output.name]
        tensor = Tensor(output.name, _datatype(array.dtype), list(array.shape))
        if output.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)) is True:
            blobs.append(_bytes(array))
            tensor.parameters = {"binary_data_size": len(blobs[-1])}
        else:
            tensor.data = array.ravel().tolist()
        tensors.append(tensor)
    manifest = current.manifest
    answer: dict[str, Any] = {"model_name": manifest.model, "model_version": manifest.digest, "outputs": tensors}
    if asked.id is not None:
        answer["id"] = asked.id
    text = msgspec.json.encode(answer)
    return b"".join([text, *blobs]), len(text) if blobs else None, len(rows)


def describe(schema: dict[str, Any], current: Predictor) -> None:
    """Show in the OpenAPI schema what an inference request is."""
    takes = current.manifest.input
    row = [round((f.min + f.max) / 2, 2) for f in takes.features or []] or [0] * math.prod(takes.shape)
    tensor = {"name": takes.name, "datatype": _datatype(np.dtype(takes.dtype)), "shape": [1, *takes.shape], "data": row}
    example = {"id": "1", "inputs": [tensor]}
    answer = msgspec.json.decode(infer_body(current, msgspec.json.encode(example), None)[0])
    known = {"name": current.manifest.model, "version": current.manifest.digest}
    for operation in (
        o for path, methods in schema["paths"].items() if path.startswith("/v2/m") for o in methods.values()
    ):
        for parameter in operation["parameters"]:
            parameter["schema"] = {"type": "string", "enum": [known[parameter["name"]]]}
        if operation["operationId"].endswith("post"):
            body = {"schema": {"type": "object", "required": ["inputs"]}}
            operation["requestBody"] = {"required": True, "content": {"application/json": body | {"example": example}}}
            shown = {"schema": {"type": "object"}, "example": answer}
            operation["responses"]["200"]["content"] = {"application/json": shown}


def _array(tensor: Tensor, raw: bytes) -> Array:
    """The numbers of a request's tensor, from its data or from the bytes after the JSON."""
    if tensor.datatype not in DTYPES:
        raise Refusal(422, f"datatype {tensor.datatype[:20]!r}: expected one of {', '.join(DTYPES)}")
    dtype, size = np.dtype(DTYPES[tensor.datatype]), tensor.parameters.get("binary_data_size")
    if tensor.data is None:
        if size != len(raw):
            raise Refusal(400, f"binary_data_size is {size!s:.20}, but {len(raw)} bytes follow the JSON")
        return numbers(raw, dtype, tensor.shape)
    if raw:
        raise Refusal(400, f"{len(raw)} bytes follow the JSON, which has the data already")
    data = tensor.data
    while data and all(isinstance(item, list) for item in data):
        data = list(itertools.chain.from_iterable(data))
    if not set(map(type, data)) <= {int, float}:
        raise Refusal(422, "data: expected numbers, flat or in rows")
    try:
        table = np.array(data, np.float64)
    except OverflowError:
        raise Refusal(422, "data: a number is too large") from None
    if min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) != len(data):
        raise Refusal(422, f"shape {tensor.shape[:8]} doesn't fit {len(data)} numbers")
    if dtype.kind != "f" and (table != np.floor(table)).any():
        raise Refusal(422, f"data: {tensor.datatype} has whole numbers only")
    return table.reshape(tensor.shape)


def _outputs(current: Predictor, probabilities: Array) -> dict[str, Array]:
    best = probabilities.argmax(axis=1)
    labels = np.array(current.manifest.classes, dtype=object)[best]
    return {"probabilities": probabilities.astype(np.float32), "prediction": best.astype(np.int64), "label": labels}


def _datatype(dtype: np.dtype[Any]) -> str:
    return next((name for name, text in DTYPES.items() if np.dtype(text) == dtype), "BYTES")


def _bytes(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    texts = [text.encode() for text in array]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
