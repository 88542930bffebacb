"""What the workers of a run serve: registers behind calls and HTTP, tasks with effects, and holders of locks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mesh
from mesh import http, on, rpc, task

from .history import Recorder
from .verbs import hold

#: A run kills workers far more often than users do, and for longer than a dead letter may wait.
PATIENT: Any = {"retries": 1000, "backoff": "50ms..500ms", "timeout": "30s"}
KEPT: Any = {**PATIENT, "lost": 1000, "keep": "1d"}


class Register(mesh.Service):
    """State, by way of a worker: what the worker is told by the store must reach the caller unchanged."""

    # Writes are POST: HTTP clients repeat PUT and DELETE by themselves when a connection breaks, and then the error of
    # the second try says nothing of the first.
    name = "register"
    expose = True

    @http.get("/register/{key}")
    @rpc
    async def read(self, key: str) -> dict[str, Any]:
        value, etag = await self.state("register").get(key)
        return {"value": value, "etag": etag}

    @http.post("/register/{key}/swap")
    @rpc
    async def swap(self, key: str, value: str, etag: str) -> str:
        return await self.state("register").set(key, value, etag=etag)

    @http.post("/register/{key}/write")
    @rpc
    async def write(self, key: str, value: str) -> str:
        return await self.state("register").set(key, value)

    @http.post("/register/{key}/remove")
    @rpc
    async def remove(self, key: str) -> None:
        await self.state("register").delete(key)


class Ledger(mesh.Service):
    """Each effect is committed with the acknowledgement of its task."""

    name = "ledger"
    expose = True

    async def started(self) -> None:
        self.recorder = Recorder(Path(os.environ["MESH_HISTORY"]) / f"worker-{os.getpid()}.jsonl", f"w{os.getpid()}")

    @task(slots=16, **KEPT)
    async def book(self, entry: str, source: str, target: str, amount: int) -> None:
        async with self.atomic():
            # A second effect of the same entry is refused, and its job ends in the dead letters.
            await self.state("entries").set(entry, amount, etag="")
            await self.state("balances").add(source, -amount)
            await self.state("balances").add(target, amount)

    @task(slots=16, **KEPT)
    async def ordered(self, stream: str, number: int) -> None:
        await self._append("ordered", stream, number)

    @on("jepsen.tick", durable=True, start="all", slots=16, **PATIENT)
    async def heard(self, event: mesh.Event) -> None:
        await self._append("emit", event.data["stream"], event.data["number"])

    async def _append(self, namespace: str, stream: str, number: int) -> None:
        async with self.atomic():
            heard, etag = await self.state(namespace).get(stream)
            await self.state(namespace).set(stream, [*(heard or []), number], etag=etag)

    @task(slots=4, **KEPT)
    async def guarded(self, lock: str, seconds: float) -> None:
        await hold(self.node, self.recorder, lock, seconds)
