"""What the HTTP interface answers, for good and for bad bodies."""

import asyncio
import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import bodies
import httpx
import models
import numpy as np
import pytest
from interface import ask, client, lane
from interface import live as make_live
from lane import Lane
from limits import Limits
from live import EVENTS, INLINE, Predictor
from modelkit import store
from modelkit.store import Store

SEVEN = bodies.pixels(7)


@pytest.mark.parametrize("path", ["/predict", "/predict/"])
@pytest.mark.parametrize("body", [bodies.FLOWER, bodies.NAMED, dict(reversed(bodies.NAMED.items()))])
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
    assert ask(iris, "POST", "/predict", bodies.FLOWER).status_code == 200
    assert ask(iris, "POST", "/predict", bodies.FLOWER, headers=form).status_code == 200


@pytest.mark.parametrize("as_objects", [False, True])
def test_a_list_of_rows_is_answered_in_its_order(iris: Lane, as_objects: bool) -> None:
    rows: list[Any] = [[5.1, 3.5, length, 0.2] for length in (6, 1.4, 4, 1)]
    body = [dict(zip(bodies.NAMED, row, strict=True)) for row in rows] if as_objects else rows
    answer = ask(iris, "POST", "/predict", body).json()
    assert answer["predictions"] == [2, 0, 1, 0]
    assert answer["labels"] == ["virginica", "setosa", "versicolor", "setosa"]
    assert [len(p) for p in answer["probabilities"]] == [3] * 4


def test_a_list_with_one_row_is_answered_with_a_list(iris: Lane) -> None:
    assert ask(iris, "POST", "/predict", [bodies.FLOWER]).json()["predictions"] == [0]


@pytest.mark.parametrize(
    "body",
    [
        bodies.pixels(7),
        bodies.lines(bodies.pixels(7)),
        [float(p) for p in bodies.pixels(7)],
        bodies.lines([float(p) for p in bodies.pixels(7)]),
        [*bodies.pixels(7)[:-1], 1.0],
    ],
)
def test_an_image_is_784_whole_numbers_or_28_lists(mnist: Lane, body: Any) -> None:
    answer = ask(mnist, "POST", "/predict", body).json()
    assert (answer["prediction"], answer["label"]) == (7, "7")


@pytest.mark.parametrize("form", [bodies.pixels, lambda digit: bodies.lines(bodies.pixels(digit))])
def test_several_images_are_answered_in_their_order(mnist: Lane, form: Any) -> None:
    assert ask(mnist, "POST", "/predict", [form(digit) for digit in (3, 1, 4)]).json()["predictions"] == [3, 1, 4]


def test_a_body_that_is_answered_in_a_thread_gets_the_same_answers(mnist: Lane) -> None:
    digits = [i % 10 for i in range(100)]
    body = [bodies.pixels(digit) for digit in digits]
    assert len(json.dumps(body)) > INLINE
    assert ask(mnist, "POST", "/predict", body).json()["predictions"] == digits


def test_json_may_be_indented(mnist: Lane) -> None:
    body = json.dumps([bodies.lines(bodies.pixels(digit)) for digit in (3, 1)], indent=16).encode()
    assert ask(mnist, "POST", "/predict", body).json()["predictions"] == [3, 1]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    bodies.NO_FLOWERS,
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_body_that_is_no_flower_is_refused_in_a_sentence(iris: Lane, body: Any, status: int, sentence: str) -> None:
    response = ask(iris, "POST", "/predict", body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    bodies.NO_IMAGES,
)
def test_a_body_that_is_no_image_is_refused_in_a_sentence(mnist: Lane, body: Any, sentence: str) -> None:
    response = ask(mnist, "POST", "/predict", body)
    assert response.status_code == 422
    assert response.json()["error"] == f"{sentence}: expected 784 numbers or 28×28 lists, whole from 0 to 255"


def test_a_body_without_an_announced_length_is_cut_off_at_the_limit(iris: Lane) -> None:
    held = []

    async def endless() -> Any:
        for _ in range(64):
            yield b" " * 2**20
            held.extend(len(connection._body) for connection in iris.connections)

    async def once() -> httpx.Response:
        async with client(iris) as asking:
            return await asking.post("/predict", content=endless())

    assert asyncio.run(once()).status_code == 413
    assert Limits().body // 2 < max(held) <= Limits().body + 2**20


def test_the_model_endpoint_answers_the_manifest(iris: Lane, root: Path) -> None:
    manifest = ask(iris, "GET", "/model").json()
    assert manifest["digest"] == (root / "iris" / "CURRENT").read_text().strip()
    assert manifest["classes"] == models.SPECIES
    for told in (manifest, *ask(iris, "GET", "/model/lineage").json()):
        assert not {"outcomes", "learned"} & told.keys()  # they tell of single rows
    assert [feature["name"] for feature in manifest["input"]["features"]] == list(bodies.NAMED)


def test_the_documentation_page_is_there(iris: Lane) -> None:
    assert ask(iris, "GET", "/docs").status_code == 200


def test_an_unknown_path_and_a_wrong_method_are_told_what_there_is(iris: Lane) -> None:
    for method, path, status, sentence in (
        ("GET", "/nothing", 404, "nothing is at /nothing: /docs lists what there is"),
        ("GET", "/static/nothing.js", 404, "nothing is at /static/nothing.js: /docs lists what there is"),
        ("GET", "/" + "x" * 1000, 404, f"nothing is at /{'x' * 79}: /docs lists what there is"),
        ("GET", "/predict", 405, "/predict takes POST, not GET: /docs lists what there is"),
        ("DELETE", "/model", 405, "/model takes GET, not DELETE: /docs lists what there is"),
        ("POST", "/static/page.js", 405, "/static/page.js takes GET, HEAD, not POST: /docs lists what there is"),
    ):
        response = ask(iris, method, path)
        assert (response.status_code, response.json()) == (status, {"error": sentence})
    assert ask(iris, "GET", "/predict").headers["allow"] == "POST"


def test_a_bug_is_answered_without_its_traceback(iris: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "answer", lambda *_: 1 / 0)
    response = ask(iris, "POST", "/predict", bodies.FLOWER)
    assert response.status_code == 500
    assert response.json() == {"error": "a bug in the server: its log says more"}


def test_without_a_model_it_is_alive_but_not_ready(tmp_path: Path) -> None:
    server = lane(make_live(tmp_path))
    assert ask(server, "GET", "/healthz").json() == {"status": "alive"}
    for method, path in (("GET", "/readyz"), ("GET", "/model"), ("POST", "/predict")):
        response = ask(server, method, path, bodies.FLOWER if method == "POST" else None)
        assert response.status_code == 503
        assert "no model 'iris'" in response.json()["error"]
        assert "run its search first" in response.json()["error"]
        assert int(response.headers["retry-after"]) > 0


def test_it_can_be_ready_before_it_has_a_model(tmp_path: Path) -> None:
    response = ask(lane(make_live(tmp_path, ready="process")), "GET", "/readyz")
    assert response.status_code == 200
    assert response.json()["digest"] is None
    assert "run its search first" in response.json()["problem"]


def test_with_a_model_it_is_ready_and_names_it(iris: Lane, root: Path) -> None:
    digest = (root / "iris" / "CURRENT").read_text().strip()
    assert ask(iris, "GET", "/readyz").json() == {"ready": True, "model": "iris", "digest": digest, "problem": None}


def npy_of(shape: str) -> bytes:
    """An .npy that says so of its 16 bytes, or none."""
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': %b, }\n" % shape.encode()
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + bytes(0 if "0," in shape[:3] else 16)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8"])
def test_an_npy_of_any_number_type_is_taken(iris: Lane, dtype: str) -> None:
    rows = np.array([[5, 3, 1, 0], [5, 3, 6, 2]], dtype)
    assert ask(iris, "POST", "/predict", npy(rows)).json()["labels"] == ["setosa", "virginica"]
    assert ask(iris, "POST", "/predict", npy(rows[1])).json()["label"] == "virginica"
    assert ask(iris, "POST", "/predict", npy(np.asfortranarray(rows))).json()["predictions"] == [0, 2]


def test_an_npy_of_images_may_have_their_shape(mnist: Lane) -> None:
    images = np.array([bodies.pixels(digit) for digit in (7, 0, 2)], np.uint8)
    for shape in ((3, 784), (3, 28, 28)):
        assert ask(mnist, "POST", "/predict", npy(images.reshape(shape))).json()["predictions"] == [7, 0, 2]
    assert ask(mnist, "POST", "/predict", npy(images[0].reshape(28, 28))).json()["prediction"] == 7


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (npy(np.zeros((2, 4), np.float32))[:-1], 400, "7.75 numbers are no array of the shape [2, 4]"),
        (npy(np.zeros((2, 4), np.float32)) + b"x", 400, "8.25 numbers are no array of the shape [2, 4]"),
        (npy(np.zeros(4))[:40], 400, "the .npy header can't be read"),
        (b"\x93NUMPY", 400, "the .npy header can't be read"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')", 400, "the .npy header can't be read"),
        (b"\x93NUMPY\x03\x00\x02\x00\x00\x00{}", 400, "the .npy header can't be read"),
        (npy_of(f"({'1,' * 66}4)"), 400, "4 numbers are no array of the shape [1, 1, "),
        (npy_of(f"(0, {2**62}, 8)"), 400, "0 numbers are no array of the shape [0, 46"),
        (npy_of(f"(0, {10**30})"), 400, "0 numbers are no array of the shape [0, 10"),
        (npy_of("(True, 4)"), 400, "4 numbers are no array of the shape [True, 4]"),
        (npy(np.array([None] * 4)), 422, "a .npy of object: expected integers or floats"),
        (npy(np.array(["a"] * 4)), 422, "a .npy of <U1: expected"),
        (npy([True] * 4), 422, "a .npy of bool: expected"),
        (npy(np.zeros(4, complex)), 422, "a .npy of complex128: expected"),
        (npy(np.float32(1)), 422, f"expected {bodies.TAKES}, got an array of a number"),
        (npy(np.zeros((2, 3))), 422, f"expected {bodies.TAKES}, got an array of 2×3"),
        (npy(np.zeros((0, 4))), 422, f"no rows: expected {bodies.TAKES}"),
        (npy(np.zeros((4097, 4))), 413, "at most 4096 rows a request, got 4097"),
        (npy([[1, 2, 3, 4], [1, np.nan, 3, 4]]), 422, f"row 1, sepal_width is nan: expected {bodies.TAKES}"),
        (npy(np.array([1, 2, np.inf, 4], np.float32)), 422, "row 0, petal_length is inf: expected"),
        (npy([1, 2, 3, 1e39]), 422, "row 0, petal_width is 1e+39: expected"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_an_npy_that_is_no_flower_is_refused_in_a_sentence(iris: Lane, body: bytes, status: int, sentence: str) -> None:
    response = ask(iris, "POST", "/predict", body)
    assert (response.status_code, response.json()["error"][: len(sentence)]) == (status, sentence)


def test_an_npy_of_images_has_whole_numbers_from_0_to_255(mnist: Lane) -> None:
    for value in (0.5, -1, 256, np.nan):
        response = ask(mnist, "POST", "/predict", npy(np.full((1, 784), value)))
        assert response.status_code == 422
        assert response.json()["error"].startswith(f"row 0, value 0 is {value}: expected 784 numbers")


def test_an_image_may_be_base64_of_its_bytes(mnist: Lane) -> None:
    images = [{"b64": base64.b64encode(bytes(bodies.pixels(digit))).decode()} for digit in (8, 5)]
    assert ask(mnist, "POST", "/predict", images[0]).json()["label"] == "8"
    assert ask(mnist, "POST", "/predict", images).json()["predictions"] == [8, 5]


@pytest.mark.parametrize("text", ["AAA", "A" * 783, "*" * 1048, 5, None])
def test_base64_that_is_no_image_is_refused_in_a_sentence(mnist: Lane, text: Any) -> None:
    response = ask(mnist, "POST", "/predict", {"b64": text})
    assert (response.status_code, list(response.json())) == (422, ["error"])


def test_a_compressed_body_is_refused(iris: Lane) -> None:
    response = ask(iris, "POST", "/predict", bodies.FLOWER, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert "without Content-Encoding" in response.json()["error"]


def test_the_history_tells_the_newest_first(tmp_path: Path) -> None:
    digests = [models.promote(tmp_path, "iris", models.iris_constant(index)) for index in (0, 1)]
    server = lane(make_live(tmp_path))
    told = ask(server, "GET", "/model/history").json()
    assert [(event["event"], event["digest"]) for event in told] == [("pinned", digest) for digest in digests[::-1]]
    for number in range(EVENTS):
        Store(tmp_path, "iris").promote(digests[number % 2])
    told = ask(server, "GET", "/model/history").json()
    assert len(told) == EVENTS
    assert told == sorted(told, key=lambda event: event["time"], reverse=True)


def test_events_of_one_millisecond_are_told_the_newest_first_and_refusals_before_promotions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_now", lambda: "2026-01-01T00:00:00.000+00:00")
    digests = [models.promote(tmp_path, "iris", models.iris_constant(index)) for index in range(3)]
    answering = make_live(tmp_path)
    answering.refused += [{"time": store._now(), "event": "refused", "digest": digest} for digest in digests]
    told = ask(lane(answering), "GET", "/model/history").json()
    newest_first = [(event, digest) for event in ("refused", "pinned") for digest in digests[::-1]]
    assert [(event["event"], event["digest"]) for event in told] == newest_first


def test_the_history_tells_of_a_version_that_this_server_refused(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_constant(0))
    answering = make_live(tmp_path)
    broken = models.promote(tmp_path, "iris", models.iris_constant(1))
    (tmp_path / "iris" / "versions" / broken / "model.onnx").write_bytes(b"rotten")
    answering.refresh()
    good = models.promote(tmp_path, "iris", models.iris_constant(2))
    answering.refresh()
    told = ask(lane(answering), "GET", "/model/history").json()
    assert [(e["event"], e["digest"]) for e in told[:3]] == [("pinned", good), ("refused", broken), ("pinned", broken)]
    assert told[1]["by"] == "server"
    assert "is damaged: its sha256" in told[1]["reason"]


def test_the_lineage_goes_back_to_the_first_ancestor(tmp_path: Path) -> None:
    digests = [models.promote(tmp_path, "iris", models.iris_constant(index)) for index in range(3)]
    server = lane(make_live(tmp_path))
    line = ask(server, "GET", "/model/lineage").json()
    assert [model["digest"] for model in line] == digests[::-1]
    assert [model["parent"] for model in line] == [*digests[1::-1], None]
    for name in ("trial", "experiment", "parameters", "data_digest", "image"):
        assert all(name in model for model in line)
    shutil.rmtree(tmp_path / "iris/versions" / digests[0])
    assert ask(server, "GET", "/model/lineage").json()[2] == {"digest": digests[0]}


def test_the_examples_of_a_category_are_its_names(tmp_path: Path) -> None:
    models.promote(tmp_path, "colours", models.red_or_not(), models.COLOURS, ["warm", "cold"])
    server = lane(make_live(tmp_path, "colours"))
    paths = ask(server, "GET", "/openapi.json").json()["paths"]
    shown = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert shown["numbers"]["value"] == ["red", 4.5]
    assert shown["named features"]["value"] == {"colour": "red", "size": 4.5}
    for form in shown.values():
        assert "warm" in ask(server, "POST", "/predict", form["value"]).text
    infer = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert ask(server, "POST", "/v2/models/colours/infer", infer["one row"]["value"]).status_code == 200


def test_numbers_that_overflow_in_the_model_have_no_answer(iris: Lane) -> None:
    body = [[6.1, 3.2, 3.4028234663852886e38, 1.3]]  # found by schemathesis: a probability was null
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": body}
    for path, sent in (("/predict", body), ("/v2/models/iris/infer", {"inputs": [tensor]})):
        response = ask(iris, "POST", path, sent)
        assert (response.status_code, response.json()["error"][:23]) == (422, "the model has no answer")
