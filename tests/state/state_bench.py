"""State over the engine in memory, with a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh import ids
from mesh.clock import ManualClock
from mesh.engines.contract import Unit
from mesh.engines.memory import Memory, MemoryEngine
from mesh.errors import TooLarge
from mesh.state.contract import Entry, Write
from mesh.state.namespace import Namespace

MAX_BYTES = 2**20


class Narrow:
    """A store whose answers may not be longer than so many bytes, as one behind a wire. It counts what it is asked."""

    def __init__(self, engine: MemoryEngine, most: int = 10**9) -> None:
        self._state = engine.state
        self.most = most
        self.asked: list[str] = []

    def _fits(self, entries: Sequence[Entry | None]) -> None:
        if sum(len(entry.value) for entry in entries if entry is not None) > self.most:
            raise TooLarge("the answer is too large")

    async def get(self, namespace: str, keys: Sequence[str], *, timeout_s: float) -> list[Entry | None]:
        self.asked.append(f"get {len(keys)}")
        entries = await self._state.get(namespace, keys, timeout_s=timeout_s)
        self._fits(entries)
        return entries

    async def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[Entry | None]:
        self.asked.append(f"write {len(writes)}")
        return await self._state.write(writes, timeout_s=timeout_s)

    async def page(
        self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, timeout_s: float
    ) -> list[Entry]:
        self.asked.append(f"page {limit}")
        # As an engine may that keeps its answers below a size.
        entries = await self._state.page(
            namespace, prefix=prefix, after=after, limit=max(1, limit - 1), timeout_s=timeout_s
        )
        self._fits(entries)
        return entries

    async def namespaces(self, *, timeout_s: float) -> list[tuple[str, int]]:
        return await self._state.namespaces(timeout_s=timeout_s)


class Collected:
    """An atomic block, as far as state goes."""

    def __init__(self, outer: Collected | None = None) -> None:
        self.writes: list[Write] = []
        self.outer = outer

    def write(self, writes: Sequence[Write]) -> None:
        self.writes += writes


class Bench:
    """One process and its engine.

    Attributes:
        block: the atomic block in force; None outside of any.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEngine(Memory(self.clock))
        self.store = Narrow(self.engine)
        self.block: Collected | None = None

    def state(self, name: str = "carts", **options: Any) -> Namespace[Any]:
        """As `self.state(name)` in a service."""
        return Namespace(
            name,
            self.store,
            clock=self.clock,
            timeout_s=10.0,
            max_bytes=MAX_BYTES,
            collecting=lambda: self.block,
            **options,
        )

    async def commit(self) -> list[Entry | None]:
        """End the atomic block well."""
        assert self.block is not None
        writes, self.block = self.block.writes, None
        outcome = await self.engine.commit(Unit(ids.job_id(), writes=writes), timeout_s=1)
        return list(outcome.entries)
