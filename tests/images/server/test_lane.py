"""What holds for every request, and that the lane answers as the routes it is ahead of."""

import asyncio
import datetime
import email.utils
import json
import threading
from pathlib import Path
from typing import Any

import bodies
import interface
import jsonschema
import models
import numpy as np
import pytest
from decode import Reader, Refusal
from interface import ask
from lane import Lane
from limits import Limits
from modelkit.store import StoreError

pytestmark = pytest.mark.usefixtures("iris")
KEY = "correct-horse-battery"
ROUTED = "/predict?"  # with a query, FastAPI answers


def raw(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize("name", ["iris", "mnist"])
def test_lane_and_routes_answer_every_documented_example_as_documented(iris: Lane, mnist: Lane, name: str) -> None:
    server = {"iris": iris, "mnist": mnist}[name]
    operation = ask(server, "GET", "/openapi.json").json()["paths"]["/predict"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert len(examples) == 4
    for form, body in examples.items():
        by_lane, by_routes = (ask(server, "POST", path, body["value"]) for path in ("/predict", ROUTED))
        assert by_lane.json() == answers[form]["value"]
        assert by_lane.content == by_routes.content
        assert by_lane.headers["content-type"] == by_routes.headers["content-type"]


@pytest.mark.parametrize("name", ["iris", "mnist"])
def test_every_documented_example_fits_its_schema(iris: Lane, mnist: Lane, name: str) -> None:
    described = ask({"iris": iris, "mnist": mnist}[name], "GET", "/openapi.json").json()
    for path in ("/predict", "/v2/models/{name}/infer"):
        operation = described["paths"][path]["post"]
        for part in (operation["requestBody"], operation["responses"]["200"]):
            content = part["content"]["application/json"]
            for shown in content["examples"].values():
                jsonschema.validate(shown["value"], content["schema"] | {"components": described["components"]})


def test_lane_and_routes_refuse_every_bad_body_alike(iris: Lane, mnist: Lane) -> None:
    cases = [(iris, body) for body, *_ in bodies.NO_FLOWERS] + [(mnist, body) for body, _ in bodies.NO_IMAGES]
    documented = ask(iris, "GET", "/openapi.json").json()["paths"]["/predict"]["post"]["responses"]
    for server, body in cases:
        by_lane, by_routes = (ask(server, "POST", path, raw(body)) for path in ("/predict", ROUTED))
        assert by_lane.status_code == by_routes.status_code
        assert by_lane.content == by_routes.content
        assert str(by_lane.status_code) in documented
        assert by_lane.headers.get("connection") == by_routes.headers.get("connection")


@pytest.mark.parametrize("body", [{"colour": "blue", "size": 3}, ["blue", 3], [1, 3]])
def test_a_category_is_given_by_its_name_or_its_number(body: Any) -> None:
    assert COLOURS.rows(raw(body))[0].tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            [["red", 1], ["green", 1]],
            r"Invalid enum value 'green' - at `\$\[1\]\[0\]`: expected 2 values \(colour: red or blue, size\)",
        ),
        ([2, 1], "Invalid enum value 2"),
        ([0.5, 1], "Invalid enum value|Expected `int"),
        (["red", "1"], "Expected `float`, got `str`"),
    ],
)
def test_a_category_that_the_model_never_saw_is_refused(body: Any, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        COLOURS.rows(raw(body))


def test_an_array_with_no_category_is_refused() -> None:
    with pytest.raises(Refusal, match="row 1, colour is 2: expected 2 values"):
        COLOURS.fit(np.array([[0, 1], [2, 1]], np.float32))


COLOURS = Reader(models.COLOURS, 10)


def test_an_answer_never_needs_fastapi(root: Path) -> None:
    server = interface.lane(interface.live(root))
    assert ask(server, "POST", "/predict", bodies.FLOWER).status_code == 200
    assert ask(server, "POST", "/predict", b"nonsense").status_code == 400
    assert server._routes is None
    assert ask(server, "GET", "/healthz").status_code == 200
    assert server._routes


@pytest.mark.parametrize(("method", "path"), [("POST", "/predict"), ("GET", "/healthz"), ("GET", "/nothing")])
def test_every_answer_has_a_date_a_request_id_and_the_security_headers(iris: Lane, method: str, path: str) -> None:
    first, second = (ask(iris, method, path, bodies.FLOWER if method == "POST" else None) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in first.headers["content-security-policy"]
    assert "unsafe" not in first.headers["content-security-policy"]
    sent = email.utils.parsedate_to_datetime(first.headers["date"])
    assert abs(datetime.datetime.now(datetime.UTC) - sent) < datetime.timedelta(seconds=60)
    mine = ask(iris, method, path, None, headers={"X-Request-ID": "from-the-client"})
    assert mine.headers["x-request-id"] == "from-the-client"
    assert ask(iris, method, path, None, headers={"X-Request-ID": "x" * 200}).headers["x-request-id"] != "x" * 200


@pytest.fixture
def keyed(root: Path, tmp_path: Path) -> Lane:
    (tmp_path / "keys").write_text(f"another-key-of-someone\n\n{KEY}\n")
    return interface.lane(interface.live(root), keys=tmp_path / "keys")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/predict/"),
        ("GET", "/model"),
        ("GET", "/model/history"),
        ("GET", "/v2"),
        ("GET", "/v2/models/iris"),
        ("POST", "/v2/models/iris/infer"),
        ("GET", "/nothing"),
    ],
)
def test_with_keys_nothing_of_the_model_is_told_without_one(keyed: Lane, method: str, path: str) -> None:
    wrong = [
        {},
        {"X-API-Key": KEY[:-1]},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": KEY},
        {"X-API-Key": ""},
    ]
    for headers in wrong:
        response = ask(keyed, method, path, bodies.FLOWER if method == "POST" else None, headers=headers)
        assert (response.status_code, list(response.json())) == (401, ["error"])
        assert response.headers["www-authenticate"] == "Bearer"
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}, {"X-API-Key": "another-key-of-someone"}):
        body = bodies.FLOWER if method == "POST" else None
        assert ask(keyed, method, path, body, headers=headers).status_code != 401


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/ready"])
def test_probes_prometheus_and_the_page_need_no_key(keyed: Lane, path: str) -> None:
    assert ask(keyed, "GET", path).status_code == 200


def test_a_changed_key_file_holds_and_an_empty_one_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY)
    keys = interface.Keys(path)
    path.write_text("a-new-key-of-20-chars\n")
    keys.refresh()
    assert keys.allow("/model", {b"x-api-key": b"a-new-key-of-20-chars"})
    assert not keys.allow("/model", {b"x-api-key": KEY.encode()})
    for text, sentence in (("short\n", "each of at least 16"), (None, "No such file")):
        path.unlink() if text is None else path.write_text(text)
        caplog.clear()
        for _ in range(3):  # it looks once a second
            keys.refresh()
        assert [sentence in line for line in caplog.messages] == [True]
        assert keys.allow("/model", {b"x-api-key": b"a-new-key-of-20-chars"})
        assert not keys.allow("/model", {})
    path.write_text("\n")
    keys.refresh()
    assert not keys.allow("/model", {})
    with pytest.raises(StoreError, match="write one a line"):
        interface.Keys(path)


def test_more_requests_than_the_queue_holds_are_told_to_come_back(root: Path) -> None:
    answering = interface.live(root, limits=Limits(queue=3))
    server, hold, predictor = interface.lane(answering), threading.Event(), answering.current()
    answer = predictor.answer

    def held(body: bytes) -> tuple[bytes, int]:
        hold.wait(30)
        return answer(body)

    predictor.answer = held  # type: ignore[method-assign]
    large = json.dumps([bodies.FLOWER] * 4000).encode()

    async def scene() -> None:
        async with interface.client(server) as client:
            waiting = [asyncio.create_task(client.post("/predict", content=large)) for _ in range(3)]
            while (refused := await client.get("/model")).status_code == 200:
                await asyncio.sleep(0)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "waiting" in refused.json()["error"]
            assert (await client.get("/healthz")).status_code == 200
            hold.set()
            assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * 3
            assert (await client.post("/predict", json=bodies.FLOWER)).status_code == 200
            assert 'nas_rejects_total{reason="busy"} 1.0' in (await client.get("/metrics")).text

    asyncio.run(scene())


def test_a_request_whose_turn_does_not_come_in_time_is_told_to_come_back(root: Path) -> None:
    server = interface.lane(interface.live(root, limits=Limits(seconds=0)))
    response = ask(server, "POST", "/predict", [bodies.FLOWER] * 4000)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_limits_are_those_that_were_set(root: Path) -> None:
    server = interface.lane(interface.live(root, limits=Limits(body=100, rows=2)))
    assert ask(server, "POST", "/predict", [bodies.FLOWER] * 2).status_code == 200
    assert (
        ask(server, "POST", "/predict", b"[[1,2,3,4],[1,2,3,4],[1,2,3,4]]").json()["error"].startswith("at most 2 rows")
    )
    assert ask(server, "POST", "/predict", b" " * 101).json()["error"].startswith("at most 100 bytes")


def test_the_access_log_is_a_line_of_json_for_each_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = interface.lane(interface.live(root), access_log=True)
    ask(server, "POST", "/predict", b"nonsense", headers={"X-Request-ID": "mine\nyours"[:4]})
    ask(server, "GET", "/healthz")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["method"], first["path"], first["status"]) == ("mine", "POST", "/predict", 400)
    assert first["ms"] > 0
    assert (second["path"], second["status"]) == ("/healthz", 200)


def test_without_it_nothing_is_logged(iris: Lane, capsys: pytest.CaptureFixture[str]) -> None:
    ask(iris, "POST", "/predict", bodies.FLOWER)
    assert capsys.readouterr().out == ""


def test_what_is_counted_by_path_are_the_paths_there_are(iris: Lane) -> None:
    from metrics import PATHS

    assert set(PATHS) - {"other"} <= set(ask(iris, "GET", "/openapi.json").json()["paths"])


def test_the_counters_of_workers_are_summed() -> None:
    from metrics import Counts

    counts = Counts(workers=2)
    counts.add("rows", 3)
    counts.become(1)
    counts.add("rows", 4)
    counts.become(0)
    counts.add("rows")
    assert sum(counts.totals()) == 8
