"""mesh through its public face: a hub, `mesh store` on its embedded engine, and `defer` from `mesh.connect()`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import servers
from benchmarks.children import ROOT
from benchmarks.peers import Peer, Place
from benchmarks.publishers import Publisher, asking

#: There when the durable half of mesh is whole.
FILES = (ROOT / "mesh" / "engines" / "sqlite", ROOT / "mesh" / "cli" / "commands" / "store.py")

PEER = Peer(
    key="mesh",
    title="mesh",
    how="hub, `mesh store` (SQLite, WAL, synchronous=FULL) and mesh.connect(), the whole public API with its defaults, "
    "ipc; batch: `n.batch()`, one commit",
    modules=("mesh",),
    files=FILES,
    install="pip install -e .",
    servers=lambda place: [servers.hub(place)],
    answering=servers.store,
    asking=asking("mesh"),
    package="zeromesh",
)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[Publisher]:
    # The process runs in the place's directory, whose mesh.toml makes it the root of this mesh.
    import mesh

    async with mesh.connect() as n:

        async def one(body: dict[str, Any]) -> None:
            await n.defer("bench.keep", body)

        async def batch(bodies: Sequence[dict[str, Any]]) -> None:
            async with n.batch() as b:
                for body in bodies:
                    b.defer("bench.keep", body)

        async def stored() -> int:
            # Not measured, so not bound to the public face: this is what `mesh tasks` asks.
            queues = await n._durable.work.queues()
            return sum(queue.ready for queue in queues)

        yield Publisher(one, batch, stored)
