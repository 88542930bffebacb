"""Real processes: a hub and a store in a directory of their own, and what a test asks of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import mesh
from mesh.engines.sqlite.client import StoreEngine
from mesh.errors import MeshError
from mesh.tasks.contract import Lease, NewTask, Settlement

PATIENCE_S = 30.0


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**clean, "PYTHONUNBUFFERED": "1"}


class Project:
    """A directory with a mesh.toml, and the processes that run there."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        # Not pytest's: a unix socket's path has room for 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix="mesh-store-"))
        self.data = self.root / "data"
        sections: dict[str, list[str]] = {}
        for dotted, value in settings.items():
            section, _, key = dotted.partition(".")
            sections.setdefault(section, []).append(f"{key} = {value}")
        lines = [line for section, keys in sections.items() for line in (f"[{section}]", *keys)]
        (self.root / "mesh.toml").write_text("\n".join(lines) + "\n")
        self.started: list[subprocess.Popen[bytes]] = []
        self.hub = self.start("hub")
        self.store: subprocess.Popen[bytes]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A process of `mesh …`; what it says is added to a log of its own."""
        with self.log(words[0]).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mesh.cli.main", *words],
                cwd=self.root,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A command line, run to its end."""
        return subprocess.run(
            [sys.executable, "-m", "mesh.cli.main", *words],
            cwd=self.root,
            env={**environment(), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start_store(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """A store; ready, when waited for."""
        ready = self.said("store", b'"worker.ready"')
        self.store = self.start("store")
        end = time.monotonic() + PATIENCE_S
        while wait and self.said("store", b'"worker.ready"') == ready:
            assert time.monotonic() < end, self.log("store").read_text()
            assert self.store.poll() is None, self.log("store").read_text()
            time.sleep(0.01)
        return self.store

    def said(self, name: str, what: bytes) -> int:
        """How often a process has said this."""
        log = self.log(name)
        return log.read_bytes().count(what) if log.exists() else 0

    def kill(self) -> None:
        """kill -9 of the store."""
        self.store.kill()
        self.store.wait()

    def stop(self) -> int:
        """SIGTERM to the store; its exit code."""
        self.store.send_signal(signal.SIGTERM)
        return self.store.wait(PATIENCE_S)

    def end(self) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[StoreEngine]:
        """An engine of a process that joins the mesh."""
        async with mesh.connect(path=self.root / "mesh.toml", wait_s=PATIENCE_S) as node:
            engine = StoreEngine(node.client, node.clock)
            try:
                yield engine
            finally:
                await engine.close()


class Worker:
    """Runs every task that it is given by counting it; what it did is in `runs` and, once confirmed, in `done`."""

    def __init__(self, engine: StoreEngine) -> None:
        self.engine = engine
        self.runs: dict[str, int] = {}
        self.done: set[str] = set()
        self.refused: list[MeshError] = []
        self.in_hand: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.silences: list[str] = []

    def leased(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.in_hand[lease.id, lease.attempt] = asyncio.create_task(self._run(lease))

    async def _run(self, lease: Lease) -> None:
        self.runs[lease.id] = self.runs.get(lease.id, 0) + 1
        try:
            await self.work(lease)
            await self.engine.leases.acknowledge([Settlement(lease.id, lease.attempt, "done")], timeout_s=PATIENCE_S)
        except MeshError as error:
            self.refused.append(error)
        else:
            self.done.add(lease.id)
        finally:
            del self.in_hand[lease.id, lease.attempt]

    async def work(self, lease: Lease) -> None:
        """To be overridden."""

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        for job in jobs:
            if job in self.in_hand:
                self.in_hand[job].cancel()

    def lost(self, reason: str) -> None:
        self.silences.append(reason)

    def held(self) -> list[tuple[str, int]]:
        return list(self.in_hand)


async def all_jobs(engine: StoreEngine, queue: str, status: str) -> list[str]:
    """The ids of all jobs of a queue with this status."""
    found: list[str] = []
    while True:
        page = await engine.jobs.page(
            queue,
            status,
            after=found[-1] if found else "",
            limit=1000,
            timeout_s=PATIENCE_S,  # type: ignore[arg-type]
        )
        if not page:
            return found
        found += [job.id for job in page]


def new_task(id: str, queue: str = "orders.charge", **what: object) -> NewTask:
    return NewTask(id, queue, b"\x90", **what)  # type: ignore[arg-type]
