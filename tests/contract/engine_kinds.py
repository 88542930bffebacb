"""The engines that the contract suites are run with.

A new one joins by a class of its own here, and one more name in KINDS:

- `start` makes what it needs, with nothing in it, or raises MissingServer (then its tests are skipped at home and fail
  where CI is set); `engine` gives it as one more process has it; `close` leaves nothing behind.
- `offers` names its capabilities: tests that need others (NEEDS of their file, or `needs`) are not run with it. What it
  does not commit together, or its rig cannot do (`part_process`, `restart`), is skipped by name.
- When its time is real, `longest_s` says how much of it one test may take: those that need more are skipped, and a
  short `lease_s` lets more of them be.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_rig import Rig, is_over_processes
from engine_store import StoreProcessRig, StoreRig

from mesh.clock import settle
from mesh.engines.contract import Engine
from mesh.engines.memory import Memory, MemoryEngine
from tests import documented_engine
from tests.partial_engines import EventsEngine, Log, QueuesEngine, SmallEngine
from tests.partial_work import Work


class MissingServer(Exception):
    """What an engine needs is not installed here."""


class MemoryRig(Rig):
    """The engine in memory, under a hand-turned clock."""

    kind = "memory"
    # Nobody needs to say that he lives.
    step_s = 1.0

    async def start(self) -> None:
        self.memory = Memory(
            self.clock, lease_s=self.lease_s, unknown_after_s=self.unknown_after_s, retention_s=self.retention_s
        )
        self._engines: list[MemoryEngine] = []

    async def engine(self) -> MemoryEngine:
        made = MemoryEngine(self.memory)
        self._engines.append(made)
        return made

    async def quiet(self) -> None:
        # To share out, and to tell.
        await settle(5)

    async def end_process(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.kill()

    async def part_process(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.cut()

    async def join_process(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.mend()

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()
        self.memory.close()


class SmallRig(Rig):
    """An engine that offers little, in memory, under a hand-turned clock."""

    step_s = 1.0

    async def start(self) -> None:
        self.work = Work(self.clock, self.lease_s, self.unknown_after_s)
        self.log = Log(self.work, self.retention_s)
        self._engines: list[SmallEngine] = []

    async def engine(self) -> SmallEngine:
        made = self.make()
        self._engines.append(made)
        return made

    def make(self) -> SmallEngine:
        raise NotImplementedError

    async def quiet(self) -> None:
        await settle(5)

    async def end_process(self, engine: Engine) -> None:
        assert isinstance(engine, SmallEngine)
        engine.kill()

    async def part_process(self, engine: Engine) -> None:
        assert isinstance(engine, SmallEngine)
        engine.cut()

    async def join_process(self, engine: Engine) -> None:
        assert isinstance(engine, SmallEngine)
        engine.mend()

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()
        self.work.close()


class OnlyQueuesRig(SmallRig):
    """Queues, and nothing else."""

    kind = "only-queues"
    offers = QueuesEngine.offers

    def make(self) -> SmallEngine:
        return QueuesEngine(self.work)


class OnlyEventsRig(SmallRig):
    """Durable events, and nothing else."""

    kind = "only-events"
    offers = EventsEngine.offers

    def make(self) -> SmallEngine:
        return EventsEngine(self.work, self.log)


class DocumentedRig(Rig):
    """The example of docs/engines.md: state in a file."""

    kind = "documented"
    offers = frozenset(("state",))

    async def start(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="mesh-contract-"))

    async def engine(self) -> Engine:
        made: Engine = documented_engine.module().Shelf(self._dir / "shelf.bin", self.clock)
        return made

    async def restart(self) -> None:
        """There is no process to restart: everything is in the file."""

    async def close(self) -> None:
        shutil.rmtree(self._dir)


RIGS: tuple[type[Rig], ...] = (MemoryRig, StoreRig, OnlyQueuesRig, OnlyEventsRig, DocumentedRig)
KINDS: dict[str, type[Rig]] = {rig.kind: rig for rig in RIGS}
#: Beside those, for tests that are `over_processes`: what takes real time to start is tried where it may matter.
REAL_KINDS: dict[str, type[Rig]] = {rig.kind: rig for rig in (StoreProcessRig,)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every kind of engine that offers what a test needs, for every test that asks for one."""
    if "engine_kind" in metafunc.fixturenames:
        needed = getattr(metafunc.function, "needs", getattr(metafunc.module, "NEEDS", ()))
        kinds = KINDS | (REAL_KINDS if is_over_processes(metafunc.function) else {})
        able = {name: rig for name, rig in kinds.items() if rig.offers.issuperset(needed)}
        if "leased" in metafunc.fixturenames:
            # What is leased: tasks of queues, deliveries of events.
            pairs = [(name, each) for name, rig in able.items() for each in ("queues", "events") if each in rig.offers]
            metafunc.parametrize(("engine_kind", "leased"), pairs)
        else:
            metafunc.parametrize("engine_kind", able)


@pytest.fixture
async def rig(engine_kind: str) -> AsyncIterator[Rig]:
    """One engine with nothing in it. Where its server is missing it is skipped; under CI nothing may be missing."""
    rig = (KINDS | REAL_KINDS)[engine_kind]()
    try:
        await rig.start()
    except MissingServer as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    try:
        yield rig
    finally:
        await rig.close()
    rig.check()
