"""Request bodies into the rows a model takes: every value is checked, none is guessed."""

import functools
import io
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from limits import Refusal
from modelkit.artifact import Feature, Input

Array = npt.NDArray[Any]
NPY = b"\x93NUMPY"
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FLOAT32 = float(np.finfo(np.float32).max)
_NUMBER: dict[str, Any] = {
    "float32": Annotated[float, msgspec.Meta(ge=-_FLOAT32, le=_FLOAT32)],
    # Also 7.0, which is what numpy's tolist() makes of a 7 in an array of floats.
    "uint8": Annotated[int, msgspec.Meta(ge=0, le=255)] | Annotated[float, msgspec.Meta(ge=0, le=255, multiple_of=1)],
}


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
    """Bodies of /predict for one input contract: JSON or .npy."""

    def __init__(self, takes: Input, max_rows: int) -> None:
        self.takes, self.max_rows = takes, max_rows
        number: Any = _NUMBER[takes.dtype]
        self._size, self._image = math.prod(takes.shape), tuple(takes.image or ())
        self._categories = {j: f.values for j, f in enumerate(takes.features or []) if f.values}
        self._decoders = {start: msgspec.json.Decoder(form).decode for start, form in forms(takes).items()}
        if takes.image:  # one image as its lines, or several as rows
            self._decoders[b"[["] = msgspec.json.Decoder(list[list[number]]).decode

    def rows(self, body: bytes) -> tuple[Array, bool]:
        """Rows [N, *shape] of the input's dtype, and whether it was one row on its own.

        Raises Refusal: 400 for what can't be read, 413 for too many rows, 422 for what the model doesn't take.
        """
        if body.startswith(NPY):
            return self.fit(_npy(body))
        start = body[:256].translate(None, b" \t\r\n")
        start = next((s for s in (start[:3], start[:2]) if s in self._decoders), start[:1])
        try:
            data = self._decoders.get(start, self._decoders[b"["])(body)
        except msgspec.ValidationError as error:
            raise Refusal(422, f"{error}: expected {self.expected()}") from None
        except UNREADABLE as error:
            raise Refusal(400, f"the body can't be read as JSON ({error}): expected {self.expected()}") from None
        single = start in (b"[", b"{")
        table = [data] if single else data
        if start == b"[[" and self._image:
            if single := len(data) == self._image[0] and set(map(len, data)) == {self._image[1]}:
                table = [list(itertools.chain.from_iterable(data))]
            elif wrong := set(map(len, data)) - {self._size}:
                raise Refusal(422, f"a row has {wrong.pop()} values: expected {self.expected()}")
        elif start == b"[[[":
            table = [list(itertools.chain.from_iterable(lines)) for lines in data]
        elif start.endswith(b"{"):
            table = [msgspec.structs.astuple(item) for item in table]
            table = [item[0] for item in table] if self._image else table
        self._count(len(table))
        if self._categories:
            table = [[self._code(j, value) for j, value in enumerate(row)] for row in table]
        if self.takes.dtype == "uint8":
            try:
                rows = np.frombuffer(b"".join(map(bytes, table)), np.uint8)
            except TypeError:  # floats among them; they are whole
                rows = np.array(table, np.uint8)
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
        if array.dtype != np.uint8 or self.takes.dtype != "uint8":
            table = self._checked(table)
        return table.reshape(-1, *self.takes.shape), single

    def expected(self) -> str:
        """What one row has to be, in words."""
        takes = self.takes
        names = f" ({', '.join(map(_told, takes.features))})" if takes.features else ""
        lists = f" or {takes.image[0]}×{takes.image[1]} lists" if takes.image else ""
        whole = ", whole from 0 to 255" if takes.dtype == "uint8" else ""
        kind = "values" if self._categories else "numbers"
        return f"{self._size} {kind}{names}{lists}{whole}"

    def _code(self, column: int, value: Any) -> float:
        return self._categories[column].index(value) if isinstance(value, str) else value

    def _count(self, rows: int) -> None:
        if not rows:
            raise Refusal(422, f"no rows: expected {self.expected()}")
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
            column = self.takes.features[j].name if self.takes.features else f"value {j}"
            raise Refusal(422, f"row {i}, {column} is {table[i, j]:.15g}: expected {self.expected()}")
        return table.astype(self.takes.dtype)


def count(shape: Sequence[int]) -> int:
    """The number of values in that shape. Raises Refusal for one that no request has and numpy doesn't hold."""
    if len(shape) > 32 or bool in map(type, shape) or math.prod(length or 1 for length in shape) > 2**40:
        raise Refusal(422, "a shape has at most 32 whole numbers, and is no larger than a request")
    return math.prod(shape)


def numbers(raw: bytes, dtype: np.dtype[Any], shape: Sequence[int], fortran: bool = False) -> Array:
    """The array whose memory is `raw`. Raises Refusal where shape and length disagree."""
    need = count(shape) * dtype.itemsize
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


def _fixed(items: Any, count: int) -> Any:
    return Annotated[list[items], msgspec.Meta(min_length=count, max_length=count)]


def _told(feature: Feature) -> str:
    return f"{feature.name}: {' or '.join(feature.values)}" if feature.values else feature.name
