"""An album is made while every process of the set is killed in turn: all of it, once, and told to those who ask."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

import mesh

from .conftest import LONG, Set, project
from .durable_set import PATIENCE_S, all_jobs, settled, tell, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 if LONG else 120)]

SEED = 6
IMAGES = 1_000 if LONG else 60
#: How often each process is killed.
ROUNDS = 3 if LONG else 1
SIDE = 96
#: Instead of a name: every process at once.
ALL = "all"

SETTINGS = """
[store]
lease = "2s"
[services.thumbnails]
class = "services.thumbnails:Thumbnails"
replicas = 2
[services.albums]
class = "services.thumbnails:Albums"
replicas = 2
[services.ear]
class = "ear:Ear"
"""

EAR = """\
import mesh
from mesh import on


class Ear(mesh.Service):
    name = "ear"

    @on("album.done", durable=True, start="all")
    async def heard(self, event: mesh.Event) -> None:
        async with self.atomic():
            await self.state("heard").add(event.data["id"])
            await self.state("told").set(event.data["id"], event.data)
"""


def photograph(rng: random.Random, number: int) -> bytes:
    """Noise, 8 to 15 KB, whose four corners spell its number in grey: a thumbnail shows which it is of."""
    width, height = rng.choice([(192, 128), (128, 192), (160, 160), (200, 120)])
    image = Image.frombytes("L", (width, height), rng.randbytes(width * height)).point(lambda value: 96 + value // 4)
    across, down = width // 2, height // 2
    for place, corner in enumerate([(0, 0), (across, 0), (0, down), (across, down)]):
        image.paste(_shade(number, place), (*corner, corner[0] + across // 2, corner[1] + down // 2))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=rng.randint(85, 93))
    return file.getvalue()


def _shade(number: int, place: int) -> int:
    """Numbers of base six, far enough apart for a JPEG of a JPEG."""
    return 10 + 45 * (number // 6**place % 6)


def read_number(thumbnail: Image.Image) -> int:
    """What the corners say."""
    grey = thumbnail.convert("L")
    across, down = grey.width // 2, grey.height // 2
    number = 0
    for place, corner in enumerate([(0, 0), (across, 0), (0, down), (across, down)]):
        spot = grey.crop((corner[0] + 2, corner[1] + 2, corner[0] + across // 2 - 3, corner[1] + down // 2 - 3))
        mean = spot.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert isinstance(mean, int)
        number += 6**place * round((mean - 10) / 45)
    return number


def archive_of(images: list[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number, image in enumerate(images):
            archive.writestr(f"{number:04}.jpg", image)
    return file.getvalue()


@pytest.fixture
def albums() -> Iterator[Set]:
    def write(root: Path) -> None:
        (root / "ear.py").write_text(EAR)

    with project({}, SETTINGS, gateways=2, before=write) as made:
        # What is killed again and again would be made to wait before it is started, as if it were in a crash loop.
        made.run("supervisorctl", "stop", "watch")
        yield made


class Client:
    """Somebody with images and an HTTP client, who tries again.

    Attributes:
        repeats: what was tried again, by reason.
    """

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.repeats: Counter[str] = Counter()

    async def hand_over(self, body: bytes) -> dict[str, Any]:
        """POST it until it is taken."""
        while True:
            with suppress(aiohttp.ClientError):  # the gateway died
                async with self.http.post(f"/albums?width={SIDE}&height={SIDE}", data=io.BytesIO(body)) as answer:
                    said: dict[str, Any] = await answer.json()
                    if answer.status == 202:
                        return said
                    assert answer.status >= 500, said
            self.repeats["post"] += 1
            await asyncio.sleep(0.1)

    async def follow(self, address: str, seen: list[dict[str, Any]]) -> None:
        """Write down each progress, to the end; connects again as an EventSource does."""
        while True:
            with suppress(aiohttp.ClientError):
                async with self.http.get(address, headers={"Accept": "text/event-stream"}) as answer:
                    assert answer.status == 200 or answer.status >= 500, await answer.text()
                    name = "message"
                    async for line in answer.content:
                        field, _, value = line.decode().strip().partition(": ")
                        if field == "event":
                            name = value
                        if field == "data" and name == "end":
                            return
                        if field == "data" and name == "message":
                            seen.append(json.loads(value))
            self.repeats["follow"] += 1
            await asyncio.sleep(0.1)

    async def thumbnail(self, address: str) -> bytes:
        """GET it until there is an answer: what was killed last may not be back."""
        while True:
            with suppress(aiohttp.ClientError):
                async with self.http.get(address) as answer:
                    if answer.status < 500:
                        assert (answer.status, answer.content_type) == (200, "image/jpeg"), await answer.text()
                        return await answer.read()
            self.repeats["thumbnail"] += 1
            await asyncio.sleep(0.1)


class Reaper:
    """Kills with -9 by supervisor's names, again and again in the same order.

    Attributes:
        killed: how often, by name.
    """

    def __init__(self, made: Set) -> None:
        self._set = made
        self.killed: Counter[str] = Counter()

    async def kill(self, name: str) -> None:
        """It, or ALL that run; as soon as there is one."""
        end = time.monotonic() + PATIENCE_S
        while True:
            running = await asyncio.to_thread(self._set.pids)
            killed = 0
            for each in [each for each in running if each != "watch"] if name == ALL else [name]:
                with suppress(ProcessLookupError, KeyError):
                    os.kill(running[each], signal.SIGKILL)
                    self.killed[each] += 1
                    killed += 1
            if killed:
                return
            assert time.monotonic() < end, f"{name} did not come back"
            await asyncio.sleep(0.05)


async def _reached(seen: list[dict[str, Any]], share: float) -> bool:
    return bool(seen[-1]["done"] >= IMAGES * share)


async def _requeue_the_lost(n: mesh.Node, requeued: list[str]) -> None:
    """What their users do: a task in whose hands three workers have died is a dead letter, also when it is innocent."""
    while True:
        dead = await all_jobs(n, "albums.shrink", "dead")
        assert {job.reason for job in dead} <= {"lost"}, dead
        if dead:
            requeued += [job.id for job in dead]
            await n.durable.engines.of("queues").leases.requeue(
                "albums.shrink", [job.id for job in dead], timeout_s=PATIENCE_S
            )
        await asyncio.sleep(1.0)


async def test_an_album_is_made_whatever_dies(albums: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """Each thumbnail is there once and is of its image, progress only grows and ends complete, and it is told once."""
    rng = random.Random(SEED)
    images = [photograph(rng, number) for number in range(IMAGES)]
    body = archive_of(images)
    reaper = Reaper(albums)
    names = [name for name in sorted(albums.pids()) if name != "watch"]
    assert len(names) == 9, names
    victims = [name for _ in range(ROUNDS) for name in rng.sample(names, len(names))]
    if LONG:
        # And once the power goes.
        victims.insert(len(victims) // 2, ALL)
    else:
        kinds = {name.partition(":")[0]: name for name in victims}
        victims = rng.sample(sorted(kinds.values()), len(kinds))

    began = time.monotonic()
    async with (
        mesh.connect(path=albums.root / "mesh.toml", wait_s=PATIENCE_S) as n,
        aiohttp.ClientSession(albums.url) as http,
    ):
        client = Client(http)
        handing = asyncio.create_task(client.hand_over(body))
        # Who takes them dies on them, perhaps before it is answered, perhaps after.
        for name in ["store", "albums:albums_0", "albums:albums_1"] if LONG else ["store"]:
            await asyncio.sleep(rng.uniform(0.05, 0.4))
            await reaper.kill(name)
        begun = await handing
        handed_s = time.monotonic() - began
        id = begun["id"]

        seen = [begun]

        async def kill_in_turn() -> None:
            step = 1 / (len(victims) + 2)
            for number, name in enumerate(victims, 1):
                await until(lambda share=number * step: _reached(seen, share))
                await reaper.kill(name)

        requeued: list[str] = []
        async with asyncio.timeout(PATIENCE_S * (5 if LONG else 1)), asyncio.TaskGroup() as tasks:
            mending = tasks.create_task(_requeue_the_lost(n, requeued))
            tasks.create_task(kill_in_turn())
            await client.follow(begun["album"], seen)
            mending.cancel()
        took_s = time.monotonic() - began

        assert [each["done"] for each in seen] == sorted(each["done"] for each in seen)
        assert (seen[-1]["done"], seen[-1]["failed"], seen[-1]["status"]) == (IMAGES, 0, "done")
        assert set(reaper.killed) >= set(victims) - {ALL}

        for number in range(IMAGES):
            thumbnail = Image.open(io.BytesIO(await client.thumbnail(f"{begun['album']}/{number}")))
            original = Image.open(io.BytesIO(images[number]))
            scale = SIDE / max(original.size)
            assert thumbnail.size == tuple(round(side * scale) for side in original.size)
            assert read_number(thumbnail) == number

        # What it left: a count for each, no image, no task that failed for good, and one event.
        assert len([key async for key in n.state("albums-thumbnails").keys("")]) == IMAGES
        assert [key async for key in n.state("albums-originals").keys("")] == []
        assert len(await all_jobs(n, "albums.shrink", "done")) == IMAGES
        assert len(await all_jobs(n, "albums.finish", "done")) == 1
        await settled(n, "ear")
        assert (await n.state("heard").get(id)).value == 1
        assert (await n.state("told").get(id)).value["done"] == IMAGES
        attempts = sum(job.attempt for job in await all_jobs(n, "albums.shrink", "done"))
    tell(
        capsys,
        f"{IMAGES} images, {len(body) / 2**20:.1f} MiB: safe after {handed_s:.1f} s, done after {took_s:.1f} s; "
        f"{reaper.killed.total()} processes killed ({dict(sorted(reaper.killed.items()))}), {attempts} attempts for "
        f"{IMAGES} thumbnails; the client tried again: {dict(client.repeats)}; requeued: {len(requeued)}",
    )
