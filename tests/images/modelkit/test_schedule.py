"""The pod of the chart's CronJob: it creates the next Experiment once, follows it, and says why when it doesn't."""

import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import certifi
import pytest
from modelkit import schedule

TEMPLATE = {
    "metadata": {
        "name": "@NAME@",
        "labels": {"nas/job": "@UID@"},
        "annotations": {"nas/model": "iris"},
        "ownerReferences": [{"kind": "Job", "name": "@JOB@", "uid": "@UID@"}],
    },
    "spec": {"args": ["--seed=@SEED@"]},
}
Experiment = dict[str, Any]


class Api:
    """The API server's Experiments, which end as `end` says as soon as they are looked at."""

    def __init__(self, end: str = "Succeeded") -> None:
        self.items: list[Experiment] = []
        self.end = end
        self.error: Exception | None = None

    def ask(self, path: str = "", new: Experiment | None = None) -> Experiment:
        if self.error:
            raise self.error
        if new:
            self.items.append(new)
        if path.startswith("/"):
            (found,) = [item for item in self.items if item["metadata"]["name"] == path[1:]]
            return over(found, self.end)
        uid = path.rpartition("%3D")[2]
        return {"items": [i for i in self.items if not path or i["metadata"]["labels"].get("nas/job") == uid]}


def over(experiment: Experiment, how: str) -> Experiment:
    experiment["status"] = {
        "conditions": [{"type": "Failed", "status": "False"}, {"type": how, "status": "True", "message": "enough"}],
    }
    return experiment


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("NAS_JOB", "night-1")
    monkeypatch.setenv("NAS_JOB_UID", "u-1")
    template = tmp_path / "experiment.json"
    template.write_text(json.dumps(TEMPLATE))

    def start(api: Api, *words: str) -> int:
        monkeypatch.setattr(schedule, "ask", api.ask)
        return schedule.main([str(template), "--base=iris-nas", f"--root={tmp_path}", *words])

    return start


def test_a_search_is_created_for_the_job_and_followed_to_its_end(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api()
    assert run(api) == 0
    (made,) = api.items
    assert made["metadata"]["ownerReferences"] == [{"kind": "Job", "name": "night-1", "uid": "u-1"}]
    name = made["metadata"]["name"]
    assert name.startswith("iris-nas-2")
    assert len(name) == len("iris-nas-YYYYMMDD-HHMM")
    assert "@" not in json.dumps(made)
    said = capsys.readouterr().out
    assert f"{name}: Succeeded: enough" in said


def test_each_night_has_another_name_and_another_seed() -> None:
    nights = [
        schedule.next_experiment(json.dumps(TEMPLATE), "iris", schedule.datetime.datetime(2026, 1, day, 2), "j", "u")
        for day in (1, 2)
    ]
    assert [night["metadata"]["name"] for night in nights] == ["iris-20260101-0200", "iris-20260102-0200"]
    assert nights[0]["spec"]["args"] != nights[1]["spec"]["args"]


def test_a_pod_that_is_started_again_follows_the_search_that_is_there(run: Callable[..., int]) -> None:
    api = Api()
    assert (run(api), run(api)) == (0, 0)
    assert len(api.items) == 1


def test_no_search_begins_while_one_for_the_same_model_runs(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api()
    running: Experiment = {"metadata": {"name": "iris-nas-1234", "labels": {}, "annotations": {"nas/model": "iris"}}}
    api.items = [running]
    assert run(api) == 0
    assert api.items == [running]
    assert "no search: iris-nas-1234 still runs" in capsys.readouterr().out
    api.items = [over(running, "Failed")]
    assert run(api) == 0
    assert len(api.items) == 2


def test_an_api_server_that_is_away_for_a_while_ends_nothing(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api()
    ask = api.ask

    def create_and_go(path: str = "", new: Experiment | None = None) -> Experiment:
        found = ask(path, new)
        api.error = refused(503) if new else None
        return found

    def come_back(_: float) -> None:
        api.error = None

    monkeypatch.setattr(api, "ask", create_and_go)
    monkeypatch.setattr(schedule.time, "sleep", come_back)
    assert run(api) == 0
    assert "trying again" in capsys.readouterr().out


def test_a_search_that_was_removed_ends_the_job(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()

    ask = api.ask

    def create_and_lose(path: str = "", new: Experiment | None = None) -> Experiment:
        found = ask(path, new)
        api.error = refused(404) if new else None
        return found

    monkeypatch.setattr(api, "ask", create_and_lose)
    monkeypatch.setattr(schedule.time, "sleep", lambda _: pytest.fail("it is still waited for"))
    assert run(api) == schedule.FAILED


def test_data_that_a_model_learned_from_are_not_searched_again(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = tmp_path / "digest"
    digest.write_text("sha256:abc\n")
    api = Api()
    assert run(api, f"--data-digest={digest}") == 0
    assert len(api.items) == 1
    api.items = []
    monkeypatch.setattr(schedule.Store, "has_seen", lambda store, seen: (store.model, seen) == ("iris", "sha256:abc"))
    assert run(api, f"--data-digest={digest}") == 0
    assert api.items == []
    assert "no search: a model of iris has learned from this data" in capsys.readouterr().out


def test_a_trainer_that_tells_no_digest_is_asked_again(run: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "digest").touch()
    api = Api()
    assert run(api, f"--data-digest={tmp_path / 'digest'}") == schedule.AGAIN
    assert api.items == []


def test_a_failed_search_fails_the_job_for_good(run: Callable[..., int]) -> None:
    assert run(Api("Failed")) == schedule.FAILED


def refused(status: int) -> urllib.error.HTTPError:
    body = io.BytesIO(json.dumps({"message": "the webhook says no"}).encode())
    return urllib.error.HTTPError("https://api", status, "no", Message(), body)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (refused(403), schedule.FAILED, "403: the webhook says no"),
        (refused(500), schedule.AGAIN, "500: the webhook says no"),
        (refused(429), schedule.AGAIN, "429: the webhook says no"),
        (ConnectionRefusedError("nobody is there"), schedule.AGAIN, "error: nobody is there"),
        (http.client.IncompleteRead(b"{"), schedule.AGAIN, "error: IncompleteRead"),
    ],
)
def test_what_another_try_may_mend_is_told_from_what_it_can_not(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], error: Exception, status: int, told: str
) -> None:
    api = Api()
    api.error = error
    assert run(api) == status
    assert told in capsys.readouterr().err


def test_the_api_server_is_asked_in_the_pods_namespace_with_the_token_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"namespace": "nas", "token": "old", "ca.crt": Path(certifi.where()).read_text()}.items():
        (tmp_path / name).write_text(text)
    asked: list[urllib.request.Request] = []

    def answer(request: urllib.request.Request, **_: object) -> io.BytesIO:
        asked.append(request)
        return io.BytesIO(b'{"items": []}')

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(schedule, "ACCOUNT", tmp_path)
    assert schedule.ask("/one") == {"items": []}
    (tmp_path / "token").write_text("new")
    schedule.ask(new={"kind": "Experiment"})
    assert [(request.get_method(), request.get_header("Authorization")) for request in asked] == [
        ("GET", "Bearer old"),
        ("POST", "Bearer new"),
    ]
    url = "https://kubernetes.default.svc/apis/kubeflow.org/v1beta1/namespaces/nas/experiments"
    assert [request.full_url for request in asked] == [f"{url}/one", url]
    assert asked[1].data == b'{"kind": "Experiment"}'
