"""Albums: many images handed over at once, their thumbnails made afterwards, and how far that is.

Owns: what is kept of an album and where, and its way from the first byte to the last thumbnail.
Leaves to others: making one thumbnail (service), taking a body apart (parcel).

Nothing here remembers anything: images, thumbnails and counts are state, the work to do is tasks. What a task writes is
committed with its acknowledgement, so each thumbnail counts once, whatever dies on the way.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Final, Literal

import msgspec

import mesh
from mesh import http, rpc, task
from services.thumbnails import parcel
from services.thumbnails.parcel import Part

#: Bytes of images that are written in one transaction.
CHUNK_BYTES: Final = 4 * 2**20
#: Images whose album never came to be, because the process died before it: forgotten after this time.
ORPHANS: Final = "1d"
#: How long an album is kept.
KEEP: Final = "30d"
#: How often a follower looks.
LOOK_S: Final = 0.25
#: A follower of an album on which nothing happens is told again after so long, so that the connection is not idle.
TELL_AGAIN_S: Final = 10.0
AT_ONCE: Final = 4


class UnknownAlbum(mesh.ServiceError):
    """There is no such album."""

    code = "unknown_album"
    status = 404


class Album(msgspec.Struct, frozen=True):
    """An album as it was handed over."""

    id: str
    names: list[str]
    width: int
    height: int


class Failure(msgspec.Struct, frozen=True):
    """An image that has no thumbnail."""

    number: int
    name: str
    code: str
    message: str


class Progress(msgspec.Struct, frozen=True):
    """How far an album is.

    Attributes:
        images: where it is: "/albums/3f9ac2d1".
        total, done, failed: images; failed are those that are none, or broken.
        status: "done" when nothing is left to do.
    """

    id: str
    images: str
    total: int
    done: int
    failed: int
    status: Literal["working", "done"]
    failures: list[Failure] = []


class Albums(mesh.Service):
    """The part of the thumbnail service that deals with albums; a service of its own would have to fetch images twice."""

    name = "albums"
    needs = ["thumbnails"]

    @http.post("/albums", status=202)
    @rpc(idempotent=True)
    async def create(self, images: bytes, width: int = 256, height: int = 256) -> Progress:
        """Hand over many images: as multipart/form-data (`curl -F image=@a.jpg -F image=@b.jpg`), or in a zip or tar
        archive. It is answered when they are safe; thumbnails follow. The same images make the same album.

        Errors: 422 `bad_parcel`.
        """
        parts = await asyncio.to_thread(parcel.unpack, images)
        id = hashlib.sha256(b"%d %d " % (width, height) + images).hexdigest()[:20]
        albums = self.state("albums")
        if (await albums.get(id))[1]:
            return await self.album(id)
        await self._keep(id, parts)
        album = Album(id, [part.name for part in parts], width, height)
        try:
            async with self.atomic():
                await albums.set(id, album, etag="", ttl=KEEP)
                await self.group(
                    *(mesh.step(self.shrink, id, number) for number in range(len(parts))),
                    then=mesh.step(self.finish, id),
                )
        except mesh.Conflict:
            pass  # the same images came twice at the same time
        return await self.album(id)

    async def _keep(self, id: str, parts: list[Part]) -> None:
        """Write the images, some megabytes at a time."""
        originals = self.state("albums-originals")
        writes, size = [], 0
        for number, part in enumerate(parts):
            writes.append(originals.put(place(id, number), part.content, ttl=ORPHANS))
            size += len(part.content)
            if size >= CHUNK_BYTES or len(writes) >= 500:
                await originals.transaction(writes)
                writes, size = [], 0
        await originals.transaction(writes)

    @task(retries=8, backoff="100ms..5s", timeout="1m", slots=AT_ONCE)
    async def shrink(self, id: str, number: int) -> None:
        """Make one thumbnail; count it in the same commit that acknowledges it."""
        album = await self._find(id)
        originals, counts = self.state("albums-originals"), self.state("albums-counts")
        image, _ = await originals.get(place(id, number), type=bytes)
        try:
            if image is None:
                raise mesh.ServiceError("its image is not there any more")
            small = await self.call("thumbnails.thumbnail", image, album.width, album.height, timeout=30)
        except mesh.ServiceError as exc:
            # What the image is to blame for: another attempt would end the same way.
            failure = Failure(number, album.names[number], exc.code, exc.message)
            async with self.atomic():
                await self.state("albums-failures").set(place(id, number), failure, ttl=KEEP)
                await counts.add(f"{id}/failed", ttl=KEEP)
                await originals.delete(place(id, number))
            return
        async with self.atomic():
            await self.state("albums-thumbnails").set(place(id, number), small, ttl=KEEP)
            await counts.add(f"{id}/done", ttl=KEEP)
            await originals.delete(place(id, number))

    @task
    async def finish(self, id: str) -> None:
        """Tell that the last thumbnail is there."""
        progress = await self.album(id)
        async with self.atomic():
            await self.emit("album.done", progress, key=id, durable=True)

    # --- looking ------------------------------------------------------------------------------------------

    @http.get("/albums/{id}")
    @rpc
    async def album(self, id: str) -> Progress:
        """How far an album is. With `Accept: text/event-stream` it is told as it goes.

        Errors: 404 `unknown_album`.
        """
        album = await self._find(id)
        counts = await self.state("albums-counts").get_many([f"{id}/done", f"{id}/failed"])
        done, failed = ((value or 0) for value, _ in counts.values())
        total = len(album.names)
        failures = [one async for _, one in self.state("albums-failures", Failure).items(f"{id}/")] if failed else []
        status: Literal["working", "done"] = "done" if done + failed == total else "working"
        return Progress(id, f"/albums/{id}", total, done, failed, status, failures)

    @http.get("/albums/{id}")
    @rpc
    async def follow(self, id: str) -> AsyncIterator[Progress]:
        """How far an album is, each time that changes, to its end."""
        told: Progress | None = None
        silent_s = 0.0
        while told is None or told.status != "done":
            progress = await self.album(id)
            if progress != told or silent_s >= TELL_AGAIN_S:
                yield progress
                told, silent_s = progress, 0.0
            if progress.status != "done":
                await asyncio.sleep(LOOK_S)
                silent_s += LOOK_S

    @http.get("/albums/{id}/{number}", produces="image/jpeg")
    @rpc
    async def thumbnail(self, id: str, number: int) -> bytes:
        """One thumbnail, as JPEG; numbers begin at 0, in the order in which the images came.

        Errors: 404 `unknown_album`, also while it is not made yet.
        """
        small, _ = await self.state("albums-thumbnails").get(place(id, number), type=bytes)
        if small is None:
            raise UnknownAlbum(f"album {id} has no thumbnail {number}, or not yet")
        return bytes(small)

    async def _find(self, id: str) -> Album:
        album, etag = await self.state("albums", Album).get(id)
        if not etag or album is None:
            raise UnknownAlbum(f"there is no album {id}")
        return album


def place(id: str, number: int) -> str:
    """The key of one image of an album."""
    return f"{id}/{number:05}"
