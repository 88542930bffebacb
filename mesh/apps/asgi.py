"""An ASGI application as a service: each HTTP request and each WebSocket is one stream to its worker.

Owns: `receive` and `send` of one request, and the lifespan of the application.
Leaves to others: the messages between gateway and worker (messages), HTTP (gateway.apps), finding the application
(loading).

Source: ASGI specification 3.0, https://asgi.readthedocs.io/en/latest/specs/www.html and …/lifespan.html.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, ClassVar, Final

from mesh.apps.messages import BODY, MORE, STATE, head_item, ws_item
from mesh.calls.items import running_stream, send_item
from mesh.calls.running import Running
from mesh.discovery.record import RouteRecord
from mesh.errors import SetupError
from mesh.protocol.messages import MSGPACK, RAW
from mesh.service.decorators import rpc
from mesh.service.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: The verbs that an application answers itself, and "WEBSOCKET".
VERBS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET")
#: `raw` in the record of a route: the gateway passes the request on as a whole.
ASGI: Final = "asgi"


class AsgiApplication(Service):
    """Base class of the services that `mesh run --asgi` makes.

    Attributes:
        application: the ASGI application.
        prefixes: the paths below which gateways pass requests to it.
    """

    application: ClassVar[Any] = None
    prefixes: ClassVar[tuple[str, ...]] = ("/",)

    def __init__(self) -> None:
        self._lifespan: Lifespan | None = None
        #: What the application keeps over its lifespan, as `scope["state"]` of each request.
        self._state: dict[str, Any] = {}

    async def started(self) -> None:
        """Start the application's lifespan."""
        self._state = {STATE: self}
        self._lifespan = Lifespan(type(self).application, self._state)
        await self._lifespan.start()

    async def stopped(self) -> None:
        """End the application's lifespan."""
        if self._lifespan is not None:
            await self._lifespan.stop()

    @rpc(check_result=False)
    async def asgi(self, scope: dict[str, Any], messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """One request or WebSocket, as a gateway sends it."""
        running = running_stream()
        assert running is not None
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
        scope["state"] = self._state.copy()
        for key in ("headers", "client", "server"):
            if scope.get(key) is not None:
                scope[key] = [tuple(each) for each in scope[key]] if key == "headers" else tuple(scope[key])
        application: Application = type(self).application
        if scope["type"] == "http":
            exchange = _Exchange(running, scope.pop(BODY, None), scope.pop(MORE, False), messages)
            await application(scope, exchange.receive, exchange.send)
            if not exchange.complete:
                raise RuntimeError("the ASGI application returned without a complete response")
        else:
            socket = _Socket(running, messages)
            await application(scope, socket.receive, socket.send)
        # What the application sends is sent in place; nothing is left to yield.
        rest: tuple[Any, ...] = ()
        for item in rest:
            yield item

    @classmethod
    def _raw_routes(cls) -> list[RouteRecord]:
        paths = [path for prefix in cls.prefixes for path in _paths(prefix.rstrip("/"))]
        return [RouteRecord(verb, path, "asgi", raw=ASGI) for path in paths for verb in VERBS]


def _paths(prefix: str) -> tuple[str, ...]:
    return (prefix or "/", f"{prefix}/{{path...}}")


class _Exchange:
    """One HTTP request and its response."""

    __slots__ = ("_body", "_ended", "_messages", "_more", "_running", "_start", "complete")

    def __init__(self, running: Running, body: bytes | None, more: bool, messages: AsyncIterator[Any]) -> None:
        self._running = running
        self._body = body
        self._more = more
        self._messages = messages
        self._start: Message | None = None
        self.complete = False
        self._ended: asyncio.Event | None = None

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": self._more}
        if self._more:
            try:
                return {"type": "http.request", "body": await anext(self._messages), "more_body": True}
            except StopAsyncIteration:
                self._more = False
                return {"type": "http.request", "body": b"", "more_body": False}
        if not self.complete:
            # When the client disconnects, the application is cancelled; there is nothing else to receive before the end
            # of the response. Some applications (Litestar's streams) wait for that in a task of its own.
            if self._ended is None:
                self._ended = asyncio.Event()
            await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._start is not None:
                raise RuntimeError("http.response.start was sent twice")
            self._start = message
        elif kind == "http.response.body":
            if self._start is None or self.complete:
                raise RuntimeError(f"{kind} was sent {'after the end' if self.complete else 'before the start'}")
            body = message.get("body", b"")
            more = bool(message.get("more_body", False))
            start = self._start
            if "sent" not in start:
                start["sent"] = True
                await send_item(self._running, head_item(start, body, more), MSGPACK)
            else:
                if body:
                    await send_item(self._running, body, RAW)
                if not more:
                    await send_item(self._running, b"", RAW)
            self.complete = not more
            if self.complete and self._ended is not None:
                self._ended.set()
        else:
            raise RuntimeError(f"the ASGI message {kind!r} is not supported for HTTP")


class _Socket:
    """One WebSocket."""

    __slots__ = ("_connected", "_messages", "_running")

    def __init__(self, running: Running, messages: AsyncIterator[Any]) -> None:
        self._running = running
        self._messages = messages
        self._connected = False

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        try:
            item = await anext(self._messages)
        except StopAsyncIteration:
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        if isinstance(item, bytes):
            return {"type": "websocket.receive", "bytes": item}
        if isinstance(item, str):
            return {"type": "websocket.receive", "text": item}
        code, reason = item
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        data = message.get("bytes")
        if message["type"] == "websocket.send" and data is not None:
            await send_item(self._running, data, RAW)
        else:
            await send_item(self._running, ws_item(message), MSGPACK)


class Lifespan:
    """The lifespan protocol of one application. One that does not support it is used without."""

    def __init__(self, application: Application, state: dict[str, Any]) -> None:
        self._application = application
        self._state = state
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._outcome: asyncio.Future[str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._supported = True

    async def start(self) -> None:
        """Start the application.

        Raises:
            SetupError: its start failed.
        """
        self._task = asyncio.create_task(self._run(), name="asgi.lifespan")
        await self._tell("startup")

    async def stop(self) -> None:
        """Stop the application; waits until it has."""
        if self._task is None:
            return
        if self._supported and not self._task.done():
            await self._tell("shutdown")
        await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self, phase: str) -> None:
        self._outcome = asyncio.get_running_loop().create_future()
        self._incoming.put_nowait({"type": f"lifespan.{phase}"})
        if failure := await self._outcome:
            raise SetupError(f"the {phase} of the ASGI application failed: {failure}")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._application(scope, self._incoming.get, self._send)
        except Exception:
            # As the specification says: an application that raises for this scope does not support it.
            self._supported = False
        self._settle("")

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind.endswith(".complete"):
            self._settle("")
        elif kind.endswith(".failed"):
            self._settle(message.get("message") or "no reason was given")

    def _settle(self, failure: str) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(failure)
