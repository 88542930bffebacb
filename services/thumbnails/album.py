"""Albums: many images handed over at once, their thumbnails made afterwards, and how far that is.

Owns: what is kept of an album and where, and its way from the first byte to the last thumbnail.
Leaves to others: making one thumbnail (service), taking a body apart (parcel).

Nothing here remembers anything: images, thumbnails and counts are state, the work to do is tasks. What a task writes is
committed with its acknowledgement, so each thumbnail counts once, whatever dies on the way.

It is a service of its own, since it waits where the other one computes: each has its own replicas and limits, and an
album of thousands leaves room for whoever asks for one thumbnail.

| namespace of state | key | value |
|---|---|---|
| albums | id | Album |
| albums-originals | id/00042 | an image, until its thumbnail is made |
| albums-thumbnails | id/00042 | a JPEG |
| albums-failures | id/00042 | Failure |
| albums-counts | id/done, id/failed | how many |
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Final, Literal

import msgspec

import mesh
from mesh import http, rpc, task
from services.thumbnails import parcel
from services.thumbnails.parcel import Part
from services.thumbnails.service import Side, Thumbnails

#: How long all that belongs to an album is kept. Images too: a task may have to wait for its worker.
KEEP: Final = "30d"
#: Bytes, and number, of images that are written in one commit: others' commits need not wait long behind it.
CHUNK_BYTES: Final = 2**20
CHUNK_IMAGES: Final = 200
#: Albums that one worker unpacks at once, each with all its images in memory; and how many wait for that.
UNPACKED_AT_ONCE: Final = 2
UNPACKED_LATER: Final = 16
#: Thumbnails that one worker asks for at once.
AT_ONCE: Final = 4
#: With the waits between them, some three hours: so long may the thumbnail service be away.
RETRIES: Final = 200
#: Images are decoded in processes of the thumbnail service: this one is not what kills, so its deaths are accidents.
DEATHS: Final = 100
#: After so many attempts an image that crashes or hangs what decodes it is listed as failed.
PATIENCE: Final = 10
#: How often a follower looks.
LOOK_S: Final = 0.25


class UnknownAlbum(mesh.ServiceError):
    """There is no such album, or no longer."""

    code = "unknown_album"
    status = 404


class NoThumbnail(mesh.ServiceError):
    """The album has no such thumbnail, or not yet."""

    code = "no_thumbnail"
    status = 404


class Album(msgspec.Struct, frozen=True):
    """An album as it was handed over.

    Attributes:
        names: of its images, in order.
        width, height: what a thumbnail fits into.
    """

    names: list[str]
    width: int
    height: int


class Failure(msgspec.Struct, frozen=True):
    """An image that has no thumbnail, and why.

    Attributes:
        number: its place in the album, from 0.
        code: as of the error that a single thumbnail would be answered with: "not_an_image".
    """

    number: int
    name: str
    code: str
    message: str


class Progress(msgspec.Struct, frozen=True):
    """How far an album is.

    Attributes:
        album: where it is: "/albums/3f9ac2d1"; its thumbnails are below, from "/albums/3f9ac2d1/0" on.
        total, done, failed: numbers of images; failed are those that are none, or broken.
        status: "done" when nothing is left to do.
        failures: what failed, by number; in a stream only at its end.
    """

    id: str
    album: str
    total: int
    done: int
    failed: int
    status: Literal["working", "done"]
    failures: list[Failure] = []


class Albums(mesh.Service):
    """Makes thumbnails of many images at once, and tells how far it is."""

    name = "albums"
    version = "1.0"
    needs = ["thumbnails"]

    _leaving = False

    def draining(self) -> None:
        """Followers are sent elsewhere: an album may take longer than a worker that leaves has left."""
        self._leaving = True

    # --- handing over -------------------------------------------------------------------------------------

    @http.post("/albums", status=202, forms=True)
    @rpc(idempotent=True, concurrency=UNPACKED_AT_ONCE, queue=UNPACKED_LATER)
    async def create(self, images: bytes, width: Side = 256, height: Side = 256) -> Progress:
        """Hand over many images: multipart/form-data (`curl -F image=@a.jpg -F image=@b.jpg`), a zip or tar archive
        (also .tar.gz), or one image.

        It is answered when all of them are safe; their thumbnails follow, each fitting into width × height. The durable
        event `album.done` tells when the last one is there. The same images with the same names, asked for in the same
        size, are the same album: a request without an answer may be repeated.

        At most 2,000 images, of 32 MiB each and 128 MiB together once unpacked. Over HTTP the body is bounded by
        gateway.max_body, 16 MiB unless set: 1,000 images of 15 KB. An album is kept for 30 days.

        Errors: 422 `bad_parcel`, 413 `parcel_too_large`.
        """
        parts, id = await asyncio.to_thread(_opened, images, width, height)
        del images
        albums, counts = self.state("albums", Album), self.state("albums-counts")
        if (await albums.get(id)).etag:
            return await self.album(id)
        await self._keep(id, parts)
        names = [part.name for part in parts]
        del parts
        try:
            async with self.atomic():
                await albums.set(id, Album(names, width, height), etag="", ttl=KEEP)
                # Written, not left to `add`: those of an album that was just forgotten may still be there.
                await counts.transaction([counts.put(f"{id}/{one}", 0, ttl=KEEP) for one in ("done", "failed")])
                await self.group(
                    *(mesh.step(self.shrink, id, number, width, height) for number in range(len(names))),
                    then=mesh.step(self.finish, id),
                )
        except mesh.Conflict:
            # The same images came twice at the same time. What we wrote after it was dealt with nobody will fetch.
            await self._drop_settled(id)
        return await self.album(id)

    async def _keep(self, id: str, parts: list[Part]) -> None:
        """Write the images, some at a time."""
        originals = self.state("albums-originals")
        for chunk in _chunks(parts):
            await originals.transaction(originals.put(_key(id, number), image, ttl=KEEP) for number, image in chunk)

    async def _drop_settled(self, id: str) -> None:
        originals = self.state("albums-originals")
        for namespace in ("albums-thumbnails", "albums-failures"):
            async for key in self.state(namespace).keys(f"{id}/"):
                await originals.delete(key)

    # --- work ---------------------------------------------------------------------------------------------

    @task(retries=RETRIES, backoff="100ms..1m", timeout="1m", slots=AT_ONCE, lost=DEATHS, fatal=UnknownAlbum)
    async def shrink(self, id: str, number: int, width: int, height: int) -> None:
        """Make one thumbnail; it is counted in the commit that acknowledges this task.

        One that ends in the dead letters leaves its album at "working", until it is requeued:
        `mesh tasks dead requeue albums.shrink --all`.
        """
        originals, counts = self.state("albums-originals"), self.state("albums-counts")
        key = _key(id, number)
        image = (await originals.get(key, type=bytes)).value
        if image is None:
            raise mesh.Reject(f"image {number} of album {id} no longer exists")
        try:
            small = await self.rpc[Thumbnails].thumbnail(image, width, height)
        except mesh.MeshError as exc:
            if not _is_to_blame(exc):
                raise
            name = (await self._find(id)).names[number]
            async with self.atomic():
                failure = Failure(number, name, exc.code, exc.message)
                await self.state("albums-failures").set(key, failure, ttl=KEEP)
                await counts.add(f"{id}/failed", ttl=KEEP)
                await originals.delete(key)
            return
        async with self.atomic():
            await self.state("albums-thumbnails").set(key, small, ttl=KEEP)
            await counts.add(f"{id}/done", ttl=KEEP)
            await originals.delete(key)

    @task(retries=RETRIES, lost=DEATHS, fatal=UnknownAlbum)
    async def finish(self, id: str) -> None:
        """Tell that nothing is left to do."""
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
        return await self._told(await self._progress(id, len((await self._find(id)).names)))

    @http.get("/albums/{id}")
    @rpc
    async def follow(self, id: str) -> AsyncIterator[Progress]:
        """How far an album is, each time that changes, to its end. Who was cut off follows again, and is told where it
        is by then.

        Errors: 404 `unknown_album`, 503 `draining` when this worker leaves.
        """
        total = len((await self._find(id)).names)
        told = None
        while True:
            progress = await self._progress(id, total)
            if progress.status == "done":
                yield await self._told(progress)
                return
            if progress != told:
                yield progress
                told = progress
            if self._leaving:
                raise mesh.Draining(f"this worker of {self.name} is draining; follow album {id} again")
            await asyncio.sleep(LOOK_S)

    @http.get("/albums/{id}/{number}", produces="image/jpeg")
    @rpc
    async def thumbnail(self, id: str, number: int) -> bytes:
        """One thumbnail, as JPEG; numbers begin at 0, in the order in which the images came.

        Errors: 404 `unknown_album`, 404 `no_thumbnail`, also while it is not made yet.
        """
        small = (await self.state("albums-thumbnails").get(_key(id, number), type=bytes)).value
        if small is not None:
            return small
        album = await self._find(id)
        if not 0 <= number < len(album.names):
            raise NoThumbnail(f"album {id} has the images 0 to {len(album.names) - 1}, but not {number}")
        failure = (await self.state("albums-failures", Failure).get(_key(id, number))).value
        why = "is not ready yet" if failure is None else f"failed: {failure.message}"
        raise NoThumbnail(f"the thumbnail of image {number} ({album.names[number]}) {why}")

    async def _find(self, id: str) -> Album:
        album = (await self.state("albums", Album).get(id)).value
        if album is None:
            raise UnknownAlbum(f"there is no album {id}: the id is wrong, or the album has expired")
        return album

    async def _progress(self, id: str, total: int) -> Progress:
        """The counts, as of one instant: both are read in one step."""
        counts = await self.state("albums-counts", int).get_many([f"{id}/done", f"{id}/failed"])
        done, failed = (count.value or 0 for count in counts.values())
        return Progress(id, f"/albums/{id}", total, done, failed, "done" if done + failed == total else "working")

    async def _told(self, progress: Progress) -> Progress:
        """With what failed."""
        if not progress.failed:
            return progress
        failures = self.state("albums-failures", Failure).items(f"{progress.id}/")
        return msgspec.structs.replace(progress, failures=[failure async for _, failure in failures])


def _opened(images: bytes, width: int, height: int) -> tuple[list[Part], str]:
    """The images, and the album's id, which is made of them. Not of the body: curl -F draws a boundary by lot."""
    parts = parcel.unpack(images)
    digest = hashlib.sha256(b"%d %d" % (width, height))
    for name, content in parts:
        digest.update(msgspec.msgpack.encode((name, hashlib.sha256(content).digest())))
    return parts, digest.hexdigest()[:20]


def _chunks(parts: list[Part]) -> Iterator[list[tuple[int, bytes]]]:
    """The images with their numbers, in pieces for one commit each."""
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for number, part in enumerate(parts):
        if chunk and (size + len(part.content) > CHUNK_BYTES or len(chunk) >= CHUNK_IMAGES):
            yield chunk
            chunk, size = [], 0
        chunk.append((number, part.content))
        size += len(part.content)
    yield chunk


def _is_to_blame(error: mesh.MeshError) -> bool:
    """Whether it is the image's fault, so that another attempt would end the same way.

    Of what crashes or hangs a decoder nobody knows: it has several attempts. What is away or busy comes back; should
    it not, the task becomes a dead letter that can be requeued, and the album goes on from there.
    """
    if isinstance(error, mesh.TryLater | mesh.LinkLost):
        return False
    attempt = mesh.current_task(None)
    return error.status < 500 or (attempt is not None and attempt.attempt - attempt.lost >= PATIENCE)


def _key(id: str, number: int) -> str:
    """Of one image of an album: they are listed in order."""
    return f"{id}/{number:05}"
