"""Request bodies into the rows a model takes: every value is checked, none is guessed. Pure functions, no state."""

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from modelkit.artifact import Input
from starlette.exceptions import HTTPException

MAX_ROWS = 4096  # per request
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def rows(body: bytes, takes: Input) -> tuple[npt.NDArray[Any], bool]:
    """Rows [N, *shape] of the input's dtype from a JSON body, and whether it was one row on its own.

    Raises HTTPException: 400 for what isn't JSON, 413 for more than MAX_ROWS rows, 422 for what the model doesn't take.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"the body can't be read as JSON ({error}): expected {expected(takes)}") from None
    listed = isinstance(data, list) and data and isinstance(data[0], list | dict) and not _is_image(data, takes)
    items = data if listed else [data]
    if len(items) > MAX_ROWS:
        raise HTTPException(413, f"at most {MAX_ROWS} rows a request, got {len(items)}: send several requests")
    values = [_row(item, takes, f"row {i}, " if listed else "") for i, item in enumerate(items)]
    try:
        table = np.array(values, dtype=np.float64)
    except OverflowError:
        raise HTTPException(422, f"a number is too large: expected {expected(takes)}") from None
    if takes.dtype == "uint8":
        fits, need = (table >= 0) & (table <= 255) & (table == np.floor(table)), "a whole number from 0 to 255"
    else:
        fits, need = np.abs(table) <= np.finfo(np.float32).max, "a number within float32's range"
    if not fits.all():
        i, j = np.argwhere(~fits)[0]
        where = f"row {i}, " if listed else ""
        raise HTTPException(422, f"{where}{_column(takes, j)}: expected {need}, got {table[i, j]:.15g}")
    return table.astype(takes.dtype).reshape(-1, *takes.shape), not listed


def expected(takes: Input) -> str:
    """What one row has to be, in words."""
    names = f" ({', '.join(feature.name for feature in takes.features)})" if takes.features else ""
    lists = f" or {takes.image[0]}×{takes.image[1]} lists" if takes.image else ""
    whole = ", whole from 0 to 255" if takes.dtype == "uint8" else ""
    return f"{math.prod(takes.shape)} numbers{names}{lists}{whole}"


def examples(takes: Input) -> dict[str, Any]:
    """A body of each form that the model takes, by the form's name: features midway in their ranges, blank images."""
    features, image = takes.features or [], takes.image
    numbers = [round((f.min + f.max) / 2, 2) for f in features] or [0] * math.prod(takes.shape)
    forms: dict[str, Any] = {"numbers": numbers, "rows": [numbers, numbers]}
    if features:
        forms["named features"] = {f.name: value for f, value in zip(features, numbers, strict=True)}
    if image:
        forms["image"] = [[0] * image[1]] * image[0]
    return forms


def _row(item: Any, takes: Input, where: str) -> list[float]:
    """One row's numbers in the model's order; their range isn't checked yet."""
    if isinstance(item, dict) and takes.features:
        names = [feature.name for feature in takes.features]
        missing, unknown = [n for n in names if n not in item], [n[:40] for n in item if n not in names]
        if missing or unknown:
            wrong = f"{', '.join(missing)} missing" if missing else f"{unknown[0]!r} is no feature"
            raise HTTPException(422, f"{where}{wrong}: expected exactly {', '.join(names)}")
        item = [item[name] for name in names]
    elif _is_image(item, takes):
        item = list(itertools.chain.from_iterable(item))
    if not isinstance(item, list) or len(item) != math.prod(takes.shape):
        got = f"{len(item)} values" if isinstance(item, list) else _kind(item)
        raise HTTPException(422, f"{where}expected {expected(takes)}, got {got}")
    if not set(map(type, item)) <= {int, float}:  # exact types: a bool is an int to Python, not to a model
        j = next(j for j, value in enumerate(item) if type(value) not in (int, float))
        raise HTTPException(422, f"{where}{_column(takes, j)}: expected a number, got {_kind(item[j])}")
    return item


def _is_image(item: Any, takes: Input) -> bool:
    if not takes.image or not isinstance(item, list) or len(item) != takes.image[0]:
        return False
    return all(isinstance(line, list) and len(line) == takes.image[1] for line in item)


def _column(takes: Input, j: int) -> str:
    return takes.features[j].name if takes.features else f"value {j}"


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
