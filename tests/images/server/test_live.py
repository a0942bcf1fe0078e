"""The model is replaced while requests go on, and only by one that works."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import interface
import live
import models
import numpy as np
import pytest
from modelkit import artifact, files
from modelkit.store import Store

FLOWER = [5.1, 3.5, 1.4, 0.2]


@contextlib.asynccontextmanager
async def serving(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    answering = interface.service(root)
    following = asyncio.create_task(answering.live.follow(0.002))
    async with interface.client(interface.lane(answering)) as client:
        yield client
    following.cancel()


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the answer is true; fail after 10 s."""
    async with asyncio.timeout(10):
        while not (answer := await what()):
            await asyncio.sleep(0)
    return answer


async def readiness(client: httpx.AsyncClient) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get("/readyz")).json()
    return answer


def test_it_becomes_ready_when_the_first_model_is_promoted(tmp_path: Path) -> None:
    async def scene() -> None:
        async with serving(tmp_path) as client:
            assert (await client.get("/readyz")).status_code == 503
            digest = await asyncio.to_thread(models.promote, tmp_path, "iris", models.iris_constant(1))
            await eventually(lambda: is_served(client, digest))
            assert (await client.post("/predict", json=FLOWER)).json()["label"] == "versicolor"

    asyncio.run(scene())


async def is_served(client: httpx.AsyncClient, digest: str) -> bool:
    return (await readiness(client)).get("digest") == digest


def test_no_request_fails_while_models_change_and_each_answer_is_of_one_model(tmp_path: Path) -> None:
    digests = [models.promote(tmp_path, "iris", models.iris_constant(index)) for index in range(3)]
    seen: set[str] = set()
    swaps = requests = 0

    async def asking(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        nonlocal requests
        while not done.is_set():
            response = await client.post("/predict", json=FLOWER)
            assert response.status_code == 200
            answer = response.json()
            assert digests.index(answer["digest"]) == answer["prediction"]
            seen.add(answer["digest"])
            requests += 1
            await asyncio.sleep(0)  # without a network nothing else would let the others run
            await asyncio.sleep(0)  # let others have their turn: an in-process request never waits for a socket

    async def scene() -> None:
        nonlocal swaps
        done, store = asyncio.Event(), Store(tmp_path, "iris")
        async with serving(tmp_path) as client, asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(asking(client, done))
            for swaps in range(1, 16):
                digest = digests[swaps % 3]
                await asyncio.to_thread(store.promote, digest)
                await eventually(functools.partial(is_served, client, digest))
            done.set()

    asyncio.run(scene())
    assert seen == set(digests)
    assert requests > swaps


def break_model(root: Path, digest: str) -> None:
    path = root / "iris" / "versions" / digest / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def break_manifest(root: Path, digest: str) -> None:
    (root / "iris" / "versions" / digest / "manifest.json").write_text("{}")


def break_current(root: Path, digest: str) -> None:
    (root / "iris" / "CURRENT").write_text(f"{digest[:10]}\n")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [(break_model, "is damaged: its sha256"), (break_manifest, "manifest.json"), (break_current, "CURRENT is damaged")],
)
def test_a_broken_version_is_refused_once_in_the_log_and_the_old_one_answers(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path, str], None],
    sentence: str,
) -> None:
    caplog.set_level(logging.INFO)
    better = models.promote(tmp_path, "iris", models.iris_constant(2))
    good = models.promote(tmp_path, "iris", models.iris_constant(0))
    looks: list[None] = []
    refresh = live.Live.refresh
    monkeypatch.setattr(live.Live, "refresh", lambda self: looks.append(refresh(self)))

    async def scene() -> None:
        async with serving(tmp_path) as client:
            damage(tmp_path, better)
            if damage is not break_current:
                files.write(tmp_path / "iris" / "CURRENT", f"{better}\n".encode())
            refused = await eventually(lambda: problem(client))
            assert sentence in refused
            enough = len(looks) + 5

            async def looked_again() -> bool:
                answer = (await client.post("/predict", json=FLOWER)).json()
                assert (answer["label"], answer["digest"]) == ("setosa", good)
                return len(looks) > enough

            await eventually(looked_again)
            models.promote(tmp_path, "iris", models.iris_constant(1))
            await eventually(lambda: recovered(client))
            assert (await client.post("/predict", json=FLOWER)).json()["label"] == "versicolor"

    asyncio.run(scene())
    assert [sentence in line for line in caplog.messages].count(True) == 1
    assert f"{good[:12]} keeps serving" in caplog.text


def test_a_version_that_loads_but_answers_amiss_is_refused(tmp_path: Path) -> None:
    good = models.promote(tmp_path, "iris", models.iris_constant(0))

    async def scene() -> None:
        async with serving(tmp_path) as client:
            five = artifact.mlp([(np.zeros((4, 5)), np.zeros(5))], "identity", models.IRIS, models.SPECIES)
            await asyncio.to_thread(models.promote, tmp_path, "iris", five)
            assert "doesn't answer with 3 probabilities" in await eventually(lambda: problem(client))
            assert (await client.post("/predict", json=FLOWER)).json()["digest"] == good

    asyncio.run(scene())


async def problem(client: httpx.AsyncClient) -> str | None:
    return (await readiness(client)).get("problem")


async def recovered(client: httpx.AsyncClient) -> bool:
    return await problem(client) is None


def test_a_model_that_was_served_outlives_its_files(tmp_path: Path) -> None:
    digest = models.promote(tmp_path, "iris", models.iris_constant(0))

    async def scene() -> None:
        async with serving(tmp_path) as client:
            (tmp_path / "iris").rename(tmp_path / "away")
            assert "run its search first" in await eventually(lambda: problem(client))
            assert (await client.post("/predict", json=FLOWER)).json()["digest"] == digest

    asyncio.run(scene())
