"""A file of a form as a parameter: `photo: http.File`. Small ones are in memory, larger ones in a temporary file.

Owns: both, and removing the temporary file.
Leaves to others: filling them from the body (fields).
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from typing import IO, Final, TypeVar

from mesh.calls.forms.errors import SPOOL_BYTES

T = TypeVar("T")

_CHUNK_BYTES: Final = 256 * 1024


class Spool:
    """The files of one form, which stay in memory until they have SPOOL_BYTES together.

    One temporary file holds all others, one after the other: a form with many files must not exhaust the file
    descriptors of the worker. It has no name on disk, so that it is gone with the process in every case.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0
        self._in_memory = 0
        self._closed = False
        self._lock = threading.Lock()

    def fits(self, size: int) -> bool:
        """Whether so many bytes more may stay in memory; they count from now on when they may."""
        if self._in_memory + size > SPOOL_BYTES:
            return False
        self._in_memory += size
        return True

    def free(self, size: int) -> None:
        """So many bytes have been moved to the file."""
        self._in_memory -= size

    @property
    def end(self) -> int:
        """The size of the temporary file."""
        return self._size

    async def append(self, data: bytes | bytearray) -> None:
        """Write to the end of the temporary file, in a thread."""

        def write() -> None:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="mesh-form-")  # noqa: SIM115  # `close` closes it
            self._file.seek(self._size)
            self._file.write(data)

        await asyncio.to_thread(self._locked, write)
        self._size += len(data)

    async def read(self, offset: int, size: int) -> bytes:
        """Read from the temporary file, in a thread."""

        def read() -> bytes:
            assert self._file is not None
            self._file.seek(offset)
            return self._file.read(size)

        return await asyncio.to_thread(self._locked, read)

    def close(self) -> None:
        """Remove the temporary file. A thread that uses it at this moment removes it when it is done."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                if self._file is not None:
                    self._file.close()
                    self._file = None
            finally:
                self._lock.release()

    def _locked(self, work: Callable[[], T]) -> T:
        try:
            with self._lock:
                if self._closed:
                    raise ValueError("the file of the form is removed: the handler has returned")
                return work()
        finally:
            if self._closed:
                self.close()


class File:
    """A file of a form: the parameter `photo: http.File`. It is removed when the handler returns.

    In a unit test make one of bytes: `await shop.upload(photo=http.File(b"…", filename="a.png"))`.

    Args:
        data: the content.
        filename: see below.
        content_type: see below.

    Attributes:
        filename: the base name as the client gives it: never use it as a path.
        content_type: as the client gives it, unchecked; "" without one.
        size: bytes.

    Example::

        @http.post("/photos")
        async def upload(self, title: Annotated[str, http.Form], photo: http.File) -> int:
            async for chunk in photo.chunks():
                ...
            return photo.size
    """

    __slots__ = ("_data", "_offset", "_spool", "content_type", "filename", "size")

    def __init__(self, data: bytes = b"", *, filename: str = "", content_type: str = "") -> None:
        self.filename = filename
        self.content_type = content_type
        self.size = len(data)
        self._data: bytes | bytearray = data
        self._spool: Spool | None = None
        self._offset = 0

    def __repr__(self) -> str:
        return f"http.File(filename={self.filename!r}, content_type={self.content_type!r}, size={self.size})"

    async def read(self) -> bytes:
        """The whole content, in memory.

        Raises:
            ValueError: the handler that received the file has returned.
        """
        if self._spool is None:
            return bytes(self._data)
        return await self._spool.read(self._offset, self.size)

    async def chunks(self, size: int = _CHUNK_BYTES) -> AsyncIterator[bytes]:
        """The content in chunks.

        Args:
            size: bytes of each chunk but the last.

        Raises:
            ValueError: the handler that received the file has returned.
        """
        for at in range(0, self.size, size):
            if self._spool is None:
                yield bytes(self._data[at : at + size])
            else:
                yield await self._spool.read(self._offset + at, min(size, self.size - at))

    async def _fill(self, chunks: AsyncIterator[bytes], spool: Spool) -> None:
        """Take the content from the body of the form."""
        held = bytearray()
        self._data = held
        async for chunk in chunks:
            if self._spool is None and spool.fits(len(chunk)):
                held += chunk
            else:
                if self._spool is None:
                    self._spool, self._offset = spool, spool.end
                    if held:
                        await spool.append(held)
                    spool.free(len(held))
                    self._data = b""
                await spool.append(chunk)
            self.size += len(chunk)
