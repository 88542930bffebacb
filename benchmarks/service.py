"""The services that are measured: each does nothing but what its benchmark needs."""

from __future__ import annotations

import time
from typing import Any

import mesh
from mesh import http, on, rpc


class Echo(mesh.Service):
    """Gives back what it gets."""

    name = "echo"

    @rpc
    async def echo(self, a: dict[str, Any]) -> dict[str, Any]:
        """The small body."""
        return a

    @rpc
    async def blob(self, data: bytes) -> bytes:
        """The big body."""
        return data

    @http.get("/hello")
    @rpc(idempotent=True)
    async def hello(self) -> dict[str, str]:
        """What the plain aiohttp application answers too."""
        return {"message": "Hello, world!"}


class Listener(mesh.Service):
    """Counts events that carry the instant at which they were emitted."""

    name = "listener"

    def __init__(self) -> None:
        self._took: list[float] = []

    @on("bench.tick", to="every")
    async def tick(self, data: float) -> None:
        """One more; CLOCK_MONOTONIC is the same in all processes of a machine."""
        self._took.append(time.monotonic() - data)

    @rpc
    async def reset(self) -> None:
        """Begin to count."""
        self._took.clear()

    @rpc
    async def seen(self) -> int:
        """How many since the reset."""
        return len(self._took)

    @rpc
    async def took(self) -> list[float]:
        """Seconds from emit to handler of each."""
        return self._took
