"""Services that the tests of calls ask. At the top of a module of their own: a child process finds them by name."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

import mesh
from mesh import rpc


class Point(msgspec.Struct):
    """A value with a type."""

    x: int
    y: int = 0


class Echo(mesh.Service):
    """Says again what it hears."""

    @rpc
    async def one(self, value: Any) -> Any:
        return value

    @rpc
    async def three(self, a: Any, b: Any = "b", *, c: Any = "c") -> list[Any]:
        return [a, b, c]

    @rpc
    def plain(self, value: str) -> str:
        return value.upper()

    @rpc
    async def nothing(self) -> None:
        return None

    @rpc
    async def blob(self, data: bytes) -> bytes:
        return data

    @rpc
    async def zeros(self, size: int) -> bytes:
        return bytes(size)

    @rpc
    async def turn(self, point: Point) -> Point:
        return Point(point.y, point.x)

    @rpc
    async def context(self) -> dict[str, Any]:
        call = mesh.current()
        assert call is not None
        return {"target": call.target, "caller": call.caller, "trace": call.trace, "meta": dict(call.meta)}

    @rpc
    async def who(self) -> str:
        return str(self.node.identity)  # type: ignore[attr-defined]

    @rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


class Hold(mesh.Service):
    """Handlers that stay until a test lets them go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began: list[str] = []
        self.ended: list[str] = []
        self.left_s: list[float] = []

    async def _hold(self, name: str) -> str:
        self.began.append(name)
        call = mesh.current()
        if call is not None:
            self.left_s.append(call.deadline_at - self.node.clock.now())  # type: ignore[attr-defined]
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append(f"{name} cancelled")
            raise
        self.ended.append(name)
        return f"{name} by {self.node.identity}"  # type: ignore[attr-defined]

    @rpc
    async def once(self, name: str = "x") -> str:
        return await self._hold(name)

    @rpc(idempotent=True)
    async def again(self, name: str = "x") -> str:
        return await self._hold(name)

    @rpc(timeout=2.0)
    async def hasty(self, name: str = "x") -> str:
        return await self._hold(name)

    @rpc(concurrency=1, queue=2)
    async def narrow(self, name: str = "x") -> str:
        return await self._hold(name)

    @rpc
    async def feed(self, n: int = 3) -> AsyncIterator[int]:
        self.began.append("feed")
        try:
            for i in range(n):
                yield i
            await self.gate.wait()
        finally:
            self.ended.append("feed")

    @rpc(idempotent=True)
    async def silent_feed(self) -> AsyncIterator[str]:
        await self._hold("silent")
        yield str(self.node.identity)  # type: ignore[attr-defined]


class OutOfStock(mesh.ServiceError):
    """An error of a service's own."""

    code = "out_of_stock"
    status = 409


class Unprintable(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Faulty(mesh.Service):
    """Raises."""

    @rpc
    async def plain(self) -> None:
        raise ValueError("three is not four")

    @rpc
    async def own(self) -> None:
        raise OutOfStock("no more shoes", details={"left": 0})

    @rpc
    async def surrogates(self) -> None:
        raise LookupError("a file called \udcff")

    @rpc
    async def surrogate_answer(self) -> str:
        return "\udcff"

    @rpc
    async def unprintable(self) -> None:
        raise Unprintable

    @rpc
    async def unsendable(self) -> Any:
        return object()

    @rpc
    async def framework(self) -> None:
        raise mesh.Overloaded("so the handler says itself")

    @rpc
    async def cancels_itself(self) -> None:
        raise asyncio.CancelledError

    @rpc
    async def feed(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise OutOfStock("no more numbers")


class Heavy(mesh.Service):
    """Work that would block the loop."""

    @rpc(offload="thread")
    def in_thread(self, path: str) -> bool:
        """Until the file is there; whether the call's context came along."""
        while not os.path.exists(path):
            time.sleep(0.002)
        return mesh.current() is not None and threading.current_thread() is not threading.main_thread()

    @rpc
    def plain(self, path: str) -> bool:
        return self.in_thread(path)

    @rpc(offload="process")
    def add(self, a: int, b: int) -> int:
        return a + b

    @rpc(offload="process")
    def pid(self) -> int:
        return os.getpid()

    @rpc(offload="process", concurrency=1, queue=1)
    def wait(self, begun: str, path: str) -> int:
        """Say that it runs, then stay until the file is there."""
        Path(begun).touch()
        while not os.path.exists(path):
            time.sleep(0.002)
        return os.getpid()

    @rpc(offload="process")
    def spin(self, begun: str, path: str) -> int:
        """The same with the processor busy."""
        Path(begun).touch()
        turns = 0
        while turns % 1000 or not os.path.exists(path):
            turns += 1
        return os.getpid()

    @rpc(offload="process")
    def crash(self) -> None:
        os._exit(3)

    @rpc(offload="process")
    def die(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60.0)

    @rpc(offload="thread")
    def raise_in_thread(self, kind: str) -> None:
        _raise(kind)

    @rpc(offload="process")
    def raise_in_process(self, kind: str) -> None:
        _raise(kind)

    @rpc
    def raise_in_plain(self, kind: str) -> None:
        _raise(kind)

    @rpc(offload="thread")
    def unsendable_in_thread(self) -> Any:
        return threading.Lock()

    @rpc(offload="process")
    def unsendable_in_process(self) -> Any:
        return threading.Lock()

    @rpc(offload="process")
    def fail(self) -> None:
        raise OutOfStock("no more processes")

    @rpc(offload="process")
    def fail_plainly(self) -> None:
        raise KeyError("nothing")

    @rpc
    async def quick(self) -> str:
        return "quick"


class HeavyTasks(mesh.Service):
    """Tasks in processes."""

    @mesh.task(offload="process", retries=0)
    def crash(self) -> None:
        os._exit(3)

    @mesh.task(offload="process", retries=0)
    def double(self, n: int) -> int:
        return 2 * n

    @mesh.task(offload="process", retries=0)
    def wait(self, begun: str, path: str) -> str:
        Path(begun).touch()
        while not os.path.exists(path):
            time.sleep(0.002)
        return "waited"


class Unshown(Exception):
    """Its message raises."""

    def __str__(self) -> str:
        sys.exit(1)


class Unpickled(Exception):
    """It cannot be made anew from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("unpickled")


class Mute(Exception):
    """Its message raises an ordinary error."""

    def __str__(self) -> str:
        raise ValueError("no message")


def _raise(kind: str) -> None:
    if kind == "StopIteration":
        next(iter([]))
    if kind == "Unpickled":
        raise Unpickled(1, 2)
    if kind == "BadRequest":
        raise mesh.BadRequest("the number must be even")
    if kind == "Grouped":
        raise ExceptionGroup("several", [mesh.BadRequest("the number must be even")])
    kinds = (StopAsyncIteration, GeneratorExit, asyncio.CancelledError, Unshown, Mute)
    raise next(each for each in kinds if each.__name__ == kind)()
