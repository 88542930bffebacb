"""A disk that is full or read-only: writers are told at once, readers go on, and work goes on by itself afterwards.

On a small file system of its own, which only root may mount.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_process import PATIENCE_S, Project, Worker, new_task

from mesh import ids
from mesh.engines.sqlite.client import StoreEngine
from mesh.errors import Unwritable
from mesh.state.contract import Write
from mesh.tasks.contract import NewTask, Offer, Queue
from tests.patience import until


class Disk:
    """A tmpfs of eight megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run("mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(path))

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a file system of its own is needed: {done.stderr.strip()}")

    def fill(self) -> None:
        """Leave no room."""
        with (self.path / "ballast").open("ab", buffering=0) as ballast:
            for size in (1 << 16, 1 << 12):
                try:
                    while ballast.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        (self.path / "ballast").unlink()

    def protect(self, protected: bool) -> None:
        """Read-only, or not."""
        self._run("mount", "-o", f"remount,{'ro' if protected else 'rw'}", str(self.path))

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False)


@pytest.fixture
def project() -> Iterator[Project]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    project = Project({"store.lease": '"3s"', "log.format": '"json"'})
    try:
        yield project
    finally:
        project.end()


@pytest.fixture
def disk(project: Project) -> Iterator[Disk]:
    project.data.mkdir(mode=0o700)
    disk = Disk(project.data)
    try:
        yield disk
    finally:
        for process in project.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        disk.unmount()


async def fill_up(engine: StoreEngine) -> None:
    """Use what little room there is."""
    for _ in range(1000):
        await engine.queues.defer([NewTask(ids.job_id(), "mail.send", b"x" * 20_000)], timeout_s=PATIENCE_S)


async def refused_at_once(engine: StoreEngine) -> Unwritable:
    """A write; the error, which comes without waiting."""
    began_at = time.monotonic()
    with pytest.raises(Unwritable) as caught:
        await fill_up(engine)
    assert time.monotonic() - began_at < 5.0
    assert caught.value.status == 507
    return caught.value


async def reads_go_on(engine: StoreEngine) -> None:
    [entry] = await engine.state.get("carts", ["u1"], timeout_s=5.0)
    assert entry is not None
    assert entry.value == b"\x01"
    assert (await engine.jobs.find("known", timeout_s=5.0)) is not None
    assert await engine.leases.queues(timeout_s=5.0)


async def prepare(engine: StoreEngine) -> None:
    await engine.state.write([Write("carts", "u1", "set", ids.etag(), value=b"\x01")], timeout_s=5.0)
    await engine.queues.defer([new_task("known")], timeout_s=5.0)


async def work_goes_on_by_itself(engine: StoreEngine, worker: Worker) -> None:
    """Nobody asks: the task that waited is given and done. And writers are heard again."""
    await until(lambda: "known" in worker.done, "the task was not given when there was room again")
    assert worker.runs["known"] == 1
    await engine.queues.defer([new_task("later")], timeout_s=PATIENCE_S)
    await until(lambda: "later" in worker.done, "a later task was not done")


OFFER = Offer("w@1", ("orders",), (Queue("orders.charge", 4),))


async def test_a_full_disk(project: Project, disk: Disk) -> None:
    """Writers: Unwritable at once. Readers: nothing. Workers: they wait, and go on when there is room."""
    project.start_store()
    async with project.engine() as engine:
        idle = Worker(engine)
        first = await engine.leases.subscribe(Offer("w@0", ("orders",), OFFER.queues), idle)
        await first.close()
        await prepare(engine)
        disk.fill()
        error = await refused_at_once(engine)
        assert "full" in error.message
        assert str(project.data) in error.message
        await reads_go_on(engine)
        worker = Worker(engine)
        session = await engine.leases.subscribe(OFFER, worker)
        await asyncio.sleep(0.5)
        await reads_go_on(engine)
        assert (await engine.admin.info(timeout_s=5.0)).writable is False
        disk.make_room()
        await work_goes_on_by_itself(engine, worker)
        assert (await engine.admin.info(timeout_s=5.0)).writable is True
        await session.close()
    assert project.stop() == 0


async def test_a_disk_that_becomes_read_only(project: Project, disk: Disk) -> None:
    """The same for a file system that the kernel no longer writes to; also for a store that is started on it."""
    project.start_store()
    async with project.engine() as engine:
        await prepare(engine)
        idle = Worker(engine)
        first = await engine.leases.subscribe(Offer("w@0", ("orders",), ()), idle)
        await first.close()
        project.kill()
        disk.protect(True)
        await asyncio.to_thread(project.start_store)
        await refused_at_once(engine)
        await reads_go_on(engine)
        disk.protect(False)
        worker = Worker(engine)
        session = await engine.leases.subscribe(OFFER, worker)
        await work_goes_on_by_itself(engine, worker)
        await session.close()
    assert project.stop() == 0
