"""The store as a process: kill -9 and SIGTERM under load, a second store, backups, and a file that is damaged."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from store_process import PATIENCE_S, Project, Worker, all_jobs, new_task

from mesh import ids
from mesh.engines.sqlite.client import StoreEngine
from mesh.errors import MeshError
from mesh.tasks.contract import NewTask, Offer, Queue
from tests.patience import until

pytestmark = pytest.mark.asyncio(loop_scope="function")


@pytest.fixture
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    lease = getattr(request, "param", "3s")
    project = Project({"store.lease": f'"{lease}"', "log.format": '"json"'})
    try:
        yield project
    finally:
        project.end()


def offer(session: str, *queues: Queue) -> Offer:
    return Offer(session, ("orders",), queues, host="here")


class Callers:
    """Many who defer one task after the other until they are told to stop."""

    def __init__(self, engine: StoreEngine, count: int) -> None:
        self.engine = engine
        self.confirmed: list[str] = []
        self.failed: list[MeshError] = []
        self.stopping = False
        self.tasks = [asyncio.create_task(self._defer()) for _ in range(count)]

    async def _defer(self) -> None:
        while not self.stopping:
            id = ids.job_id()
            try:
                await self.engine.queues.defer([new_task(id)], timeout_s=PATIENCE_S)
            except MeshError as error:
                self.failed.append(error)
            else:
                self.confirmed.append(id)

    async def until(self, count: int) -> None:
        """Return when so many more have been confirmed."""
        wanted = len(self.confirmed) + count
        end = time.monotonic() + PATIENCE_S
        while len(self.confirmed) < wanted:
            assert time.monotonic() < end, "nothing is confirmed any more"
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)


async def test_kill_9_under_load_loses_nothing_that_was_confirmed(project: Project) -> None:
    """Three times in the middle of the work: each confirmed job is there, once; callers only wait."""
    project.start_store()
    async with project.engine() as engine:
        callers = Callers(engine, 32)
        for _ in range(3):
            await callers.until(300)
            project.kill()
            await asyncio.to_thread(project.start_store)
        await callers.until(300)
        await callers.stop()
        assert callers.failed == []
        jobs = await all_jobs(engine, "orders.charge", "ready")
        assert len(jobs) == len(set(jobs)) == len(callers.confirmed)
        assert set(jobs) == set(callers.confirmed)
    assert project.stop() == 0


# A lease that outlasts the start of a process on the busiest machine: being silent is another test's subject.
@pytest.mark.parametrize("project", ["20s"], indirect=True)
async def test_kill_9_while_tasks_run_gives_none_of_them_out_again(project: Project) -> None:
    """A worker that comes back in time keeps what it holds; what it settled meanwhile is heard."""
    project.start_store()
    async with project.engine() as engine:
        gate = asyncio.Event()
        worker = Worker(engine)
        worker.work = lambda lease: gate.wait()  # type: ignore[method-assign, assignment, return-value]
        await engine.queues.defer([new_task(ids.job_id()) for _ in range(20)], timeout_s=PATIENCE_S)
        session = await engine.leases.subscribe(offer("w@1", Queue("orders.charge", 8)), worker)
        await until(lambda: len(worker.in_hand) == 8, "eight tasks were not given")
        first = set(worker.runs)
        project.kill()
        gate.set()  # they are done while there is no store
        await asyncio.to_thread(project.start_store)
        await until(lambda: len(worker.done) == 20, "not all tasks were done")
        assert set(worker.runs.values()) == {1}
        assert first <= worker.done
        assert worker.refused == []
        assert worker.silences == []
        await session.close()
    assert project.stop() == 0


@pytest.mark.parametrize("project", ["30s"], indirect=True)
async def test_a_worker_that_is_killed_is_noticed_at_once(project: Project) -> None:
    """Its process is seen to be dead: its tasks go to others within a fraction of the lease."""
    project.start_store()
    async with project.engine() as engine:
        await engine.queues.defer([new_task("job-1")], timeout_s=PATIENCE_S)
        victim = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HOLDER, str(project.root)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert victim.stdout is not None
        assert await asyncio.wait_for(victim.stdout.readline(), PATIENCE_S) == b"job-1 1\n"
        worker = Worker(engine)
        session = await engine.leases.subscribe(offer("w@2", Queue("orders.charge", 8)), worker)
        killed_at = time.monotonic()
        victim.kill()
        await until(lambda: worker.done, "the dead worker's task was not given to another")
        assert time.monotonic() - killed_at < 15.0
        await victim.wait()
        info = await engine.jobs.find("job-1", timeout_s=PATIENCE_S)
        assert info is not None
        assert (info.attempt, info.lost, info.status) == (2, 1, "done")
        await session.close()


#: A worker that takes a task and never ends it.
HOLDER = """
import asyncio, sys
from pathlib import Path
import mesh
from mesh.engines.sqlite.client import StoreEngine
from mesh.tasks.contract import NewTask, Offer, Queue

class Holder:
    def leased(self, leases):
        for lease in leases:
            print(lease.id, lease.attempt, flush=True)
    def cancel(self, jobs): ...
    def lost(self, reason): ...
    def held(self):
        return ()

async def main():
    async with mesh.connect(path=Path(sys.argv[1]) / "mesh.toml", wait_s=30.0) as node:
        engine = StoreEngine(node.client, node.clock)
        await engine.leases.subscribe(Offer("w@1", ("orders",), (Queue("orders.charge", 8),)), Holder())
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_sigterm_under_load_finishes_what_is_in_hand(project: Project) -> None:
    """Streams end, what was asked is answered, and the next store goes on; nobody sees an error."""
    project.start_store()
    async with project.engine() as engine:
        worker = Worker(engine)
        session = await engine.leases.subscribe(offer("w@1", Queue("orders.charge", 16)), worker)
        lock = await engine.locks.acquire("door", "me", ttl_s=30.0, wait_s=0.0, timeout_s=PATIENCE_S)
        waiting = asyncio.create_task(
            engine.locks.acquire("door", "you", ttl_s=30.0, wait_s=PATIENCE_S, timeout_s=PATIENCE_S)
        )
        callers = Callers(engine, 16)
        await callers.until(200)
        began_at = time.monotonic()
        assert await asyncio.to_thread(project.stop) == 0
        assert time.monotonic() - began_at < 5.0
        await asyncio.to_thread(project.start_store)
        await callers.until(200)
        await callers.stop()
        assert callers.failed == []
        await until(lambda: worker.done >= set(callers.confirmed), "not all tasks were done")
        assert Counter(worker.runs.values()).keys() == {1}
        assert worker.refused == []
        assert await engine.locks.release("door", "me", timeout_s=PATIENCE_S)
        assert (await waiting).token > lock.token
        await session.close()
    assert project.stop() == 0
    assert project.said("store", b'"level":"error"') == 0, project.log("store").read_text()


async def test_a_second_store_refuses_to_start(project: Project) -> None:
    """One directory, one store: the other one says who has it, and changes nothing."""
    project.start_store()
    second = await asyncio.to_thread(project.run, "store")
    assert second.returncode == 1
    assert f"pid {project.store.pid}" in second.stderr
    assert str(project.data) in second.stderr
    assert "Traceback" not in second.stderr
    assert project.store.poll() is None
    assert project.stop() == 0


async def test_a_damaged_file_stops_the_store_and_is_left_as_it_is(project: Project) -> None:
    """It ends with a code of its own, at the start and in the middle of the work, and says what to do."""
    project.start_store()
    async with project.engine() as engine:
        tasks = [new_task(ids.job_id(), key=f"key-{number}") for number in range(3000)]
        await engine.queues.defer(tasks, timeout_s=PATIENCE_S)
    assert project.stop() == 0
    file = next(project.data.glob("*.db"))
    content = bytearray(file.read_bytes())
    content[8192 : len(content) // 2] = b"\xa5" * (len(content) // 2 - 8192)
    file.write_bytes(content)
    started = await asyncio.to_thread(project.run, "store")
    assert started.returncode == 5, started.stderr
    assert "damaged" in started.stderr
    assert "backup" in started.stderr
    assert file.read_bytes() == content
    checked = await asyncio.to_thread(project.run, "store", "check", "--json")
    assert checked.returncode == 1
    assert json.loads(checked.stdout)["sound"] is False


async def test_a_file_that_is_damaged_while_the_store_runs_stops_it() -> None:
    """Before anything is built on it: the same code, the same words."""
    project = Project({"store.cache": '"64KiB"', "log.format": '"json"'})
    try:
        project.start_store()
        async with project.engine() as engine:
            for _ in range(4):
                tasks = [NewTask(ids.job_id(), "mail.send", b"x" * 900) for _ in range(1000)]
                await engine.queues.defer(tasks, timeout_s=PATIENCE_S)
            file = next(project.data.glob("*.db"))
            # A quiet moment brings what was written into the file itself.
            await until(lambda: file.stat().st_size > 3_000_000, "the log was never brought into the file")
            with file.open("r+b") as damage:
                damage.seek(100_000)
                damage.write(b"\xa5" * 3_000_000)
            reading = asyncio.create_task(all_jobs(engine, "mail.send", "ready"))
            await until(lambda: project.store.poll() is not None, "the store goes on")
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert project.store.returncode == 5
        assert project.said("store", b"is damaged") or project.said("store", b"overwritten in place")
    finally:
        project.end()


async def test_a_backup_under_load_is_whole(project: Project) -> None:
    """Made while callers write: sound, and a store that is given it goes on from there."""
    project.start_store()
    copy = project.root / "copy.db"
    async with project.engine() as engine:
        callers = Callers(engine, 8)
        await callers.until(300)
        before = set(callers.confirmed)
        made = await asyncio.to_thread(project.run, "store", "backup", "copy.db", "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["path"] == str(copy)
        await callers.until(50)
        await callers.stop()
        again = await asyncio.to_thread(project.run, "store", "backup", "copy.db")
        assert again.returncode != 0
        assert "copy.db" in again.stderr
        info = await asyncio.to_thread(project.run, "store", "info", "--json")
        assert json.loads(info.stdout)["writable"] is True
        shown = await asyncio.to_thread(project.run, "store", "info")
        assert str(project.data) in shown.stdout
        checked = await asyncio.to_thread(project.run, "store", "check", "--json")
        assert (checked.returncode, json.loads(checked.stdout)["sound"]) == (0, True)
    assert callers.failed == []
    assert project.stop() == 0
    connection = sqlite3.connect(copy)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    name = next(project.data.glob("*.db")).name
    shutil.rmtree(project.data)
    project.data.mkdir(mode=0o700)
    copy.rename(project.data / name)
    project.start_store()
    async with project.engine() as engine:
        jobs = await all_jobs(engine, "orders.charge", "ready")
        assert before <= set(jobs) <= set(callers.confirmed)
    assert project.stop() == 0
