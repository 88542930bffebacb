"""The embedded engine under test: a real store, its hub and its callers; as one process with a hand-turned clock, or as
processes of their own over ipc.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine_rig import PATIENCE_S, T_S, Rig

from mesh import config
from mesh.clock import LoopClock, ManualClock
from mesh.config import Settings
from mesh.discovery.hub import Hub
from mesh.engines.contract import Engine
from mesh.engines.sqlite.client import StoreEngine
from mesh.node.node import Node
from mesh.store.service import Store
from mesh.testing.hosts import MemoryHost
from mesh.testing.overrides import settings_for
from mesh.worker.worker import Worker

#: A thousand small commits each wait for the disk where it is a real one; what they promise of it is tested elsewhere.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class StoreRig(Rig):
    """The store over links in memory, under a hand-turned clock, with its files in a directory that is thrown away."""

    kind = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        assert isinstance(self.clock, ManualClock)
        self.turned: ManualClock = self.clock

    async def start(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="mesh-contract-", dir=FAST))
        self._rng = random.Random(1)
        overrides: dict[str, Any] = {
            "store.dir": str(self._dir / "data"),
            "store.lease": self.lease_s,
            "tasks.unknown_after": self.unknown_after_s,
            "events.retention": self.retention_s,
        }
        self._host = MemoryHost(self.clock, 3.0)
        self._settings: Settings = settings_for(overrides, hubs=[self._host.hub(1)], run_dir=self._dir)
        self._nodes: dict[StoreEngine, Node] = {}
        self._dying: list[asyncio.Future[None]] = []
        self._hub = Hub(self._host.transport(self._settings), self.clock, identity="hub-1", epoch=1, learn_s=0.0)
        await self._hub.start(self._host.hub(1))
        await self._start_store()

    async def _start_store(self) -> None:
        transport = self._host.transport(self._settings)
        self._worker = Worker([Store], self._settings, transport=transport, clock=self.clock, rng=self._rng)
        await self.soon(self._worker.start())

    async def engine(self) -> StoreEngine:
        node = Node(self._settings, transport=self._host.transport(self._settings), clock=self.clock, rng=self._rng)
        await node.start()
        engine = StoreEngine(node.client, self.clock, rng=self._rng)
        self._nodes[engine] = node
        await self.soon(engine.state.namespaces(timeout_s=T_S))
        return engine

    async def end_process(self, engine: Engine) -> None:
        assert isinstance(engine, StoreEngine)
        node = self._nodes.pop(engine)
        await self._host.vanish(node.transport)
        self._dying.append(asyncio.ensure_future(_end(engine, node)))

    async def part_process(self, engine: Engine) -> None:
        assert isinstance(engine, StoreEngine)
        self._host.network.partition(self._nodes[engine].transport)  # type: ignore[arg-type]

    async def join_process(self, engine: Engine) -> None:
        assert isinstance(engine, StoreEngine)
        self._host.network.heal(self._nodes[engine].transport)  # type: ignore[arg-type]

    async def restart(self) -> None:
        dead = self._worker
        [store] = dead.services
        assert isinstance(store, Store)
        # Between two turns everything confirmed is on the disk, and nothing else: as after kill -9.
        store.turns.close()
        store.core.close()
        await self._host.vanish(dead.node.transport)
        dead._began.clear()
        self._dying.append(asyncio.ensure_future(dead.stop()))
        await self._start_store()
        for engine in tuple(self._nodes):
            await self.soon(engine.state.namespaces(timeout_s=T_S))
            for session in engine._sessions:
                await self.soon(_attached(session))

    async def close(self) -> None:
        for engine, node in self._nodes.items():
            self._dying.append(asyncio.ensure_future(_end(engine, node)))
        await self.soon(asyncio.gather(*self._dying))
        await self.soon(self._worker.stop())
        await self.soon(self._hub.stop(0.0))
        self._host.close()
        shutil.rmtree(self._dir)


async def _end(engine: StoreEngine, node: Node) -> None:
    await engine.close()
    await node.close()
    await node.transport.close()


async def _attached(session: Any) -> None:
    while not session.attached and not session._closed:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0)


class StoreProcessRig(Rig):
    """`mesh store` and `mesh hub` as processes of their own, over ipc, in real time."""

    kind = "sqlite-process"
    longest_s = 0.0

    async def start(self) -> None:
        self.clock = LoopClock()
        # Not pytest's: a unix socket's path has room for 107 characters.
        self._dir = Path(tempfile.mkdtemp(prefix="mesh-contract-"))
        (self._dir / "mesh.toml").write_text('[log]\nformat = "json"\n')
        self._started: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[StoreEngine, Node] = {}
        self._hub = self._run("hub")
        self._store = self._run("store")

    async def engine(self) -> StoreEngine:
        settings = config.load(self._dir / "mesh.toml", env={})
        node = Node(settings)
        await node.start(PATIENCE_S)
        engine = StoreEngine(node.client, node.clock)
        self._nodes[engine] = node
        await engine.state.namespaces(timeout_s=PATIENCE_S)
        return engine

    async def restart(self) -> None:
        self._store.kill()
        self._store.wait()
        self._store = self._run("store")
        for engine in self._nodes:
            await engine.state.namespaces(timeout_s=PATIENCE_S)
            for session in engine._sessions:
                await self.eventually(lambda session=session: session.attached or session._closed, "it is back")

    async def quiet(self) -> None:
        # What the store says to somebody by itself is on its way before it answers a later question of his.
        for _ in range(2):
            for engine in tuple(self._nodes):
                await engine.state.namespaces(timeout_s=PATIENCE_S)

    async def close(self) -> None:
        for engine, node in self._nodes.items():
            await engine.close()
            await node.close()
        for process in reversed(self._started):
            process.kill()
            process.wait()
        shutil.rmtree(self._dir)

    def _run(self, word: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        with (self._dir / f"{word}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mesh.cli.main", word],
                cwd=self._dir,
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process
