"""Request bodies into the rows a model takes: every value is checked, none is guessed."""

import base64
import binascii
import functools
import io
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from limits import Refusal
from modelkit.artifact import Input

Array = npt.NDArray[Any]
NPY = b"\x93NUMPY"
_FLOAT32 = float(np.finfo(np.float32).max)
_NUMBER = {
    "float32": Annotated[float, msgspec.Meta(ge=-_FLOAT32, le=_FLOAT32)],
    "uint8": Annotated[int, msgspec.Meta(ge=0, le=255)],
}
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


class Image(msgspec.Struct, forbid_unknown_fields=True):
    """An image as base64 of its bytes, row by row."""

    b64: bytes


class Reader:
    """Bodies of /predict for one input contract: JSON or .npy."""

    def __init__(self, takes: Input, max_rows: int) -> None:
        number: Any = _NUMBER[takes.dtype]
        self.takes, self.max_rows = takes, max_rows
        self._size, self._image = math.prod(takes.shape), tuple(takes.image or ())
        self._categories = any(feature.values for feature in takes.features or [])
        self._decoders: dict[bytes, msgspec.json.Decoder[Any]]
        self._decoders = {b"[[": msgspec.json.Decoder(list[list[number]]), b"": msgspec.json.Decoder(list[number])}
        if takes.image:
            self._decoders |= {b"[{": msgspec.json.Decoder(list[Image]), b'{"': msgspec.json.Decoder(Image)}

    def rows(self, body: bytes) -> tuple[Array, bool]:
        """Rows [N, *shape] of the input's dtype, and whether it was one row on its own.

        Raises Refusal: 400 for what can't be read, 413 for too many rows, 422 for what the model doesn't take.
        """
        if body.startswith(NPY):
            return self.fit(_npy(body))
        start = body[:16].translate(None, b" \t\r\n")[:2]
        try:
            data = self._decoders.get(start, self._decoders[b""]).decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._slow(body)  # names, categories, images of lists, numbers as 1.0; or says what is wrong
        if start == b"[{":
            table, single = [image.b64 for image in data], False
        elif start == b"[[":
            single = bool(self._image) and len(data) == self._image[0] and set(map(len, data)) == {self._image[1]}
            table = [list(itertools.chain.from_iterable(data))] if single else data
        else:
            table, single = [data.b64 if start == b'{"' else data], True
        if self._categories or len(table) > self.max_rows or set(map(len, table)) != {self._size}:
            return self._slow(body)
        if self.takes.dtype == "uint8":
            rows = np.frombuffer(b"".join(map(bytes, table)), np.uint8)
        else:
            rows = np.array(table, np.float32)
        return rows.reshape(-1, *self.takes.shape), single

    def fit(self, array: Array) -> tuple[Array, bool]:
        """As `rows`, for an array of numbers of any dtype: [*shape] or [N, *shape], or an image's height and width."""
        for shape in filter(None, (tuple(self.takes.shape), self._image)):
            single = array.shape == shape
            if single or array.shape[1:] == shape:
                break
        else:
            got = "×".join(map(str, array.shape)) or "a number"
            raise Refusal(422, f"expected {self.expected()}, got an array of {got}")
        self._count(1 if single else len(array))
        table = array.reshape(-1, self._size)
        if (
            array.dtype != self.takes.dtype
            or self._categories
            or (array.dtype == np.float32 and not np.isfinite(array).all())
        ):
            table = self._checked(table.astype(np.float64), not single)
        return table.reshape(-1, *self.takes.shape), single

    def expected(self) -> str:
        """What one row has to be, in words."""
        takes = self.takes
        names = f" ({', '.join(feature.name for feature in takes.features)})" if takes.features else ""
        lists = f" or {takes.image[0]}×{takes.image[1]} lists" if takes.image else ""
        whole = ", whole from 0 to 255" if takes.dtype == "uint8" else ""
        return f"{self._size} numbers{names}{lists}{whole}"

    def _slow(self, body: bytes) -> tuple[Array, bool]:
        """Every form of JSON, value by value, for a sentence about the first that is wrong."""
        try:
            data = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"the body can't be read as JSON ({error}): expected {self.expected()}") from None
        listed = isinstance(data, list) and data and isinstance(data[0], list | dict) and not self._is_image(data)
        items = data if listed else [data]
        self._count(len(items))
        values = [self._row(item, f"row {i}, " if listed else "") for i, item in enumerate(items)]
        try:
            table = np.array(values, dtype=np.float64)
        except OverflowError:
            raise Refusal(422, f"a number is too large: expected {self.expected()}") from None
        return self._checked(table, bool(listed)).reshape(-1, *self.takes.shape), not listed

    def _count(self, rows: int) -> None:
        if not rows:
            raise Refusal(422, f"no rows: expected {self.expected()}")
        if rows > self.max_rows:
            raise Refusal(413, f"at most {self.max_rows} rows a request, got {rows}: send several requests")

    def _checked(self, table: Array, listed: bool) -> Array:
        """The table [N, values] in the input's dtype."""
        if self.takes.dtype == "uint8":
            fits, need = (table >= 0) & (table <= 255) & (table == np.floor(table)), "a whole number from 0 to 255"
        else:
            fits, need = np.abs(table) <= _FLOAT32, "a number within float32's range"
        if self._categories and fits.all():
            fits, need = (
                ~self.takes.no_category(table),
                "a category by its name or its place among the feature's values",
            )
        if not fits.all():
            i, j = np.argwhere(~fits)[0]
            where = f"row {i}, " if listed else ""
            raise Refusal(422, f"{where}{self._column(j)}: expected {need}, got {table[i, j]:.15g}")
        return table.astype(self.takes.dtype)

    def _row(self, item: Any, where: str) -> list[float]:
        """One row's numbers in the model's order; their range isn't checked yet."""
        takes = self.takes
        if isinstance(item, dict) and takes.features:
            names = [feature.name for feature in takes.features]
            missing, unknown = [n for n in names if n not in item], [n[:40] for n in item if n not in names]
            if missing or unknown:
                wrong = f"{', '.join(missing)} missing" if missing else f"{unknown[0]!r} is no feature"
                raise Refusal(422, f"{where}{wrong}: expected exactly {', '.join(names)}")
            item = [item[name] for name in names]
        elif isinstance(item, dict) and takes.image and list(item) == ["b64"]:
            try:
                item = list(base64.b64decode(item["b64"], validate=True))
            except (binascii.Error, TypeError, ValueError):
                raise Refusal(422, f"{where}b64: expected base64 of {self._size} bytes") from None
        elif self._is_image(item):
            item = list(itertools.chain.from_iterable(item))
        if self._categories and isinstance(item, list) and len(item) == self._size:
            try:
                pairs = zip(takes.features or [], item, strict=True)
                item = [f.number(v) if f.values and isinstance(v, str) else v for f, v in pairs]
            except ValueError as error:
                raise Refusal(422, f"{where}{error}") from None
        if not isinstance(item, list) or len(item) != self._size:
            got = f"{len(item)} values" if isinstance(item, list) else _KINDS.get(type(item), "a number")
            raise Refusal(422, f"{where}expected {self.expected()}, got {got}")
        if not set(map(type, item)) <= {int, float}:  # exact types: a bool is an int to Python, not to a model
            j = next(j for j, value in enumerate(item) if type(value) not in (int, float))
            got = _KINDS.get(type(item[j]), "a number")
            raise Refusal(422, f"{where}{self._column(j)}: expected a number, got {got}")
        return item

    def _is_image(self, item: Any) -> bool:
        if not self._image or not isinstance(item, list) or len(item) != self._image[0]:
            return False
        return all(isinstance(line, list) and len(line) == self._image[1] for line in item)

    def _column(self, j: int) -> str:
        return self.takes.features[j].name if self.takes.features else f"value {j}"


def numbers(raw: bytes, dtype: np.dtype[Any], shape: Sequence[int], fortran: bool = False) -> Array:
    """The array whose memory is `raw`. Raises Refusal where shape and length disagree."""
    need = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or need != len(raw):
        raise Refusal(400, f"an array of {'×'.join(map(str, shape))} {dtype} has {need} bytes, here are {len(raw)}")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _npy(body: bytes) -> Array:
    """The array in a .npy file; never unpickles."""
    wide = 2 if body[6:7] == b"\1" else 4
    end = 8 + wide + int.from_bytes(body[8 : 8 + wide], "little")
    if end > min(len(body), 4096):
        raise Refusal(400, "the .npy header is cut off or damaged")
    shape, fortran, dtype = _npy_header(body[:end])
    return numbers(memoryview(body)[end:], dtype, shape, fortran)  # type: ignore[arg-type]


@functools.lru_cache(64)  # a client's requests mostly have one shape
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except Exception as error:  # noqa: BLE001 - numpy's parser raises what Python's does
        raise Refusal(400, f"the .npy header can't be read: {str(error)[:80] or type(error).__name__}") from None
    if dtype.kind not in "iuf":
        raise Refusal(422, f"a .npy of {str(dtype)[:40]}: expected integers or floats")
    return shape, fortran, dtype
