"""What a soak runs: a bit of everything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import mesh
from mesh import http, on, rpc, task


class Steady(mesh.Service):
    """Is never restarted."""

    name = "steady"
    expose = True

    @http.get("/echo/{text}")
    @rpc(idempotent=True)
    async def echo(self, text: str) -> str:
        return text

    @http.post("/sum")
    @rpc
    async def sum(self, numbers: list[int]) -> int:
        return sum(numbers)

    @rpc(idempotent=True)
    async def nested(self, text: str) -> str:
        return str(await self.call(f"{self.name}.echo", text))

    @http.get("/count/{most}")
    @rpc
    async def count(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number
            await asyncio.sleep(0)

    @task(keep="10s")
    async def work(self, number: int) -> int:
        async with self.atomic():
            await self.state("soak").set(f"work-{number % 50}", number, ttl="30s")
            await self.emit("soak.worked", number, key=str(number % 5), durable=True)
        return number

    @on("soak.worked", durable=True)
    async def worked(self, event: mesh.Event) -> None:
        await self.state("soak").add("worked")

    @on("soak.heard")
    async def heard(self, event: mesh.Event) -> None:
        pass


class Rolled(Steady):
    """Is rolled and killed again and again."""

    name = "rolled"


class Leaky(mesh.Service):
    """Keeps what it is given, and a file open for each: for the proof that a soak notices."""

    name = "leaky"

    async def started(self) -> None:
        self.kept: list[Any] = []

    @rpc
    async def keep(self, size: int) -> int:
        self.kept.append((b"x" * size, os.open("/dev/null", os.O_RDONLY)))
        return len(self.kept)
