"""The Open Inference Protocol, as Triton's own client speaks it and by hand."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bodies
import interface
import numpy as np
import pytest
import tritonclient.http as triton
from interface import ask
from lane import Lane
from process import server

ROWS = np.array([[5.1, 3.5, 6, 0.2], [5.1, 3.5, 1.4, 0.2], [5.1, 3.5, 4, 0.2]], np.float32)


@pytest.fixture(scope="module")
def client(root: Path, iris: Lane, mnist: Lane) -> Iterator[triton.InferenceServerClient]:  # noqa: ARG001
    with server(root) as (_, __, url):
        yield triton.InferenceServerClient(url.removeprefix("http://"))


@pytest.fixture(scope="module")
def digest(root: Path, iris: Lane) -> str:  # noqa: ARG001
    return (root / "iris" / "CURRENT").read_text().strip()


def test_tritons_client_finds_server_and_model(client: triton.InferenceServerClient, digest: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", digest)
    assert not client.is_model_ready("iris", "0" * 64)
    assert not client.is_model_ready("mnist")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("iris", digest)
    assert metadata["versions"] == [digest]
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in metadata["outputs"]] == [
        ("probabilities", "FP32", [-1, 3]),
        ("prediction", "INT64", [-1]),
        ("label", "BYTES", [-1]),
    ]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_tritons_client_gets_the_answers_of_predict(
    client: triton.InferenceServerClient, iris: Lane, digest: str, binary_in: bool, binary_out: bool
) -> None:
    tensor = triton.InferInput("input", [3, 4], "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary_in)
    names = ("probabilities", "prediction", "label")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = client.infer("iris", [tensor], model_version=digest, outputs=outputs, request_id="mine")
    expected = ask(iris, "POST", "/predict", ROWS.tolist()).json()
    np.testing.assert_array_equal(result.as_numpy("probabilities"), np.array(expected["probabilities"], np.float32))
    assert result.as_numpy("prediction").tolist() == expected["predictions"] == [2, 0, 1]
    labels = result.as_numpy("label").tolist()
    assert [label.decode() if binary_out else label for label in labels] == expected["labels"]
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("mine", digest)


def test_without_named_outputs_tritons_client_gets_all(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("input", [3, 4], "FP32")
    tensor.set_data_from_numpy(ROWS)
    assert client.infer("iris", [tensor]).as_numpy("prediction").tolist() == [2, 0, 1]


def test_tritons_client_shows_the_sentence_of_an_error(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("input", [3, 3], "FP32")
    tensor.set_data_from_numpy(ROWS[:, :3].copy())
    with pytest.raises(triton.InferenceServerException, match="got an array of 3×3"):
        client.infer("iris", [tensor])


def infer(iris: Lane, **changes: Any) -> Any:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": bodies.FLOWER} | changes
    return ask(iris, "POST", "/v2/models/iris/infer", {"inputs": [tensor]})


@pytest.mark.parametrize(
    "tensor",
    [
        {},
        {"data": [bodies.FLOWER]},
        {"datatype": "FP64"},
        {"datatype": "INT64", "data": [5, 3, 1, 0]},
        {"shape": [4]},
    ],
)
def test_tensors_may_be_nested_and_of_any_number_type(iris: Lane, tensor: dict[str, Any]) -> None:
    outputs = infer(iris, **tensor).json()["outputs"]
    assert [output["name"] for output in outputs] == ["probabilities", "prediction", "label"]
    assert (outputs[1]["data"], outputs[2]["data"]) == ([0], ["setosa"])
    assert outputs[0]["shape"] == [1, 3]


def test_an_image_may_be_two_dimensional(mnist: Lane) -> None:
    tensor = {"name": "input", "datatype": "UINT8", "shape": [1, 28, 28], "data": bodies.pixels(6)}
    answer = ask(mnist, "POST", "/v2/models/mnist/infer", {"inputs": [tensor], "outputs": [{"name": "label"}]}).json()
    assert [(output["name"], output["data"]) for output in answer["outputs"]] == [("label", ["6"])]


BAD_TENSORS: list[tuple[dict[str, Any], int, str]] = [
    ({"name": "x"}, 422, "expected one input, named 'input'; got x"),
    ({"datatype": "BOOL"}, 422, "datatype 'BOOL': expected one of"),
    ({"shape": [2, 4]}, 400, "4 numbers are no array of the shape [2, 4]"),
    ({"shape": [-1, 4]}, 400, "4 numbers are no array of the shape [-1, 4]"),
    ({"shape": [2, 2]}, 422, "expected 4 numbers"),
    ({"shape": [0, 4], "data": []}, 422, "no rows"),
    ({"data": [5.1, 3.5, 1e39, 0.2]}, 422, "row 0, petal_length is 1e+39: expected 4 numbers"),
    ({"datatype": "INT32"}, 422, "data: expected whole numbers that INT32 can hold"),
    ({"datatype": "UINT8", "data": [300, 3, 1, 0]}, 422, "data: expected whole numbers that UINT8 can hold"),
    ({"datatype": "UINT64", "data": [-1, 3, 1, 0]}, 422, "data: expected whole numbers that UINT64 can hold"),
    ({"datatype": "INT8", "data": [1000, 3, 1, 0]}, 422, "data: expected whole numbers that INT8 can hold"),
    ({"datatype": "INT64", "data": [1e30, 3, 1, 0]}, 422, "data: expected whole numbers that INT64 can hold"),
    ({"data": [5.1, 3.5, "1.4", 0.2]}, 422, "Expected `float | array`, got `str` - at `$.inputs[0].data[2]`"),
    ({"data": [5.1, 3.5, True, 0.2]}, 422, "Expected `float | array`, got `bool` - at `$.inputs[0].data[2]`"),
    ({"data": [5, [3], 1, 0]}, 422, "data: expected numbers"),
    ({"data": [5, 3, 10**400, 0]}, 422, "Number out of range - at `$.inputs[0].data[2]`"),
    ({"data": None}, 400, "0 numbers are no array of the shape [1, 4]"),
    ({"data": None, "parameters": {"binary_data_size": 16}}, 400, "binary_data_size is 16, but 0 bytes follow"),
    ({"shape": [1] * 66 + [4]}, 400, "4 numbers are no array of the shape [1, 1, "),
    ({"shape": [9] * 100_000}, 400, "4 numbers are no array of the shape [9, 9, "),
    *(
        ({"shape": shape, "data": []}, 400, "0 numbers are no array of the shape [0, ")
        for shape in ([0, 10**30], [0, 2**62], [0, 2**62, 8])
    ),
    *(
        (
            {"shape": shape, "data": None, "parameters": {"binary_data_size": 0}},
            400,
            "0 numbers are no array of the shape [0, ",
        )
        for shape in ([0, 10**30], [0, 2**62], [0, 2**62, 8])
    ),
    ({"shape": "4"}, 422, "Expected `array`, got `str` - at `$.inputs[0].shape`: expected an inference request"),
    ({"data": 4}, 422, "Expected `array | null`, got `int` - at `$.inputs[0].data`"),
]


@pytest.mark.parametrize(("tensor", "status", "sentence"), BAD_TENSORS, ids=lambda v: str(v)[:30])
def test_a_tensor_that_is_no_flower_is_refused_in_a_sentence(
    iris: Lane, tensor: dict[str, Any], status: int, sentence: str
) -> None:
    response = infer(iris, **tensor)
    assert (response.status_code, response.json()["error"][: len(sentence)]) == (status, sentence)


@pytest.mark.parametrize(
    ("length", "body", "status", "sentence"),
    [
        ("999", b"{}", 400, "Inference-Header-Content-Length '999'"),
        ("-1", b"{}", 400, "Inference-Header-Content-Length '-1'"),
        ("9" * 30, b"{}", 400, "Inference-Header-Content-Length"),
        ("2", b"{}" + b"\0" * 16, 422, "Object missing required field `inputs`: expected an inference request"),
        (None, b"[" * 5000, 422, "Expected `object`, got `array`: expected an inference request"),
        (None, b'{"inputs":[]}', 422, "expected one input, named 'input'; got none"),
    ],
)
def test_a_damaged_binary_request_is_refused_in_a_sentence(
    iris: Lane, length: str | None, body: bytes, status: int, sentence: str
) -> None:
    headers = {"Inference-Header-Content-Length": length} if length else {}
    response = ask(iris, "POST", "/v2/models/iris/infer", body, headers=headers)
    assert (response.status_code, response.json()["error"][: len(sentence)]) == (status, sentence)


def test_binary_tensors_have_the_bytes_they_announce(iris: Lane) -> None:
    def send(raw: bytes, announced: int) -> Any:
        head = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":%d}}]}'
        text = head % announced
        headers = {"Inference-Header-Content-Length": str(len(text))}
        return ask(iris, "POST", "/v2/models/iris/infer", text + raw, headers=headers)

    raw = struct.pack("<4f", *bodies.FLOWER)
    assert send(raw, 16).json()["outputs"][2]["data"] == ["setosa"]
    for body, announced in ((raw[:-1], 16), (raw + b"x", 16), (raw[:-1], 15), (raw, 17)):
        assert send(body, announced).status_code == 400
    assert send(struct.pack("<4f", 1, float("nan"), 1, 1), 16).status_code == 422


@pytest.mark.parametrize(
    "outputs",
    [[{"name": "x"}], [{"name": "label", "parameters": {"classification": 2}}], [{"name": "label"}] * 2],
)
def test_an_output_that_is_not_there_or_named_twice_is_refused(iris: Lane, outputs: list[dict[str, Any]]) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": bodies.FLOWER}
    response = ask(iris, "POST", "/v2/models/iris/infer", {"inputs": [tensor], "outputs": outputs})
    assert response.status_code == 422


def test_another_model_or_version_is_not_found(iris: Lane) -> None:
    for path in ("/v2/models/mnist", "/v2/models/iris/versions/1", "/v2/models/iris/versions/1/ready"):
        response = ask(iris, "GET", path)
        assert (response.status_code, list(response.json())) == (404, ["error"])
    assert ask(iris, "POST", "/v2/models/mnist/infer", b"{}").status_code == 404


def test_without_a_model_it_is_live_but_not_ready(tmp_path: Path) -> None:
    waiting = interface.lane(interface.live(tmp_path))
    assert ask(waiting, "GET", "/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/iris", "/v2/models/iris/ready"):
        response = ask(waiting, "GET", path)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_rows_are_counted(root: Path, iris: Lane) -> None:  # noqa: ARG001
    answering = interface.live(root)
    infer(interface.lane(answering))
    text = ask(interface.lane(answering), "GET", "/metrics").text
    assert "nas_rows_total 1.0" in text
    assert 'nas_requests_total{path="/v2/models/{name}/infer",status="200"} 1.0' in text
