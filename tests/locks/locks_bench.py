"""A lock's engine that can fail when a test says so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from mesh.clock import ManualClock
from mesh.engines.memory import Memory, MemoryEngine
from mesh.locks.contract import Grant, Locks
from mesh.locks.lock import Lock
from mesh.telemetry.metrics import Recorder


class Between:
    """A process's line to its engine: each verb may be made to do something else, and is counted.

    Attributes:
        instead: by verb: awaited in its place; when it returns, the verb is done after all.
    """

    def __init__(self, engine: Locks) -> None:
        self._engine = engine
        self.instead: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def _ask(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append((verb, kwargs))
        if verb in self.instead:
            await self.instead[verb]()
        return await getattr(self._engine, verb)(*args, **kwargs)

    async def acquire(self, name: str, owner: str, *, ttl_s: float, wait_s: float, timeout_s: float) -> Grant:
        grant: Grant = await self._ask("acquire", name, owner, ttl_s=ttl_s, wait_s=wait_s, timeout_s=timeout_s)
        return grant

    async def renew(self, name: str, owner: str, *, ttl_s: float, timeout_s: float) -> Grant:
        grant: Grant = await self._ask("renew", name, owner, ttl_s=ttl_s, timeout_s=timeout_s)
        return grant

    async def release(self, name: str, owner: str, *, timeout_s: float) -> bool:
        mine: bool = await self._ask("release", name, owner, timeout_s=timeout_s)
        return mine

    async def locks(self, *, timeout_s: float) -> list[Grant]:
        return await self._engine.locks(timeout_s=timeout_s)


class Bench:
    """Two processes at one engine, and a clock that is turned by hand.

    Attributes:
        mine: the line of the process under test.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine: Locks = MemoryEngine(Memory(self.clock)).locks
        self.mine = Between(self.engine)
        self.recorder = Recorder(self.clock)

    def lock(
        self, name: str = "nightly", *, locks: Locks | None = None, owner: str = "worker-1", **options: Any
    ) -> Lock:
        """A lock of the process under test, or of another."""
        return Lock(
            name,
            locks or self.mine,
            owner=owner,
            clock=self.clock,
            timeout_s=10.0,
            rng=random.Random(1),
            recorder=self.recorder,
            **options,
        )

    def other(self, name: str = "nightly", **options: Any) -> Lock:
        """The same lock, for somebody else whose line never fails."""
        return self.lock(name, locks=self.engine, owner="worker-2", **options)

    def lost(self) -> float:
        """How many locks were lost, as counted."""
        return self.recorder.counter("locks_lost").value

    def verbs(self) -> list[str]:
        """What the process under test asked for."""
        return [verb for verb, _ in self.mine.asked]


async def hang() -> None:
    """For `Between.instead`: no answer, ever."""
    await asyncio.get_running_loop().create_future()
