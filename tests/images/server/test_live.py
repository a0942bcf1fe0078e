"""The model is replaced while requests go on, and only by one that works."""

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import interface
import live
import models
import numpy as np
import process
import pytest
from modelkit import artifact, files
from modelkit.store import Store

FLOWER = [5.1, 3.5, 1.4, 0.2]


@contextlib.asynccontextmanager
async def serving(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    answering = interface.live(root)
    following = asyncio.create_task(answering.follow(0.002))
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


def test_ten_thousand_requests_across_fifty_swaps_all_answer_each_by_one_model(tmp_path: Path) -> None:
    digests = [models.promote(tmp_path, "iris", models.iris_constant(index)) for index in range(3)]
    current = tmp_path / "iris" / "CURRENT"
    seen: set[str] = set()
    requests = swaps = 0

    async def asking(connection: tuple[str, int]) -> None:
        """Requests over one connection, until there were enough of both."""
        nonlocal requests
        reader, writer = await asyncio.open_connection(*connection)
        while requests < 10_000 or swaps < 50:
            writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n[5.1,3.5,1.4,0.2]")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            answer = json.loads(await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0])))
            assert digests.index(answer["digest"]) == answer["prediction"]
            seen.add(answer["digest"])
            requests += 1
        writer.close()

    async def swapping(client: httpx.AsyncClient) -> None:
        nonlocal swaps
        for number in range(1, 51):
            digest = digests[number % 3]
            files.write(current, f"{digest}\n".encode(), durable=False)
            await eventually(functools.partial(is_served, client, digest))
            swaps = number

    async def scene(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as client, asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(asking(("127.0.0.1", int(url.rpartition(":")[2]))))
            group.create_task(swapping(client))

    with process.server(tmp_path, "--poll", "0.01") as (_, __, url):
        asyncio.run(scene(url))
    assert seen == set(digests)
    assert requests >= 10_000


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


def test_of_a_store_that_names_ever_new_broken_versions_only_the_latest_refusals_are_held(tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_constant(0))
    answering = interface.live(tmp_path)
    digests = [f"{number:064x}" for number in range(live.EVENTS + 1)]
    for digest in digests:
        files.write(tmp_path / "iris" / "CURRENT", f"{digest}\n".encode(), durable=False)
        answering.refresh()
    assert [event["digest"] for event in answering.refused] == digests[1:]


def test_a_version_that_loads_but_answers_amiss_is_refused(tmp_path: Path) -> None:
    good = models.promote(tmp_path, "iris", models.iris_constant(0))

    async def scene() -> None:
        async with serving(tmp_path) as client:
            five = artifact.mlp([(np.zeros((4, 5)), np.zeros(5))], "identity", models.IRIS, models.SPECIES)
            home = Store(tmp_path, "iris")  # which wouldn't make it current itself
            models.kept(tmp_path, "iris", five).replace(home.version(artifact.digest(five)))
            files.write(home.folder / "CURRENT", artifact.digest(five).encode())
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
