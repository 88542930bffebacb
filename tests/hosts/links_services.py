"""What runs on the hosts of the link tests: `mesh run links_services:Shared`, with this directory on PYTHONPATH."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import mesh

#: Where handlers write down what reached them; a host's disk stays when its processes are killed.
HEARD = Path("/srv/mesh/heard")


def write(line: str) -> None:
    """One line for whoever reads the host's disk."""
    with HEARD.open("a") as file:
        file.write(line + "\n")


class Shared(mesh.Service):
    """On every host: says which one answered."""

    name = "shared"
    expose = True

    @mesh.rpc
    async def where(self, wait_s: float = 0.0) -> str:
        if wait_s:
            await asyncio.sleep(wait_s)
        return socket.gethostname()

    @mesh.rpc(idempotent=True)
    async def again(self) -> str:
        return socket.gethostname()

    @mesh.rpc
    async def take(self, data: bytes) -> str:
        return socket.gethostname()

    @mesh.rpc
    async def count(self, n: int) -> AsyncIterator[str]:
        for i in range(n):
            yield f"{socket.gethostname()} {i}"

    @mesh.on("news.*", to="every")
    async def news(self, event: mesh.Event) -> None:
        write(f"every {event.data}")

    @mesh.on("order.*")
    async def order(self, event: mesh.Event) -> None:
        write(f"one {event.data}")


class Lonely(Shared):
    """On one host only."""

    name = "lonely"
    expose = True


class Narrow(mesh.Service):
    """On every host, and each instance does one thing at a time."""

    name = "narrow"
    expose = True
    concurrency = 1

    @mesh.rpc
    async def where(self, wait_s: float = 0.0) -> str:
        await asyncio.sleep(wait_s)
        return socket.gethostname()


class Chores(mesh.Service):
    """Tasks and durable events, on every host; the store is on one."""

    name = "chores"
    expose = True

    @mesh.task
    async def chore(self, n: int) -> str:
        write(f"task {n}")
        return socket.gethostname()

    @mesh.on("bill.*", durable=True)
    async def bill(self, event: mesh.Event) -> None:
        write(f"durable {event.data}")
