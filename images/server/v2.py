"""The Open Inference Protocol v2, JSON and binary tensor data, as KServe's and Triton's clients speak it.

https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension of it.
"""

from typing import Any

import msgspec
import numpy as np
from decode import Array, numbers, read
from fastapi import APIRouter, Request, Response
from limits import Refusal
from live import Live, Predictor
from modelkit.artifact import Input

VERSION = "0.2.0"  # of the server
DTYPES = {
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
HEADER = "inference-header-content-length"  # bytes of JSON ahead of the tensors
Parameters = dict[str, Any]


class Tensor(msgspec.Struct, omit_defaults=True):
    """An output; without `data` its bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] | None = None


class Numbers(Tensor):
    """An input, without `data` as well."""

    data: list[float | list[float | list[float]]] | None = None  # flat, in rows, or in images' lines


class Wanted(msgspec.Struct):
    """An output that a client asks for."""

    name: str
    parameters: Parameters = {}


class Inference(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[Numbers]
    id: str | None = None
    parameters: Parameters = {}
    outputs: list[Wanted] | None = None


class Inferred(msgspec.Struct, omit_defaults=True):
    """The JSON of its answer."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str | None = None


_DECODE = msgspec.json.Decoder(Inference).decode


def router(live: Live) -> APIRouter:
    """The protocol's endpoints."""
    routes, own = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"]), live.store.model

    def chosen(name: str, version: str | None = None) -> Predictor:
        if name != own:
            raise Refusal(404, f"no model {name[:40]!r} here: this server has {own}")
        current = live.current()
        if version and current.manifest.digest != version:
            raise Refusal(404, f"version {version[:12]} doesn't answer here: {current.manifest.digest} does")
        return current

    @routes.get("/health/live")
    async def alive() -> dict[str, bool]:
        """The process is alive."""
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """A model answers."""
        return {"ready": bool(live.current())}

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Which server this is."""
        return {"name": "nas", "version": VERSION, "extensions": ["binary_tensor_data"]}

    @routes.get("/models/{name}/versions/{version}")
    @routes.get("/models/{name}")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs. A version is a digest."""
        manifest = chosen(name, version).manifest
        outputs = [Tensor("probabilities", "FP32", [-1, len(manifest.classes)]), Tensor("prediction", "INT64", [-1])]
        return {
            "name": name,
            "versions": [manifest.digest],
            "platform": "onnxruntime_onnx",
            "inputs": msgspec.to_builtins([_input(manifest.input, -1)]),
            "outputs": msgspec.to_builtins([*outputs, Tensor("label", "BYTES", [-1])]),
        }

    @routes.get("/models/{name}/versions/{version}/ready")
    @routes.get("/models/{name}/ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """The model, or this version of it, answers."""
        return {"name": name, "ready": bool(chosen(name, version))}

    @routes.post("/models/{name}/versions/{version}/infer")
    @routes.post("/models/{name}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Classify rows: outputs `probabilities`, `prediction` (class indices) and `label`."""
        current, length = chosen(name, version), request.headers.get(HEADER)
        content, header = await live.run(lambda body: infer_body(current, body, length), await request.body())
        if header is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER: str(header)}, media_type="application/octet-stream")

    return routes


def infer_body(current: Predictor, body: bytes, length: str | None) -> tuple[tuple[bytes, int | None], int]:
    """The answer to a request's body with the length of its JSON if tensors follow it, and the number of rows.

    `length` is that of the request's JSON, None where all of it is. Raises Refusal.
    """
    if length is not None and not (length.isdecimal() and len(length) < 10 and int(length) <= len(body)):
        raise Refusal(400, f"Inference-Header-Content-Length {length[:20]!r}: expected at most the body's {len(body)}")
    size, manifest = len(body) if length is None else int(length), current.manifest
    asked = read(_DECODE, body[:size], "an inference request")
    if [tensor.name for tensor in asked.inputs] != [manifest.input.name]:
        got = ", ".join(tensor.name[:40] for tensor in asked.inputs) or "none"
        raise Refusal(422, f"expected one input, named {manifest.input.name!r}; got {got}")
    rows, _ = current.reader.fit(_array(asked.inputs[0], body[size:]))
    probabilities = current.predict(rows)
    best = probabilities.argmax(axis=1)
    labels = np.array(manifest.classes, dtype=object)[best]
    outputs = {"probabilities": ("FP32", probabilities), "prediction": ("INT64", best), "label": ("BYTES", labels)}
    tensors, blobs = [], []
    wanted = asked.outputs or [Wanted(name) for name in outputs]
    if len({output.name for output in wanted}) < len(wanted):
        raise Refusal(422, "outputs: each may be named once")
    for output in wanted:
        if output.name not in outputs or "classification" in output.parameters:
            raise Refusal(422, f"output {output.name[:40]!r}: expected {', '.join(outputs)}, without classification")
        datatype, array = outputs[output.name]
        tensor = Tensor(output.name, datatype, list(array.shape))
        if output.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)) is True:
            blobs.append(_bytes(array))
            tensor.parameters = {"binary_data_size": len(blobs[-1])}
        else:
            tensor.data = array.ravel().tolist()
        tensors.append(tensor)
    text = msgspec.json.encode(Inferred(manifest.model, manifest.digest, tensors, asked.id))
    return (b"".join([text, *blobs]), len(text) if blobs else None), len(rows)


def example(takes: Input, row: list[Any]) -> dict[str, Any]:
    """A request for one row, whose categories are numbers here."""
    data = [f.number(value) if f.values else value for f, value in zip(takes.features or [], row, strict=False)] or row
    return {"id": "1", "inputs": [msgspec.to_builtins(_input(takes, 1)) | {"data": data}]}


def _input(takes: Input, rows: int) -> Tensor:
    return Tensor(takes.name, {"float32": "FP32", "uint8": "UINT8"}[takes.dtype], [rows, *takes.shape])


def _array(tensor: Numbers, raw: bytes) -> Array:
    """The numbers of a request's tensor, from its data or from the bytes after the JSON."""
    if tensor.datatype not in DTYPES:
        raise Refusal(422, f"datatype {tensor.datatype[:20]!r}: expected one of {', '.join(DTYPES)}")
    size = tensor.parameters.get("binary_data_size", 0)
    if size != len(raw):
        raise Refusal(400, f"binary_data_size is {size!s:.20}, but {len(raw)} bytes follow the JSON")
    dtype = np.dtype(DTYPES[tensor.datatype])
    if tensor.data is None:
        return numbers(raw, dtype, tensor.shape)
    try:
        data = np.array(tensor.data, np.float64)
    except ValueError:
        raise Refusal(422, "data: expected numbers, flat or in rows") from None
    with np.errstate(invalid="ignore"):  # what doesn't fit becomes another number
        if dtype.kind in "iu" and (data.astype(dtype) != data).any():
            raise Refusal(422, f"data: expected whole numbers that {tensor.datatype} can hold")
    return numbers(data, data.dtype, tensor.shape)


def _bytes(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(data := text.encode()).to_bytes(4, "little") + data for text in array)
