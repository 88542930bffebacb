"""The embedded engine as [engines] can choose it. Its settings are those of the store, in [store]."""

from __future__ import annotations

from mesh.engines.capabilities import CAPABILITIES, JOINABLE
from mesh.engines.contract import Engine
from mesh.engines.registry import EngineContext, EngineSpec


def _make(context: EngineContext) -> Engine:
    from mesh.engines.sqlite.client import StoreEngine

    return StoreEngine(context.client, context.clock, rng=context.rng)


spec = EngineSpec(
    name="sqlite",
    capabilities=frozenset(CAPABILITIES),
    together=JOINABLE,
    make=_make,
    about="the store: SQLite files that one process of the mesh owns",
)
