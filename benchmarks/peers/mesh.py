"""mesh through its public face: a hub, a worker run by `mesh run`, and `mesh.connect()`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.children import ROOT, python
from benchmarks.drive import Call
from benchmarks.peers import Command, Peer, Place

MESH = "mesh.cli.main"


def _hub(place: Place) -> list[Command]:
    (place.directory / "mesh.toml").touch()
    return [Command("hub", python(MESH, "hub"))]


PEER = Peer(
    key="mesh",
    title="mesh",
    how="hub, `mesh run` worker and mesh.connect(), the whole public API with its defaults, ipc",
    modules=("mesh",),
    # Both sides are there as soon as the package is whole.
    files=(ROOT / "mesh" / "node" / "node.py", ROOT / "mesh" / "cli" / "main.py"),
    install="pip install -e .",
    servers=_hub,
    answering=lambda place: Command("worker", python(MESH, "run", "benchmarks.service:Echo")),
    package="zeromesh",
)


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    # The process runs in the place's directory, whose mesh.toml makes it the root of this mesh.
    import mesh

    async with mesh.connect() as n:
        await n.wait_for("echo", timeout=15)

        async def small(body: dict[str, Any]) -> Any:
            return await n.call("echo.echo", body)

        async def big(body: bytes) -> Any:
            return await n.call("echo.blob", body)

        yield {"small": small, "big": big}
