"""The engines that the contract suites are run with. A new one joins by one more class and its name in KINDS."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from engine_rig import Rig
from engine_store import StoreRig

from mesh.engines.contract import Engine
from mesh.engines.memory import Memory, MemoryEngine


class MissingServer(Exception):
    """What an engine needs is not installed here."""


class MemoryRig(Rig):
    """The engine in memory, under a hand-turned clock."""

    kind = "memory"

    async def start(self) -> None:
        self.memory = Memory(
            self.clock, lease_s=self.lease_s, unknown_after_s=self.unknown_after_s, retention_s=self.retention_s
        )
        self._engines: list[MemoryEngine] = []

    async def engine(self) -> MemoryEngine:
        made = MemoryEngine(self.memory)
        self._engines.append(made)
        return made

    async def kill(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.kill()

    async def cut(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.cut()

    async def mend(self, engine: Engine) -> None:
        assert isinstance(engine, MemoryEngine)
        engine.mend()

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()
        self.memory.close()


KINDS: dict[str, type[Rig]] = {rig.kind: rig for rig in (MemoryRig, StoreRig)}


@pytest.fixture(params=KINDS)
def engine_kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def rig(engine_kind: str) -> AsyncIterator[Rig]:
    """One engine with nothing in it. Where its server is missing it is skipped; under CI nothing may be missing."""
    rig = KINDS[engine_kind]()
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
