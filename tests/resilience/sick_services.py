"""A service that misbehaves as it is told, and counts its calls."""

from __future__ import annotations

import asyncio
from typing import Any

import mesh
from mesh import rpc


class Sick(mesh.Service):
    """`calls` and the rest are of the class: all its instances share them. Each test clears them."""

    calls = 0
    cancelled = 0
    #: How the next calls end: None is an answer. An empty list: all answer.
    errors: list[Exception | None] = []
    gate = asyncio.Event()
    #: The numbers of instances that are slow.
    slow: set[int] = set()
    made = 0

    def __init__(self) -> None:
        self.number = Sick.made
        Sick.made += 1

    @classmethod
    def clear(cls) -> None:
        cls.calls = cls.cancelled = cls.made = 0
        cls.errors = []
        cls.gate = asyncio.Event()
        cls.slow = set()

    def _count(self) -> None:
        Sick.calls += 1
        error = Sick.errors.pop(0) if Sick.errors else None
        if error is not None:
            raise error

    @rpc(idempotent=True)
    async def safe(self, value: Any = None) -> Any:
        self._count()
        return value

    @rpc
    async def once(self, value: Any = None) -> Any:
        self._count()
        return value

    @rpc(idempotent=True)
    async def waits(self, value: Any = None) -> list[Any]:
        Sick.calls += 1
        try:
            if not Sick.slow or self.number in Sick.slow:
                await Sick.gate.wait()
        except asyncio.CancelledError:
            Sick.cancelled += 1
            raise
        return [value, self.number]

    @rpc(idempotent=True)
    async def waits_then(self, value: Any = None) -> Any:
        Sick.calls += 1
        await Sick.gate.wait()
        error = Sick.errors.pop(0)
        if error is not None:
            raise error
        return value

    @rpc
    async def who(self) -> list[Any]:
        Sick.calls += 1
        context = mesh.current()
        assert context is not None
        return [context.principal, Sick.calls]


class Declares(mesh.Service):
    """A service that says itself what the callers of its method do."""

    failing = 0

    @rpc(idempotent=True, retries=2, backoff=0.001, backoff_most="2ms")
    async def flaky(self) -> str:
        if Declares.failing:
            Declares.failing -= 1
            raise mesh.TryLater("not now")
        return "done"
