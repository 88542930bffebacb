"""The files of a store that runs, removed, truncated, overwritten or moved under load: no confirmed write is lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_process import PATIENCE_S, Project, all_jobs, new_task

from mesh import ids
from mesh.errors import MeshError
from tests.patience import until

pytestmark = pytest.mark.asyncio(loop_scope="function")


@pytest.fixture
def project() -> Iterator[Project]:
    project = Project({"store.lease": '"3s"', "log.format": '"json"'})
    try:
        yield project
    finally:
        project.end()


def cut(path: Path) -> None:
    os.truncate(path, 0)


#: What happens under load, and how a person brings the store back; None: nothing needs to be done.
HARM: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object] | None]] = {
    "log removed": ("mesh.db-wal", Path.unlink, None),
    "index removed": ("mesh.db-shm", Path.unlink, None),
    "directory moved": (
        ".",
        lambda dir: dir.rename(dir.with_name("moved")),
        lambda dir: dir.with_name("moved").rename(dir),
    ),
    "database moved": (
        "mesh.db",
        lambda path: path.rename(path.with_name("elsewhere")),
        lambda path: path.with_name("elsewhere").rename(path),
    ),
}


@pytest.mark.parametrize("harm", HARM)
async def test_nothing_confirmed_is_lost(project: Project, harm: str) -> None:
    """The store stops with exit code 5 before it confirms what would be lost; callers wait for the next one."""
    name, act, repair = HARM[harm]
    path = project.data if name == "." else project.data / name
    project.start_store()
    confirmed: list[str] = []
    failed: list[MeshError] = []
    stopping = False

    async with project.engine() as engine:

        async def defer() -> None:
            while not stopping:
                id = ids.job_id()
                try:
                    await engine.queues.defer([new_task(id)], timeout_s=PATIENCE_S)
                except MeshError as error:
                    failed.append(error)
                else:
                    confirmed.append(id)

        async def more(count: int) -> None:
            wanted = len(confirmed) + count
            await until(lambda: len(confirmed) >= wanted, "nothing is confirmed any more")

        callers = [asyncio.create_task(defer()) for _ in range(16)]
        try:
            await more(300)
            act(path)
            assert await asyncio.to_thread(project.store.wait, PATIENCE_S) == 5
            assert project.said("store", b"another program did this")
            if repair is not None:
                repair(path)
            await asyncio.to_thread(project.start_store)
            await more(100)
            stopping = True
            await asyncio.wait(callers, timeout=PATIENCE_S)
        finally:
            for caller in callers:
                caller.cancel()
        assert failed == []
        jobs = await all_jobs(engine, "orders.charge", "ready")
        assert sorted(jobs) == sorted(confirmed)
    assert project.stop() == 0


@pytest.mark.parametrize("name", ["mesh.db-wal", "mesh.db"])
async def test_a_truncated_file_stops_the_store_although_nobody_writes(project: Project, name: str) -> None:
    project.start_store()
    async with project.engine() as engine:
        await engine.queues.defer([new_task("one")], timeout_s=PATIENCE_S)
        cut(project.data / name)
        assert await asyncio.to_thread(project.store.wait, PATIENCE_S) == 5


async def test_a_backup_that_is_copied_over_a_running_store_stays_as_it_is(project: Project) -> None:
    """It is not mixed with what the store had in its log, and can be used as the message says."""
    project.start_store()
    copy = project.root / "copy.db"
    async with project.engine() as engine:
        await engine.queues.defer([new_task("old")], timeout_s=PATIENCE_S)
        assert project.run("store", "backup", str(copy)).returncode == 0
        await engine.queues.defer([new_task(f"new{number}") for number in range(500)], timeout_s=PATIENCE_S)
        shutil.copyfile(copy, project.data / "mesh.db")
        assert await asyncio.to_thread(project.store.wait, PATIENCE_S) == 5
        assert (project.data / "mesh.db").read_bytes() == copy.read_bytes()
        for beside in ("mesh.db-wal", "mesh.db-shm"):
            (project.data / beside).unlink(missing_ok=True)
        await asyncio.to_thread(project.start_store)
        assert await all_jobs(engine, "orders.charge", "ready") == ["old"]
    checked = project.run("store", "check", "--json")
    assert json.loads(checked.stdout)["sound"] is True
    assert project.stop() == 0
