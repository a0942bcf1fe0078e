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
    ([5.1, 3.5, 1.4], 422, f"Expected `array` of length >= 4: expected {TAKES}"),
    ([*FLOWER, 1], 422, f"Expected `array` of length <= 4: expected {TAKES}"),
    ([], 422, "Expected `array` of length >= 4"),
    ([[]], 422, "Expected `array` of length >= 4 - at `$[0]`"),
    ([FLOWER, [1, 2]], 422, "Expected `array` of length >= 4 - at `$[1]`"),
    ([FLOWER, 3], 422, "Expected `array`, got `int` - at `$[1]`"),
    ([[FLOWER]], 422, "Expected `float`, got `array` - at `$[0][0]`"),
    (5, 422, "Expected `array`, got `int`"),
    (b"null", 422, "Expected `array`, got `null`"),
    ("5.1", 422, "Expected `array`, got `str`"),
    ([5.1, 3.5, "1.4", 0.2], 422, f"Expected `float`, got `str` - at `$[2]`: expected {TAKES}"),
    ([5.1, 3.5, 1.4, True], 422, "Expected `float`, got `bool` - at `$[3]`"),
    ([FLOWER, [5.1, None, 1.4, 0.2]], 422, "Expected `float`, got `null` - at `$[1][1]`"),
    ([5.1, 3.5, [1.4], 0.2], 422, "Expected `float`, got `array` - at `$[2]`"),
    ([5.1, 3.5, 1e39, 0.2], 422, "Expected `float` <= 3.4028234663852886e+38 - at `$[2]`"),
    (b"[5.1, 3.5, 1" + b"0" * 400 + b", 0.2]", 422, "Number out of range - at `$[2]`"),
    ({**NAMED, "petal_size": 1}, 422, "Object contains unknown field `petal_size`"),
    ({"sepal_length": 5.1, "petal_width": 1}, 422, "Object missing required field `sepal_width`"),
    ([NAMED, {}], 422, "Object missing required field `sepal_length` - at `$[1]`"),
    ({**NAMED, "petal_width": "0.2"}, 422, "Expected `float`, got `str` - at `$.petal_width`"),
    ([FLOWER] * 4097, 413, "at most 4096 rows a request, got 4097"),
    (b"[5.1, 3.5, NaN, 0.2]", 400, "the body can't be read as JSON"),
    (b"[5.1, 3.5, 1e400, 0.2]", 422, "Number out of range - at `$[2]`"),
    (b"[5.1, 3.5,", 400, "the body can't be read as JSON"),
    (b"", 400, "the body can't be read as JSON"),
    (b'["\xff"]', 422, "Expected `float`, got `str` - at `$[0]`"),
    (b'{"\xff": 1}', 400, "the body can't be read as JSON"),
    (b"[" * 100_000, 422, "Expected `float`, got `array` - at `$[0][0]`"),
    (b" " * (8 * 2**20 + 1), 413, "at most 8388608 bytes a request"),
]

NO_IMAGES: list[tuple[Any, str]] = [
    ([*pixels(1)[:-1], 256], "Expected `int` <= 255 - at `$[783]`"),
    ([*pixels(1)[:-1], -1], "Expected `int` >= 0 - at `$[783]`"),
    ([*pixels(1)[:-1], 7.5], "Expected `float` that's a multiple of 1.0 - at `$[783]`"),
    ([p / 255 * 0.5 for p in pixels(1)], "Expected `float` that's a multiple of 1.0 - at `$[1]`"),
    ([256.0] * 784, "Expected `float` <= 255.0 - at `$[0]`"),
    ([-1.0] * 784, "Expected `float` >= 0.0 - at `$[0]`"),
    ([pixels(1), [300] * 784], "Expected `int` <= 255 - at `$[1][0]`"),
    ([True] * 784, "Expected `int | float`, got `bool` - at `$[0]`"),
    (pixels(1)[:100], "Expected `array` of length >= 784"),
    (lines(pixels(1))[:27], "a row has 28 values"),
    ([lines(pixels(1))[:27]], "Expected `array` of length >= 28 - at `$[0]`"),
    ({"pixel": 1}, "Object contains unknown field `pixel`"),
    (b"[" * 100_000, "Expected `int | float`, got `array` - at `$[0][0][0]`"),
]
