"""What the HTTP interface answers, for good and for bad bodies."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import models
import pytest
import service
from interface import ask, client, lane
from interface import service as make_service
from lane import Lane
from limits import Limits
from predict import Predictor

FLOWER = [5.1, 3.5, 1.4, 0.2]
NAMED = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
TAKES = "4 numbers (sepal_length, sepal_width, petal_length, petal_width)"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def iris(root: Path) -> Lane:
    models.promote(root, "iris", models.iris_rule())
    return lane(make_service(root, "iris"))


@pytest.fixture(scope="module")
def mnist(root: Path) -> Lane:
    models.promote(root, "mnist", models.brightest_of_ten())
    return lane(make_service(root, "mnist"))


def pixels(digit: int) -> list[int]:
    return [255 * (i == digit) for i in range(784)]


def lines(flat: list[Any]) -> list[list[Any]]:
    return [flat[i : i + 28] for i in range(0, 784, 28)]


@pytest.mark.parametrize("path", ["/predict", "/predict/"])
@pytest.mark.parametrize("body", [FLOWER, NAMED, dict(reversed(NAMED.items()))])
def test_one_flower_is_answered_with_class_label_and_model(iris: Lane, root: Path, path: str, body: Any) -> None:
    response = ask(iris, "POST", path, body)
    assert response.status_code == 200
    answer = response.json()
    digest = (root / "iris" / "CURRENT").read_text().strip()
    assert (answer["prediction"], answer["label"]) == (0, "setosa")
    assert (answer["model"], answer["digest"]) == ("iris", digest)
    assert len(answer["probabilities"]) == 3
    assert answer["probabilities"][0] > 0.99
    assert sum(answer["probabilities"]) == pytest.approx(1)


def test_the_body_needs_no_content_type(iris: Lane) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d says unless told otherwise
    assert ask(iris, "POST", "/predict", FLOWER).status_code == 200
    assert ask(iris, "POST", "/predict", FLOWER, headers=form).status_code == 200


@pytest.mark.parametrize("as_objects", [False, True])
def test_a_list_of_rows_is_answered_in_its_order(iris: Lane, as_objects: bool) -> None:
    rows: list[Any] = [[5.1, 3.5, length, 0.2] for length in (6, 1.4, 4, 1)]
    body = [dict(zip(NAMED, row, strict=True)) for row in rows] if as_objects else rows
    answer = ask(iris, "POST", "/predict", body).json()
    assert answer["predictions"] == [2, 0, 1, 0]
    assert answer["labels"] == ["virginica", "setosa", "versicolor", "setosa"]
    assert [len(p) for p in answer["probabilities"]] == [3] * 4


def test_a_list_with_one_row_is_answered_with_a_list(iris: Lane) -> None:
    assert ask(iris, "POST", "/predict", [FLOWER]).json()["predictions"] == [0]


@pytest.mark.parametrize("body", [pixels(7), lines(pixels(7)), [float(p) for p in pixels(7)]])
def test_an_image_is_784_whole_numbers_or_28_lists(mnist: Lane, body: Any) -> None:
    answer = ask(mnist, "POST", "/predict", body).json()
    assert (answer["prediction"], answer["label"]) == (7, "7")


@pytest.mark.parametrize("form", [pixels, lambda digit: lines(pixels(digit))])
def test_several_images_are_answered_in_their_order(mnist: Lane, form: Any) -> None:
    assert ask(mnist, "POST", "/predict", [form(digit) for digit in (3, 1, 4)]).json()["predictions"] == [3, 1, 4]


def test_a_body_that_is_answered_in_a_thread_gets_the_same_answers(mnist: Lane) -> None:
    digits = [i % 10 for i in range(100)]
    body = [pixels(digit) for digit in digits]
    assert len(json.dumps(body)) > service.INLINE
    assert ask(mnist, "POST", "/predict", body).json()["predictions"] == digits


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
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
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_body_that_is_no_flower_is_refused_in_a_sentence(iris: Lane, body: Any, status: int, sentence: str) -> None:
    response = ask(iris, "POST", "/predict", body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([*pixels(1)[:-1], 256], "value 783: expected a whole number from 0 to 255, got 256"),
        ([*pixels(1)[:-1], -1], "value 783: expected a whole number from 0 to 255, got -1"),
        ([p / 255 * 0.5 for p in pixels(1)], "value 1: expected a whole number from 0 to 255, got 0.5"),
        ([pixels(1), [300] * 784], "row 1, value 0: expected a whole number from 0 to 255, got 300"),
        ([True] * 784, "value 0: expected a number, got a boolean"),
        (pixels(1)[:100], "expected 784 numbers or 28×28 lists, whole from 0 to 255, got 100 values"),
        (lines(pixels(1))[:27], "row 0, expected 784 numbers or 28×28 lists, whole from 0 to 255, got 28 values"),
        ({"pixel": 1}, "expected 784 numbers or 28×28 lists, whole from 0 to 255, got an object"),
    ],
)
def test_a_body_that_is_no_image_is_refused_in_a_sentence(mnist: Lane, body: Any, sentence: str) -> None:
    response = ask(mnist, "POST", "/predict", body)
    assert response.status_code == 422
    assert response.json() == {"error": sentence}


def test_a_body_without_an_announced_length_is_cut_off_at_the_limit(iris: Lane) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 64 * 2**20:
            sent += 2**20
            yield b" " * 2**20

    async def once() -> httpx.Response:
        async with client(iris) as asking:
            return await asking.post("/predict", content=endless())

    assert asyncio.run(once()).status_code == 413
    assert sent <= Limits().body + 2 * 2**20


def test_the_model_endpoint_answers_the_manifest(iris: Lane, root: Path) -> None:
    manifest = ask(iris, "GET", "/model").json()
    assert manifest["digest"] == (root / "iris" / "CURRENT").read_text().strip()
    assert manifest["classes"] == models.SPECIES
    assert [feature["name"] for feature in manifest["input"]["features"]] == list(NAMED)


def test_the_documentation_page_is_there(iris: Lane) -> None:
    assert ask(iris, "GET", "/docs").status_code == 200


def test_an_unknown_path_and_a_wrong_method_use_the_same_error_format(iris: Lane) -> None:
    assert ask(iris, "GET", "/nothing").json() == {"error": "Not Found"}
    wrong = ask(iris, "GET", "/predict")
    assert (wrong.status_code, wrong.json(), wrong.headers["allow"]) == (405, {"error": "Method Not Allowed"}, "POST")


def test_a_bug_is_answered_without_its_traceback(iris: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "answer", lambda *_: 1 / 0)
    response = ask(iris, "POST", "/predict", FLOWER)
    assert response.status_code == 500
    assert response.json() == {"error": "a bug in the server: its log says more"}


def test_without_a_model_it_is_alive_but_not_ready(tmp_path: Path) -> None:
    server = lane(make_service(tmp_path))
    assert ask(server, "GET", "/healthz").json() == {"status": "alive"}
    for method, path in (("GET", "/readyz"), ("GET", "/model"), ("POST", "/predict")):
        response = ask(server, method, path, FLOWER if method == "POST" else None)
        assert response.status_code == 503
        assert "no model 'iris'" in response.json()["error"]
        assert "run its search first" in response.json()["error"]
        assert int(response.headers["retry-after"]) > 0


def test_it_can_be_ready_before_it_has_a_model(tmp_path: Path) -> None:
    response = ask(lane(make_service(tmp_path, ready="process")), "GET", "/readyz")
    assert response.status_code == 200
    assert response.json()["digest"] is None
    assert "run its search first" in response.json()["problem"]


def test_with_a_model_it_is_ready_and_names_it(iris: Lane, root: Path) -> None:
    digest = (root / "iris" / "CURRENT").read_text().strip()
    assert ask(iris, "GET", "/readyz").json() == {"ready": True, "model": "iris", "digest": digest, "problem": None}
