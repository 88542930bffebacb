"""A multipart form as a handler reads it: a stream of parts, each a stream of bytes.

Owns: `http.Multipart` and its parts: reading on only as the handler reads, skipping, and the limits of reading.
Leaves to others: splitting the body (parsing), fields as parameters (fields).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Final

from mesh.calls.forms.content_type import Head, check_charset
from mesh.calls.forms.errors import TEXT_BYTES, BadForm, too_large
from mesh.calls.forms.parsing import Event, Parser

# A chunk of the body is parsed in slices, with other work between them: a body made to be slow to parse (small parts
# with many header fields, until there are MOST_PARTS) takes 20 ms of CPU time for 64 KiB.
_SLICE_BYTES: Final = 64 * 1024


class Part:
    """One part of a form: a text field or a file. Read it before the next one: `async for chunk in part`.

    Attributes:
        name: of the field.
        filename: the base name of a file as the client gives it: never use it as a path. None for a text field; "" for
            a file input without a chosen file.
        content_type: as the client gives it, unchecked; "" without one.
        headers: all header fields of the part, by their names in lower case.
        size: bytes that have been read.
    """

    __slots__ = ("_ended", "_form", "_head", "_skipped", "size")

    def __init__(self, form: Multipart, head: Head) -> None:
        self._form = form
        self._head = head
        self._ended = False
        self._skipped = False
        self.size = 0

    @property
    def name(self) -> str:
        return self._head.name

    @property
    def filename(self) -> str | None:
        return self._head.filename

    @property
    def content_type(self) -> str:
        return self._head.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        return self._head.headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes, at most 64 KiB and a few.

        Raises:
            BadForm: the form is malformed.
            RuntimeError: the rest of the part was skipped, because the handler went on to the next one.
        """
        if self._skipped:
            raise RuntimeError(f'the part "{self.name[:100]}" was skipped: read a part before the next one')
        if self._ended:
            raise StopAsyncIteration
        event = await self._form._next()
        if isinstance(event, bytes):
            self.size += len(event)
            return event
        self._ended = True
        raise StopAsyncIteration

    async def read(self, max_bytes: int = TEXT_BYTES) -> bytes:
        """The rest of the part, in memory.

        Args:
            max_bytes: the most that it may have.

        Raises:
            FormTooLarge: it has more.
            BadForm: the form is malformed.
        """
        found = bytearray()
        async for chunk in self:
            found += chunk
            if len(found) > max_bytes:
                raise too_large(f"form.{self.name[:100]}", max_bytes)
        return bytes(found)

    async def text(self, max_bytes: int = TEXT_BYTES) -> str:
        """The rest of the part as text, in memory; arguments as for `read`.

        Raises:
            FormTooLarge: it has more than `max_bytes`.
            BadForm: it is not UTF-8, or the form is malformed.
        """
        check_charset(self._head)
        try:
            return (await self.read(max_bytes)).decode()
        except UnicodeDecodeError:
            raise BadForm(
                f"form.{self.name[:100]}: is not UTF-8", details={"path": f"form.{self.name[:100]}"}
            ) from None


class Multipart:
    """The parameter `form: http.Multipart` of a handler: the parts of a multipart form, in order, as they arrive.

    ::

        @http.post("/photos", max_body="2GiB")
        async def upload(self, form: http.Multipart) -> int:
            size = 0
            async for part in form:
                if part.filename:
                    async for chunk in part:
                        size += len(chunk)
            return size

    What a handler does not read of a part is skipped. The body is read from the client only as fast as the handler
    reads. See docs/http.md, "Forms".

    Args:
        chunks: the body.
        content_type: of the body, with its boundary.

    Raises, when iterated:
        BadForm: the form is malformed.
        FormTooLarge: it has more than 1,000 parts, or too many or too long header fields.
    """

    def __init__(self, chunks: AsyncIterable[bytes], content_type: str) -> None:
        self._chunks = aiter(chunks)
        self._chunk = b""
        self._at = 0
        self._failure: BadForm | None = None
        self._content_type = content_type
        self._parser: Parser | None = None
        self._part: Part | None = None

    def __aiter__(self) -> AsyncIterator[Part]:
        return self

    async def __anext__(self) -> Part:
        if self._part is not None and not self._part._ended:
            async for _ in self._part:
                pass
            self._part._skipped = True
        event = await self._next()
        if not isinstance(event, Head):
            raise StopAsyncIteration
        self._part = Part(self, event)
        return self._part

    async def _next(self) -> Event | None:
        """The next event; None at the end of the body, which includes what follows the closing boundary."""
        if self._failure is not None:
            # The handler has caught it and reads on.
            raise self._failure
        try:
            return await self._parsed()
        except BadForm as exc:
            self._failure = exc
            raise

    async def _parsed(self) -> Event | None:
        if self._parser is None:
            self._parser = Parser(self._content_type)
        events = self._parser.events
        while not events:
            if self._at >= len(self._chunk):
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    self._parser.finish()
                    return None
                self._chunk, self._at = chunk, 0
            else:
                await asyncio.sleep(0)
            at, self._at = self._at, self._at + _SLICE_BYTES
            self._parser.feed(self._chunk[at : self._at])
        return events.popleft()
