"""Good and bad bodies, for whatever takes them."""

from typing import Any

FLOWER = [5.1, 3.5, 1.4, 0.2]
NAMED = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
TAKES = "4 numbers (sepal_length, sepal_width, petal_length, petal_width)"


def pixels(digit: int) -> list[int]:
    """An image of `brightest_of_ten`'s digit."""
    return [255 * (i == digit) for i in range(784)]


def lines(flat: list[Any]) -> list[list[Any]]:
    """The 28 lists of an image."""
    return [flat[i : i + 28] for i in range(0, 784, 28)]


NO_FLOWERS: list[tuple[Any, int, str]] = [
    ([5.1, 3.5, 1.4], 422, f"expected {TAKES}, got 3 values"),
    ([*FLOWER, 1], 422, f"expected {TAKES}, got 5 values"),
    ([], 422, f"expected {TAKES}, got 0 values"),
    ([[]], 422, f"row 0, expected {TAKES}, got 0 values"),
    ([FLOWER, [1, 2]], 422, f"row 1, expected {TAKES}, got 2 values"),
    ([FLOWER, 3], 422, f"row 1, expected {TAKES}, got a number"),
    ([[FLOWER]], 422, f"row 0, expected {TAKES}, got 1 values"),
    (5, 422, f"expected {TAKES}, got a number"),
    (b"null", 422, f"expected {TAKES}, got null"),
    ("5.1", 422, f"expected {TAKES}, got a string"),
    ([5.1, 3.5, "1.4", 0.2], 422, "petal_length: expected a number, got a string"),
    ([5.1, 3.5, 1.4, True], 422, "petal_width: expected a number, got a boolean"),
    ([FLOWER, [5.1, None, 1.4, 0.2]], 422, "row 1, sepal_width: expected a number, got null"),
    ([5.1, 3.5, [1.4], 0.2], 422, "petal_length: expected a number, got a list"),
    ([5.1, 3.5, 1e39, 0.2], 422, "petal_length: expected a number within float32's range, got 1e+39"),
    (b"[5.1, 3.5, 1" + b"0" * 400 + b", 0.2]", 422, f"a number is too large: expected {TAKES}"),
    ({**NAMED, "petal_size": 1}, 422, "'petal_size' is no feature: expected exactly sepal_length, "),
    ({"sepal_length": 5.1, "petal_width": 1}, 422, "sepal_width, petal_length missing: expected exactly "),
    ([NAMED, {}], 422, "row 1, sepal_length, sepal_width, petal_length, petal_width missing: "),
    ({**NAMED, "petal_width": "0.2"}, 422, "petal_width: expected a number, got a string"),
    ([FLOWER] * 4097, 413, "at most 4096 rows a request, got 4097"),
    (b"[5.1, 3.5, NaN, 0.2]", 400, "the body can't be read as JSON"),
    (b"[5.1, 3.5, 1e400, 0.2]", 400, "the body can't be read as JSON"),
    (b"[5.1, 3.5,", 400, "the body can't be read as JSON"),
    (b"", 400, "the body can't be read as JSON"),
    (b'["\xff"]', 400, "the body can't be read as JSON"),
    (b"[" * 100_000, 400, "the body can't be read as JSON"),
    (b" " * (8 * 2**20 + 1), 413, "at most 8388608 bytes a request"),
]

NO_IMAGES: list[tuple[Any, str]] = [
    ([*pixels(1)[:-1], 256], "value 783: expected a whole number from 0 to 255, got 256"),
    ([*pixels(1)[:-1], -1], "value 783: expected a whole number from 0 to 255, got -1"),
    ([p / 255 * 0.5 for p in pixels(1)], "value 1: expected a whole number from 0 to 255, got 0.5"),
    ([pixels(1), [300] * 784], "row 1, value 0: expected a whole number from 0 to 255, got 300"),
    ([True] * 784, "value 0: expected a number, got a boolean"),
    (pixels(1)[:100], "expected 784 numbers or 28×28 lists, whole from 0 to 255, got 100 values"),
    (lines(pixels(1))[:27], "row 0, expected 784 numbers or 28×28 lists, whole from 0 to 255, got 28 values"),
    ({"pixel": 1}, "expected 784 numbers or 28×28 lists, whole from 0 to 255, got an object"),
]
