"""The engine in memory as [engines] can choose it, for one process. mesh.testing shares one among its processes."""

from __future__ import annotations

from mesh.engines.capabilities import CAPABILITIES, JOINABLE
from mesh.engines.contract import Engine
from mesh.engines.registry import EngineContext, EngineSpec
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.engines")


def _make(context: EngineContext) -> Engine:
    from mesh.engines.memory import Memory, MemoryEngine

    log.warning(
        "engine.in_memory",
        reason="the data of the engine `memory` is private to this process, and lost when the process ends",
        remedy="use it for tests and experiments only",
    )
    settings = context.mesh
    own = Memory(
        context.clock,
        lease_s=settings.store.lease_s,
        unknown_after_s=settings.tasks.unknown_after_s,
        retention_s=settings.events.retention_s,
    )

    class OwnMemoryEngine(MemoryEngine):
        async def close(self) -> None:
            await super().close()
            own.close()

    return OwnMemoryEngine(own)


spec = EngineSpec(
    name="memory",
    capabilities=frozenset(CAPABILITIES),
    together=JOINABLE,
    make=_make,
    about="the memory of one process: for tests and experiments",
)
