"""Request bodies into the rows a model takes: every value is checked, none is guessed."""

import contextlib
import functools
import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from limits import Refusal
from modelkit.artifact import Feature, Input

Array = npt.NDArray[Any]
NPY = b"\x93NUMPY"
_FLOAT32 = float(np.finfo(np.float32).max)
# Also 7.0, which is what numpy's tolist() makes of a 7 in an array of floats.
_Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)] | Annotated[float, msgspec.Meta(ge=0, le=255, multiple_of=1)]
_NUMBER: dict[str, Any] = {"float32": Annotated[float, msgspec.Meta(ge=-_FLOAT32, le=_FLOAT32)], "uint8": _Pixel}


def forms(takes: Input) -> dict[bytes, Any]:
    """The type of each form of JSON body, by the brackets that it begins with."""
    number: Any = _NUMBER[takes.dtype]
    features, size = takes.features or [], math.prod(takes.shape)
    kinds = [Literal[*f.values, *range(len(f.values))] if f.values else number for f in features]
    row: Any = tuple[*kinds] if any(f.values for f in features) else _fixed(number, size)  # type: ignore[valid-type]
    found = {b"[": row, b"[[": list[row]}
    if features:
        fields = [(f"f{i}", kind, msgspec.field(name=features[i].name)) for i, kind in enumerate(kinds)]
        named = msgspec.defstruct("Row", fields, forbid_unknown_fields=True)
        found |= {b"{": named, b"[{": list[named]}  # type: ignore[valid-type]
    if takes.image:
        lines = _fixed(_fixed(number, takes.image[1]), takes.image[0])
        text = Annotated[bytes, msgspec.Meta(min_length=size, max_length=size)]
        coded = msgspec.defstruct("Image", [("b64", text)], forbid_unknown_fields=True)
        found |= {b"[[[": list[lines], b"{": coded, b"[{": list[coded]}  # type: ignore[valid-type]
    return found


class Reader:
    """Bodies of /predict for one input contract: JSON or .npy. `expected` says what one row has to be, in words."""

    def __init__(self, takes: Input, max_rows: int) -> None:
        self.takes, self.max_rows = takes, max_rows
        self._size, self._features = math.prod(takes.shape), takes.features or []
        self._has_categories = any(feature.values for feature in self._features)
        self._shapes = [tuple(shape) for shape in (takes.shape, takes.image) if shape]  # of one row
        self._decoders = {start: msgspec.json.Decoder(form).decode for start, form in forms(takes).items()}
        if takes.image:  # one image as its lines, or several as rows; that they are pixels is seen as they become bytes
            self._decoders[b"[["] = msgspec.json.Decoder(list[list[int | float]]).decode
        names = f" ({', '.join(map(_told, self._features))})" if takes.features else ""
        lists = f" or {takes.image[0]}×{takes.image[1]} lists" if takes.image else ""
        whole = ", whole from 0 to 255" if takes.dtype == "uint8" else ""
        self.expected = f"{self._size} {'values' if self._has_categories else 'numbers'}{names}{lists}{whole}"

    def rows(self, body: bytes) -> tuple[Array, bool]:
        """Rows [N, *shape] of the input's dtype, and whether it was one row on its own.

        Raises Refusal: 400 for what can't be read, 413 for too many rows, 422 for what the model doesn't take.
        """
        if body.startswith(NPY):
            return self.fit(_npy(body))
        start = body[:256].translate(None, b" \t\r\n")
        start = next((s for s in (start[:3], start[:2]) if s in self._decoders), start[:1])
        data = read(self._decoders.get(start, self._decoders[b"["]), body, self.expected)
        single = start in (b"[", b"{")
        table = [data] if single else data
        if start == b"[[" and self.takes.image:
            lengths = set(map(len, table))
            single = (len(table), *lengths) == self._shapes[1]
            if not single and (wrong := lengths - {self._size}):
                raise Refusal(422, f"a row has {wrong.pop()} values: expected {self.expected}")
        elif start == b"[[[":
            table = list(itertools.chain.from_iterable(table))
        elif start.endswith(b"{"):
            table = [msgspec.structs.astuple(item) for item in table]
            table = [item[0] for item in table] if self.takes.image else table
        if self._has_categories:
            table = [list(map(_number, self._features, row)) for row in table]
        rows = _pixels(table, self.expected) if self.takes.dtype == "uint8" else np.array(table, np.float32)
        rows = rows.reshape(-1, *self.takes.shape)
        self._count(len(rows))
        return rows, single

    def fit(self, array: Array) -> tuple[Array, bool]:
        """As `rows`, for an array of numbers of any dtype: [*shape] or [N, *shape], or an image's height and width."""
        single = array.shape in self._shapes
        if not single and array.shape[1:] not in self._shapes:
            got = "×".join(map(str, array.shape)) or "a number"
            raise Refusal(422, f"expected {self.expected}, got an array of {got}")
        self._count(1 if single else len(array))
        table = array.reshape(-1, self._size)
        if array.dtype != np.uint8 or self.takes.dtype != "uint8":
            table = self._checked(table)
        return table.reshape(-1, *self.takes.shape), single

    def _count(self, rows: int) -> None:
        if not rows:
            raise Refusal(422, f"no rows: expected {self.expected}")
        if rows > self.max_rows:
            raise Refusal(413, f"at most {self.max_rows} rows a request, got {rows}: send several requests")

    def _checked(self, table: Array) -> Array:
        """The table [N, values] in the input's dtype."""
        if self.takes.dtype == "uint8":
            fits = (table >= 0) & (table <= 255) & (table == np.floor(table))
        else:
            fits = (np.abs(table, dtype=np.float64) <= _FLOAT32) & ~self.takes.no_category(table)
        if not fits.all():
            i, j = np.argwhere(~fits)[0]
            column = self._features[j].name if self._features else f"value {j}"
            raise Refusal(422, f"row {i}, {column} is {table[i, j]:.15g}: expected {self.expected}")
        return table.astype(self.takes.dtype)


def read(decode: Callable[[Any], Any], body: Any, expected: str) -> Any:
    """`decode(body)`. Raises Refusal: 400 for what is no JSON, 422 for what isn't as expected."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise Refusal(422, f"{error}: expected {expected}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body can't be read as JSON ({error}): expected {expected}") from None


def numbers(raw: Any, dtype: np.dtype[Any], shape: Sequence[int], order: Literal["C", "F"] = "C") -> Array:
    """The array in the memory of `raw`, a buffer. Raises Refusal where the shape is none, or not that of all of it."""
    size = memoryview(raw).nbytes
    with contextlib.suppress(TypeError, ValueError):
        array = np.ndarray(shape, dtype, raw, order=order)
        if array.nbytes == size:
            return array
    raise Refusal(400, f"{size / dtype.itemsize:.12g} numbers are no array of the shape {str(list(shape))[:60]}")


def _pixels(table: Any, expected: str) -> Array:
    """The values of lists of numbers as uint8 [values]. Raises Refusal for what is none."""
    try:
        return np.frombuffer(b"".join(map(bytes, table)), np.uint8)
    except (TypeError, ValueError):  # whole floats are among them, or what is no pixel
        convert = functools.partial(msgspec.convert, type=list[list[_Pixel]])
        return np.array(read(convert, table, expected), np.uint8)


def _npy(body: bytes) -> Array:
    """The array in a .npy file; never unpickles."""
    wide = 2 if body[6:7] == b"\1" else 4
    end = 8 + wide + int.from_bytes(body[8 : 8 + wide], "little")
    return numbers(memoryview(body)[end:], *_npy_header(body[: min(end, 4096)]))


@functools.lru_cache(64)  # a client's requests mostly have one shape
def _npy_header(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = parse(file)
    except Exception as error:  # noqa: BLE001 - numpy's parser raises what Python's does
        raise Refusal(400, f"the .npy header can't be read: {str(error)[:80] or type(error).__name__}") from None
    if dtype.kind not in "iuf":
        raise Refusal(422, f"a .npy of {str(dtype)[:40]}: expected integers or floats")
    return dtype, shape, "F" if fortran else "C"


def _fixed(items: Any, count: int) -> Any:
    return Annotated[list[items], msgspec.Meta(min_length=count, max_length=count)]


def _number(feature: Feature, value: Any) -> float:
    return feature.values.index(value) if feature.values and isinstance(value, str) else value


def _told(feature: Feature) -> str:
    return f"{feature.name}: {' or '.join(feature.values)}" if feature.values else feature.name
