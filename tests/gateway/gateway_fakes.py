"""A node without a mesh: services of plain functions behind the interface that the gateway needs.

Arguments and answers go through the real signatures, so that what a worker would refuse is refused here, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from mesh.calls.answers import Answer
from mesh.calls.http_response import Response
from mesh.calls.signature import Signature
from mesh.clock import Clock, LoopClock
from mesh.discovery.record import Instance, MethodRecord, RouteRecord
from mesh.discovery.table import Change, Table
from mesh.errors import DeadlineExceeded, Draining, MeshError, RemoteError, UnknownService
from mesh.protocol.http_head import to_meta
from mesh.protocol.messages import ANSWER, MSGPACK, MSGPACK_ANSWER
from mesh.service.http_sources import fields
from mesh.service.interceptors import Interceptors
from mesh.telemetry.metrics import Recorder


def record_of(name: str, function: Callable[..., Any], **declared: Any) -> MethodRecord:
    """The record of a function, as a worker would register it."""
    signature = Signature(function, name, bound=True)
    return MethodRecord(
        name=name,
        params=signature.params_schema,
        returns=signature.returns_schema,
        stream=signature.stream,
        binary=signature.binary,
        doc=function.__doc__ or "",
        **fields(signature.parameters, name)._asdict(),
        **{"exposed": True, **declared},
    )


class FakeAgent:
    def __init__(self) -> None:
        self.synced = True
        self.hearing = True
        self.registered: tuple[Instance, ...] = ()
        self.listeners: list[Callable[[Change], None]] = []

    def on_change(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def register(self, *records: Instance) -> None:
        self.registered = records

    def hubs_status(self) -> list[Any]:
        return [{"endpoint": "ipc:///run/hub.sock", "state": "learned"}]


class FakeNode:
    """Runs functions in this process. `calls` holds what was asked of it."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.identity = "gateway-1"
        self.epoch = 1
        self.table = Table()
        self.clock: Clock = clock or LoopClock()
        self.agent = FakeAgent()
        self.recorder = Recorder(self.clock)
        self.functions: dict[str, Signature] = {}
        self.runs: dict[str, Callable[..., Any]] = {}
        self.calls: list[dict[str, Any]] = []
        self.instances: dict[str, Instance] = {}
        self.snapshots: dict[str, Any] = {}
        self.cancelled: list[str] = []
        self.closed = asyncio.Event()
        self.durable: Any = None
        self.interceptors = Interceptors(None)
        self._publish()

    def serve(self, service: str, routes: list[RouteRecord], /, **functions: Callable[..., Any]) -> Instance:
        """Add one instance of a service that answers with `functions`."""
        number = sum(each.service == service for each in self.instances.values()) + 1
        for name, function in functions.items():
            self.functions[f"{service}.{name}"] = Signature(function, f"{service}.{name}", bound=True)
            self.runs[f"{service}.{name}"] = function
        instance = Instance(
            service=service,
            id=f"{service}-{number}",
            epoch=1_700_000_000_000 + number,
            worker=f"worker-{service}-{number}",
            version="1.0",
            host="testhost",
            pid=4000 + number,
            endpoint=f"mem://{service}-{number}",
            methods={name: record_of(name, function) for name, function in functions.items()},
            routes=routes,
            doc=f"The {service} service.",
        )
        self.join(instance)
        return instance

    def join(self, *instances: Instance) -> None:
        self.instances.update({each.id: each for each in instances})
        self._publish()

    def leave(self, instance_id: str) -> None:
        del self.instances[instance_id]
        self._publish()

    def _publish(self) -> None:
        change = self.table.snapshot("hub", 1, 1, False, list(self.instances.values()))
        for listener in self.agent.listeners:
            listener(change)

    async def call(self, target: str, /, *args: Any, timeout: float | None = None, instance: str | None = None) -> Any:
        assert target == "$worker.metrics"
        answer = self.snapshots[instance or ""]
        if answer is None:
            await asyncio.sleep(0)
            raise DeadlineExceeded(f"{instance} did not answer within {timeout} s")
        return answer

    async def call_raw(self, target: str, body: bytes, encoding: int, **options: Any) -> Answer:
        self.calls.append({"target": target, "body": body, "encoding": encoding, **options})
        signature = self._find(target)
        args = signature.decode_args(body, encoding)
        closing = asyncio.ensure_future(self.closed.wait())
        work = asyncio.ensure_future(self._run(target, args))
        try:
            await asyncio.wait([work, closing], timeout=options["timeout"], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Draining("leaving") if self.closed.is_set() else DeadlineExceeded(f"{target} took too long")
            if (options.get("meta") or {}).get(ANSWER) == MSGPACK_ANSWER:
                encoding = MSGPACK
            result, meta = work.result(), None
            if isinstance(result, Response):
                assert signature.responds
                result, meta = result.body, to_meta(result.head)
            return Answer(*signature.encode_result(result, encoding), meta)
        except asyncio.CancelledError:
            self.cancelled.append(target)
            raise
        finally:
            closing.cancel()
            work.cancel()
            await asyncio.gather(closing, work, return_exceptions=True)

    async def _run(self, target: str, args: tuple[Any, ...]) -> Any:
        try:
            return await self.runs[target](*args)
        except MeshError:
            raise
        except Exception as exc:
            raise RemoteError(str(exc), type_name=type(exc).__name__) from exc

    def stream_raw(self, target: str, body: bytes, encoding: int, **options: Any) -> FakeItems:
        self.calls.append({"target": target, "body": body, "encoding": encoding, **options})
        signature = self._find(target)
        return FakeItems(self, target, signature, self.runs[target](*signature.decode_args(body, encoding)), encoding)

    def _find(self, target: str) -> Signature:
        try:
            return self.functions[target]
        except KeyError:
            raise UnknownService(f"no {target}") from None

    async def close(self) -> None:
        self.closed.set()


class FakeItems:
    def __init__(
        self, node: FakeNode, target: str, signature: Signature, source: AsyncIterator[Any], encoding: int
    ) -> None:
        self.node, self.target, self.signature = node, target, signature
        self.source, self.encoding = source, encoding
        self.given = 0
        self.ended = False

    def __aiter__(self) -> FakeItems:
        return self

    async def __anext__(self) -> Answer:
        try:
            item = await self._next()
        except StopAsyncIteration:
            self.ended = True
            raise
        except MeshError:
            raise
        except Exception as exc:
            raise RemoteError(str(exc), type_name=type(exc).__name__) from exc
        self.given += 1
        return Answer(*self.signature.encode_result(item, self.encoding))

    async def _next(self) -> Any:
        closing = asyncio.ensure_future(self.node.closed.wait())
        item = asyncio.ensure_future(anext(self.source))  # type: ignore[arg-type]
        try:
            await asyncio.wait([item, closing], return_when=asyncio.FIRST_COMPLETED)
            if self.node.closed.is_set():
                raise Draining("leaving")
            return item.result()
        finally:
            closing.cancel()
            item.cancel()
            await asyncio.gather(closing, item, return_exceptions=True)

    async def aclose(self) -> None:
        if not self.ended:
            self.node.cancelled.append(self.target)
        await self.source.aclose()  # type: ignore[attr-defined]
