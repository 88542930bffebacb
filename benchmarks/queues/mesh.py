"""mesh through its public face: hub, `mesh store`, a worker run by `mesh run`, and `defer` from `mesh.connect()`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import servers
from benchmarks.children import python
from benchmarks.peers import Peer, Place
from benchmarks.publishers.mesh import FILES
from benchmarks.queues import Publisher, asking, side_by_side, worker

#: More than the others have use for: those that wait together are committed together.
CALLERS = 256

PEER = Peer(
    key="mesh",
    title="mesh",
    how="hub, `mesh store` (SQLite, WAL, synchronous=FULL), one `mesh run` worker and mesh.connect(), the whole public "
    "API with its defaults, results kept, ipc",
    modules=("mesh",),
    files=FILES,
    install="pip install -e .",
    servers=lambda place: [servers.hub(place), servers.store(place)],
    answering=lambda place: worker(place, python(servers.MESH, "run", "benchmarks.task_service:Bench")),
    asking=asking("mesh"),
    package="zeromesh",
)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[Publisher]:
    # The process runs in the place's directory, whose mesh.toml makes it the root of this mesh.
    import mesh

    async with mesh.connect() as n:

        async def one() -> Any:
            return await n.defer("bench.nothing")

        yield Publisher(one, side_by_side(one, CALLERS))
