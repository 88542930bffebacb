"""services.thumbnails.album: many images in, progress and thumbnails out, each counted once."""

from __future__ import annotations

import asyncio
import io
import json
import random
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from PIL import Image

import mesh
from mesh import on, rpc
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import ManualClock, Mesh
from services.thumbnails import Albums, Thumbnails
from services.thumbnails import album as room

PATIENCE_S = 20.0


def photograph(seed: int, width: int = 96, height: int = 64) -> bytes:
    """Noise in one colour that tells which it is."""
    rng = random.Random(seed)
    small = Image.frombytes("L", (width, height), rng.randbytes(width * height))
    image = Image.merge(
        "RGB", [small.point(lambda value, k=k: value // 8 + (seed * 37 * (k + 1)) % 200) for k in range(3)]
    )
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def form(files: list[tuple[str, bytes]]) -> aiohttp.FormData:
    made = aiohttp.FormData({"title": "a field that is no file"})
    for name, content in files:
        made.add_field("image", content, filename=name, content_type="image/jpeg")
    return made


class Ear(mesh.Service):
    """Writes down what the log tells it."""

    name = "ear"

    @on("album.done", durable=True)
    async def heard(self, event: mesh.Event) -> None:
        async with self.atomic():
            await self.state("heard").add(event.data["id"])
            await self.state("told").set(event.data["id"], event.data)


@pytest.fixture
async def albums() -> AsyncIterator[Mesh]:
    settings = {"worker.processes": 1}
    async with Mesh(Thumbnails, Albums, Ear, replicas={Albums: 2}, transport="ipc", settings=settings) as m:
        yield m


@pytest.fixture
async def http(albums: Mesh) -> AsyncIterator[aiohttp.ClientSession]:
    front, _ = await app.connect_node(albums.settings)
    server = Gateway(front, albums.settings).make_server()
    listener = app.bind("127.0.0.1", 0)
    accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
    try:
        await front.wait_for("albums", PATIENCE_S)
        async with aiohttp.ClientSession(app.shown(listener)) as session:
            yield session
    finally:
        accepting.close()
        await server.shutdown(0.2)
        await front.close()


async def hand_over(http: aiohttp.ClientSession, body: Any, query: str = "") -> dict[str, Any]:
    async with http.post(f"/albums{query}", data=body) as told:
        assert told.status == 202, await told.text()
        progress: dict[str, Any] = await told.json()
        return progress


async def followed(http: aiohttp.ClientSession, address: str) -> list[dict[str, Any]]:
    """Every progress that an EventSource sees, to the end."""
    async with asyncio.timeout(PATIENCE_S), http.get(address, headers={"Accept": "text/event-stream"}) as told:
        assert (told.status, told.content_type) == (200, "text/event-stream")
        events = (await told.text()).removesuffix("\n\n").split("\n\n")
    assert events.pop() == "id: mesh-end\nevent: end\ndata: {}"
    return [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]


async def remaining(m: Mesh) -> list[str]:
    return [key async for key in m.state("albums-originals").keys("")]


async def heard(m: Mesh, id: str) -> int:
    """How often the durable handler heard of the album, as soon as it has."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            count = (await m.state("heard").get(id)).value
            if count:
                return int(count)
            await asyncio.sleep(0.02)


async def test_images_go_in_as_a_form_and_an_album_comes_out(albums: Mesh, http: aiohttp.ClientSession) -> None:
    """202 at once, progress as it goes, every thumbnail in its place, one event, and no image is kept longer."""
    files = [(f"{seed}.jpg", photograph(seed)) for seed in range(12)]
    begun = await hand_over(http, form(files), "?width=48&height=48")
    assert (begun["total"], begun["failed"], begun["failures"]) == (12, 0, [])
    assert begun["album"] == f"/albums/{begun['id']}"

    seen = await followed(http, begun["album"])
    assert [one["done"] for one in seen] == sorted({one["done"] for one in seen}), "each change is told once"
    assert (seen[-1]["done"], seen[-1]["status"]) == (12, "done")
    async with http.get(begun["album"]) as told:
        assert await told.json() == seen[-1]

    for number, (_, original) in enumerate(files):
        async with http.get(f"{begun['album']}/{number}") as told:
            assert (told.status, told.content_type) == (200, "image/jpeg")
            thumbnail = Image.open(io.BytesIO(await told.read()))
        assert thumbnail.size == (48, 32)
        wanted = Image.open(io.BytesIO(original)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        got = thumbnail.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert isinstance(wanted, tuple)
        assert isinstance(got, tuple)
        assert all(abs(one - other) <= 4 for one, other in zip(wanted, got, strict=True)), number
    assert await heard(albums, begun["id"]) == 1
    assert (await albums.state("told").get(begun["id"])).value == seen[-1]
    assert await remaining(albums) == []


async def test_what_is_no_image_is_listed_and_the_rest_is_made(albums: Mesh, http: aiohttp.ClientSession) -> None:
    """An album is done when nothing is left to do; each failure has the name, the code and the reason."""
    files = [
        ("a.jpg", photograph(1)),
        ("notes.txt", b"milk"),
        ("cut.jpg", photograph(2)[:900]),
        ("b.jpg", photograph(3)),
    ]
    address = (await hand_over(http, form(files)))["album"]
    progress = (await followed(http, address))[-1]
    assert (progress["done"], progress["failed"], progress["status"]) == (2, 2, "done")
    assert [(one["number"], one["name"], one["code"]) for one in progress["failures"]] == [
        (1, "notes.txt", "not_an_image"),
        (2, "cut.jpg", "bad_image"),
    ]
    for number, status, said in (
        ("0", 200, ""),
        ("1", 404, "image 1 (notes.txt)"),
        ("4", 404, "0 to 3"),
        ("-1", 404, "-1"),
        ("x", 400, "number"),
    ):
        async with http.get(f"{address}/{number}") as told:
            assert told.status == status
            if said:
                assert said in (await told.json())["detail"]
    assert await heard(albums, progress["id"]) == 1
    assert (await albums.state("told").get(progress["id"])).value == progress
    assert await remaining(albums) == []


async def test_the_same_images_are_the_same_album(albums: Mesh, http: aiohttp.ClientSession) -> None:
    """Repeated at the same time, later, and in another form; in another size it is another one."""
    files = [(f"{seed}.jpg", photograph(seed)) for seed in range(6)]
    twice = await asyncio.gather(*(hand_over(http, form(files)) for _ in range(4)))
    (id,) = {one["id"] for one in twice}
    await followed(http, f"/albums/{id}")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        for name, content in files:
            writing.writestr(name, content)
    again = await hand_over(http, archive.getvalue())
    assert (again["id"], again["done"], again["status"]) == (id, 6, "done")
    other = await hand_over(http, archive.getvalue(), "?width=20")
    assert other["id"] != id
    await followed(http, other["album"])
    assert await heard(albums, other["id"]) == 1
    assert await heard(albums, id) == 1
    assert await remaining(albums) == []


async def test_what_is_no_album_is_refused(http: aiohttp.ClientSession) -> None:
    """By status and code, and before anything is kept."""
    for body, query, status, code in (
        (b"", "", 422, "bad_parcel"),
        (b"--b\r\ncut off", "", 422, "bad_parcel"),
        (b"PK\x03\x04", "", 422, "bad_parcel"),
        (photograph(1), "?width=0", 400, "bad_arguments"),
        (photograph(1), "?height=5000", 400, "bad_arguments"),
        (io.BytesIO(bytes(17 * 2**20)), "", 413, "too_large"),
    ):
        async with http.post(f"/albums{query}", data=body) as told:
            assert (told.status, (await told.json())["code"]) == (status, code)
    for accept in ("application/json", "text/event-stream"):
        async with http.get("/albums/0123", headers={"Accept": accept}) as told:
            assert (told.status, (await told.json())["code"]) == (404, "unknown_album")


class Moody(mesh.Service):
    """Stands where the thumbnail service would; `moods` are the errors of the next calls, the last one for ever."""

    name = "thumbnails"
    moods: list[mesh.MeshError | None] = []
    called = 0

    @rpc
    async def thumbnail(self, image: bytes, width: int, height: int) -> bytes:
        Moody.called += 1
        mood = Moody.moods.pop(0) if len(Moody.moods) > 1 else Moody.moods[0]
        if mood is not None:
            raise mood
        return b"small"


async def settled(m: Mesh, id: str) -> room.Progress:
    for _ in range(600):
        progress = await m.rpc[Albums].album(id)
        if progress.status == "done":
            return progress
        await m.advance(5)
        await m.idle()
    raise AssertionError(f"it did not end: {progress}")


@pytest.mark.parametrize(
    ("moods", "calls", "failed"),
    [
        ([mesh.Unavailable("nobody is there")] * 30 + [None], 31, 0),
        ([mesh.ServiceError("the decoder crashed")], room.PATIENCE, 1),
        ([mesh.ServiceError("the decoder crashed")] * 3 + [None], 4, 0),
    ],
)
async def test_an_image_is_blamed_only_for_what_is_its_fault(
    moods: list[mesh.MeshError | None], calls: int, failed: int
) -> None:
    """Who is away is waited for; what crashes every time is given up after some attempts, and listed."""
    Moody.moods, Moody.called = [*moods], 0
    async with Mesh(Moody, Albums, clock=ManualClock()) as m:
        begun = await m.rpc[Albums].create(b"an image")
        progress = await settled(m, begun.id)
        assert (Moody.called, progress.failed, progress.done) == (calls, failed, 1 - failed)
        if failed:
            assert progress.failures[0].message == "the decoder crashed"
        await m.idle()
        assert await remaining(m) == []


async def test_a_worker_that_leaves_sends_its_followers_elsewhere() -> None:
    """It does not wait for an album that is not done, and an EventSource that follows again misses nothing."""
    Moody.moods = [mesh.Unavailable("nobody is there")]
    async with Mesh(Moody, Albums, replicas={Albums: 2}) as m:
        begun = await m.rpc[Albums].create(b"an image")
        followers = [m.rpc[Albums].follow(begun.id) for _ in range(4)]
        for each in followers:
            assert await anext(each) == begun
        draining = asyncio.create_task(m.drain(m.workers(Albums)[0]))
        left = 0
        async with asyncio.timeout(PATIENCE_S):
            assert await draining
            Moody.moods = [None]
            for each in followers:
                try:
                    assert [one.status async for one in each][-1] == "done"
                except mesh.Draining:
                    left += 1
            assert [one.status async for one in m.rpc[Albums].follow(begun.id)][-1] == "done"
        assert 0 < left < len(followers)


async def test_a_forgotten_album_may_come_again() -> None:
    """Its counts begin anew, also when they were not yet forgotten with it."""
    Moody.moods = [None]
    async with Mesh(Moody, Albums, clock=ManualClock()) as m:
        for _ in range(2):
            begun = await m.rpc[Albums].create(b"an image")
            assert (begun.done, begun.status) == (0, "working")
            assert (await settled(m, begun.id)).done == 1
            await m.idle()
            await m.state("albums").delete(begun.id)
        with pytest.raises(mesh.RemoteError) as caught:
            await m.rpc[Albums].album(begun.id)
        assert caught.value.code == "unknown_album"
        assert begun.id in caught.value.message
