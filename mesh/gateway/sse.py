"""Writes a stream to an HTTP client item by item: as Server-Sent Events, NDJSON, or raw bytes.

Owns: the framing of each form, when to send the head, heartbeats, back-pressure, and the form of an error in the middle
of an answer.
Leaves to others: the stream itself (node), choosing the form (media).

The head waits for the first item, so that a stream that fails at once still gets its proper status; when none arrives
within `HEAD_WAIT_S`, the head is sent alone. Items that are available together are sent in one chunk.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp.http import HttpVersion11

from mesh.calls.server_event import read_envelope, shown
from mesh.clock import Clock, Timer
from mesh.errors import BadReply, Draining, MeshError
from mesh.gateway.answers import json_of
from mesh.gateway.media import NDJSON_TYPE, SSE_TYPE, StreamForm
from mesh.gateway.ports import Answer
from mesh.gateway.problems import Problems
from mesh.gateway.reply import HeadOnly, Reply, date_line, head_of
from mesh.gateway.request import RawRequest
from mesh.protocol.messages import MSGPACK

#: The client of a slow stream receives the head within this time.
HEAD_WAIT_S: Final = 1.0

#: The id of a stream's last event. A request with this Last-Event-ID is answered 204, which ends an EventSource.
#: Source: HTML Living Standard, 9.2.3, "Processing model".
END_ID: Final = "mesh-end"

#: Tells an EventSource how long to wait before it connects again, in milliseconds.
_RETRY: Final = b"retry: 1000\n\n"

#: Proxies commonly close connections that are idle for 60 s, some for 30 s.
BEAT_S: Final = 15.0

#: A buffer larger than this is written at once instead of at the end of the loop iteration.
CHUNK_BYTES: Final = 64 * 1024

_TYPES: Final[dict[StreamForm, str]] = {"sse": SSE_TYPE, "ndjson": NDJSON_TYPE, "raw": "application/octet-stream"}


class StreamReply:
    """An answer of many items; replaces aiohttp's Response, like `reply.Reply`.

    Args:
        events: items in MessagePack are envelopes: data with an id and a name.
        length: bytes of the whole body, for the form "raw"; None when it is not known.

    Attributes:
        begun: there has been an item, or the head has been sent: the status can no longer change.
        keep_alive: aiohttp reads it after the answer.
    """

    def __init__(
        self,
        request: RawRequest,
        clock: Clock,
        form: StreamForm,
        *,
        status: int = 200,
        produces: str = "",
        extra: bytes = b"",
        keep_alive: bool = True,
        problems: Problems | None = None,
        length: int | None = None,
        events: bool = False,
    ) -> None:
        self._problems = problems or Problems()
        self._request = request
        self._clock = clock
        self._form = form
        self._events = events
        self.status = status
        self._type = produces if form == "raw" and produces else _TYPES[form]
        self._extra = extra
        self._length = length
        self._chunked = length is None and request.version == HttpVersion11
        # HTTP/1.0 has no chunks: closing the connection ends an answer of unknown length.
        self.keep_alive = keep_alive and request.keep_alive and (self._chunked or length is not None)
        self.begun = False
        self._head_sent = False
        #: Bytes of the body that have been written.
        self.size = 0
        self._over = False
        self._buffer = bytearray()
        self._flush_asked = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        #: `leave` has ended it, and cancelled the task that reads the stream.
        self.left = False
        self._active_at = clock.now()
        self._timer: Timer | None = clock.call_at(self._active_at + HEAD_WAIT_S, self._beat)

    async def item(self, answer: Answer) -> None:
        """Send one item; waits while the client reads too slowly.

        Raises:
            ConnectionError: the client disconnected meanwhile.
            BadReply: the item cannot be represented in JSON.
            ValueError: the answer is longer than its announced length; the item is not sent.
        """
        data = self._framed(answer)
        if self._length is not None and self.size + len(self._buffer) + len(data) > self._length:
            raise ValueError(f"the stream is longer than its announced length of {self._length} bytes")
        self._buffer += data
        self.begun = True
        self._active_at = self._clock.now()
        if len(self._buffer) >= CHUNK_BYTES:
            self._flush()
        elif not self._flush_asked:
            self._flush_asked = True
            self._loop.call_soon(self._flush_soon)
        if self._request.protocol.writing_paused:
            await self._request.writer.drain()

    def over(self) -> Reply:
        """The answer to an EventSource that reconnects after the end of the stream: it makes the client stop."""
        self.stop()
        return Reply(status=204, extra=self._extra)

    def head_only(self) -> Reply:
        """The answer to a HEAD: the stream itself is not opened."""
        self.stop()
        return HeadOnly(self._length, self._type, self.status, self._extra)

    def end(self) -> None:
        """End the stream after its last item.

        Raises:
            ValueError: it is shorter than its announced length.
        """
        if self._length is not None and (size := self.size + len(self._buffer)) < self._length:
            raise ValueError(f"the stream has ended after {size} of the {self._length} bytes that it announced")
        if self._form == "sse":
            # An EventSource reconnects after every answer, and sends the last id: the gateway then makes it stop.
            self._buffer += b"id: %b\nevent: end\ndata: {}\n\n" % END_ID.encode()
        self._finish()

    def fail(self, error: MeshError, trace: str | None = None) -> None:
        """End a stream that failed after the head was sent: send the problem as the last event."""
        body = self._problems.json(error, trace)
        if self._form == "sse":
            if isinstance(error, Draining):
                # The worker is draining, as in each release: no error; the client reconnects to another worker.
                self._buffer += _RETRY
            elif error.retryable:
                self._buffer += b"event: error\ndata: %b\n\n%b" % (body, _RETRY)
            else:
                # A retry would fail again: make the client stop.
                self._buffer += b"id: %b\nevent: error\ndata: %b\n\n" % (END_ID.encode(), body)
            self._finish()
        elif self._form == "ndjson":
            self._buffer += b'{"error":%b}\n' % body
            self._finish()
        else:
            # Raw bytes cannot contain an error: the missing last chunk shows the client that the answer is incomplete.
            self._flush()
            self.stop()
            self.keep_alive = False
            if self._request.transport is not None:
                self._request.transport.close()

    def leave(self) -> None:
        """End Server-Sent Events early, because this gateway drains: the client reconnects.

        The task that reads the stream is cancelled. Other forms continue: their clients would mistake this end for the
        end of the stream.
        """
        if self._form != "sse" or self._over:
            return
        self.left = True
        self._buffer += _RETRY
        self._finish()
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Stop sending. No effect after `end` and `fail`; must always be called at the end."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def prepare(self, request: RawRequest) -> None:
        """Everything has been written already; wait until the connection has sent it."""
        await request.writer.drain()

    async def write_eof(self) -> None:
        """Nothing is left to write."""

    def _framed(self, answer: Answer) -> bytes:
        if self._events and answer.encoding == MSGPACK:
            return self._framed_event(answer)
        if self._form == "raw":
            return bytes(answer.body)
        body = bytes(json_of(answer))
        if self._form == "ndjson":
            return body.replace(b"\n", b" ") + b"\n"
        # msgspec writes JSON without line breaks, but other workers may include them.
        return b"data: %b\n\n" % (body.replace(b"\n", b"\ndata: ") if b"\n" in body else body)

    def _framed_event(self, answer: Answer) -> bytes:
        """Frame data with an id and a name. In NDJSON they are members of an object."""
        try:
            envelope = read_envelope(answer.body)
        except (msgspec.DecodeError, ValueError) as exc:
            raise BadReply(f"an item of the stream is not an event: {exc}") from exc
        if self._form != "sse":
            return shown(envelope).replace(b"\n", b" ") + b"\n"
        lines = b"id: %b\n" % envelope.id.encode() if envelope.id else b""
        if envelope.event:
            lines += b"event: %b\n" % envelope.event.encode()
        data = envelope.data
        return b"%bdata: %b\n\n" % (lines, data.replace(b"\n", b"\ndata: ") if b"\n" in data else data)

    def _finish(self) -> None:
        self._flush()
        self.stop()
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def _flush_soon(self) -> None:
        self._flush_asked = False
        if not self._over:
            self._flush()

    def _flush(self) -> None:
        data = b""
        if not self._head_sent:
            self.begun = self._head_sent = True
            data = self._head()
        if self._buffer:
            body = bytes(self._buffer)
            self._buffer.clear()
            self.size += len(body)
            data += b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body
        if data:
            self._write(data)

    def _write(self, data: bytes) -> None:
        transport = self._request.transport
        # When the client has disconnected, aiohttp cancels the handler; no error is needed here.
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def _head(self) -> bytes:
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        if self._length is not None:
            framing = b"Content-Length: %d\r\n" % self._length
        closing = b"" if self.keep_alive else b"Connection: close\r\n"
        if self.keep_alive and self._request.version != HttpVersion11:
            closing = b"Connection: keep-alive\r\n"
        # X-Accel-Buffering: nginx would otherwise hold events until its buffer is full.
        return b"%bCache-Control: no-store\r\nX-Accel-Buffering: no\r\n%b%b%b%b\r\n" % (
            head_of(self.status, self._type)[0],
            framing,
            self._extra + self._request.lines,
            date_line(),
            closing,
        )

    def _beat(self) -> None:
        """Send the head when it has waited long enough; later a comment when nothing has been sent for a while."""
        if self._over:
            return
        now = self._clock.now()
        if not self._head_sent:
            self._flush()
            self._active_at = now
        elif now - self._active_at >= BEAT_S:
            # Send no beats to a client that does not read; the other forms have no comments.
            if self._form == "sse" and not self._request.protocol.writing_paused:
                self._buffer += b": beat\n\n"
                self._flush()
            self._active_at = now
        self._timer = self._clock.call_at(self._active_at + BEAT_S, self._beat)
