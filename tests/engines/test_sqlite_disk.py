"""A disk that is full, or that nobody may write to: writers are told, readers go on, nothing confirmed is lost."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_bench import QUEUE, Bench, memory

from mesh.engines.sqlite import core as core_module
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.file import FILE
from mesh.errors import SetupError, Unwritable

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux"
)


class Disk:
    """A tmpfs of a few megabytes."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.data = at / "data"
        self._filler = at / "filler"

    def mount(self, *options: str) -> None:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(["size=3m", "mode=0700", *options]), "tmpfs", str(self.at)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.at)], check=True)

    def forbid(self) -> None:
        """Nobody may write to it any more."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.at)], check=True)

    def allow(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(self.at)], check=True)

    def fill(self, spare_bytes: int = 0) -> None:
        """No room for another page, but for `spare_bytes`."""
        with self._filler.open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                filler.truncate(max(0, filler.tell() // 4096 * 4096 - spare_bytes))

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    disk.at.mkdir()
    disk.mount()
    yield disk
    disk.unmount()


@pytest.fixture
def on_disk(disk: Disk) -> Iterator[Bench]:
    bench = Bench(disk.data)
    yield bench
    bench.core.close()


def run_until_full(bench: Bench) -> list[str]:
    """Defer until the disk takes nothing more; what was confirmed."""
    confirmed: list[str] = []
    while True:
        try:
            confirmed += bench.defer(*(bench.task(body=os.urandom(500)) for _ in range(10)))
        except Unwritable as exc:
            details = exc.details
            break
    assert details["sqlite"] == "SQLITE_FULL"
    return confirmed


@needs_root
def test_a_full_disk_is_an_error_to_writers_while_readers_go_on(disk: Disk, on_disk: Bench) -> None:
    """What was confirmed is there, what was refused is not, and memory agrees with the file."""
    bench = on_disk
    bench.commit(writes=[bench.write("u1", value=b"\x01")], events=[bench.event()])
    disk.fill(spare_bytes=300_000)
    confirmed = run_until_full(bench)
    assert confirmed
    before = memory(bench.core)
    for _ in range(3):
        with pytest.raises(Unwritable):
            bench.defer(*(bench.task("new.queue", os.urandom(500), key=str(number)) for number in range(1000)))
    with pytest.raises(Unwritable):
        bench.commit(writes=[bench.write(f"{number}", value=os.urandom(900)) for number in range(1000)])
    assert memory(bench.core) == before
    assert bench.core.ready(QUEUE) == len(confirmed)
    assert bench.statuses(confirmed) == ["ready"] * len(confirmed)
    assert bench.core.get("carts", ["u1"], bench.wall)[0] is not None
    assert len(bench.core.read("#")[0]) == 1
    assert len(bench.core.jobs(QUEUE, "ready", wall=bench.wall)) == min(100, len(confirmed))
    assert bench.core.info().events == 1


@needs_root
def test_when_there_is_room_again_writing_goes_on(disk: Disk, on_disk: Bench) -> None:
    """Nobody has to start anything again."""
    bench = on_disk
    disk.fill(spare_bytes=300_000)
    confirmed = run_until_full(bench)
    disk.free()
    later = bench.defer(bench.task(body=os.urandom(100_000)))
    leases = bench.claim(10_000)
    assert [lease.id for lease in leases] == confirmed + later
    bench.settle(*leases)
    bench.sound()


@needs_root
def test_a_transaction_larger_than_the_disk_fails_whole(disk: Disk, on_disk: Bench) -> None:
    """It fails in its middle, when pages must leave memory; the next one finds everything as it was."""
    bench = on_disk
    [id] = bench.defer(bench.task())
    before = memory(bench.core)
    with pytest.raises(Unwritable):
        bench.defer(*(bench.task(body=os.urandom(500_000)) for _ in range(10)))
    assert memory(bench.core) == before
    assert bench.one().id == id


@needs_root
@pytest.mark.parametrize("killed", [False, True])
def test_a_store_on_a_full_disk_can_be_started_and_read(disk: Disk, killed: bool) -> None:
    """After a stop, and after kill -9 with all of its work in the log; when there is room it can be written again."""
    bench = Bench(disk.data)
    confirmed = bench.defer(*(bench.task(body=os.urandom(400)) for _ in range(50)))
    if killed:
        images = {path: path.read_bytes() for path in disk.data.iterdir() if not path.name.endswith("-shm")}
        bench.core.close()
        for path, image in images.items():
            path.write_bytes(image)
    else:
        bench.core.close()
    disk.fill()
    bench.core.open()
    assert bench.statuses(confirmed) == ["ready"] * 50
    with pytest.raises(Unwritable):
        bench.defer(bench.task(body=os.urandom(200_000)))
    assert bench.statuses(confirmed) == ["ready"] * 50
    disk.free()
    more = bench.defer(bench.task(body=os.urandom(200_000)))
    assert [lease.id for lease in bench.claim(100)] == confirmed + more
    bench.core.close()


@needs_root
def test_no_store_can_be_made_on_a_full_disk(disk: Disk) -> None:
    """It is told at once; what was begun does no harm later."""
    disk.data.mkdir()
    disk.fill()
    with pytest.raises(SetupError):
        Core(disk.data).open()
    disk.free()
    bench = Bench(disk.data)
    bench.defer(bench.task())
    bench.core.close()


@needs_root
def test_a_backup_that_does_not_fit_leaves_nothing(disk: Disk, bench: Bench) -> None:
    """Neither a part of it, nor a change of what was there."""
    bench.defer(*(bench.task(body=os.urandom(1000)) for _ in range(5000)))
    with pytest.raises(SetupError, match=r"copy\.db"):
        bench.core.backup(disk.at / "copy.db")
    assert list(disk.at.iterdir()) == []


@needs_root
@pytest.mark.parametrize("killed", [False, True])
def test_a_read_only_disk_can_be_read(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """After a stop, and after kill -9; as soon as it may be written to, it is."""
    monkeypatch.setattr(core_module, "_REOPEN_S", 0.0)
    bench = Bench(disk.data)
    confirmed = bench.defer(*(bench.task() for _ in range(50)))
    bench.commit(writes=[bench.write("u1", value=b"\x01")])
    if killed:
        images = {path: path.read_bytes() for path in disk.data.iterdir()}
        bench.core.close()
        for path, image in images.items():
            path.write_bytes(image)
    else:
        bench.core.close()
    disk.forbid()
    bench.core.open()
    assert not bench.core.writable
    assert not bench.core.info().writable
    assert bench.core.info().reason
    for _ in range(2):
        with pytest.raises(Unwritable):
            bench.defer(bench.task())
    assert bench.statuses(confirmed) == ["ready"] * 50
    assert bench.core.get("carts", ["u1"], bench.wall)[0] is not None
    assert bench.core.ready(QUEUE) == 50
    assert bench.core.check() == []
    assert bench.core.backup(tmp_path / "copy.db").size_bytes > 0
    disk.allow()
    more = bench.defer(bench.task())
    assert [lease.id for lease in bench.claim(100)] == confirmed + more
    assert bench.core.writable
    bench.core.close()


@needs_root
def test_a_disk_that_becomes_read_only_refuses_writers(disk: Disk, on_disk: Bench) -> None:
    """While the store runs: as a kernel does after a fault of the disk."""
    bench = on_disk
    confirmed = bench.defer(*(bench.task() for _ in range(20)))
    before = memory(bench.core)
    # A file system with open files is not remounted; the end of what this process may write acts alike.
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, old[1]))
    try:
        with pytest.raises(Unwritable):
            bench.defer(bench.task())
        assert memory(bench.core) == before
        assert bench.statuses(confirmed) == ["ready"] * 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert bench.defer(bench.task())
    bench.sound()


def test_a_missing_folder_on_a_read_only_place_is_told(tmp_path: Path) -> None:
    """/proc takes no folders, whoever asks."""
    with pytest.raises(SetupError, match=r"\[store\] dir"):
        Core(Path("/proc/mesh-store")).open()


def test_a_file_that_cannot_be_opened_again_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left, say, when a file that could only be read is to be opened for writing: it is later."""
    core = bench.core
    bench.defer(bench.task())
    core.writable = False
    opens = core_module.open_file

    def fails(*args: object) -> None:
        raise SetupError("too many open files")

    for attempt in (fails, fails, opens):
        core._reopen_at = 0.0
        monkeypatch.setattr(core_module, "open_file", attempt)
        if attempt is opens:
            break
        with pytest.raises(Unwritable):
            bench.defer(bench.task())
        with pytest.raises(Unwritable):
            core.locks(bench.wall)
        # The store looks at these between two transactions.
        assert (core.ready(QUEUE), core.pumpable()) == (1, False)
    bench.defer(bench.task())
    assert core.ready(QUEUE) == 2
    bench.sound()


def test_what_the_file_says_is_in_the_error(bench: Bench) -> None:
    """The path, what SQLite said, and what to do."""
    holder = sqlite3.connect(bench.dir / FILE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Unwritable) as caught:
            bench.defer(bench.task())
        assert caught.value.details["sqlite"] == "SQLITE_BUSY"
        assert str(bench.dir / FILE) in caught.value.message
    finally:
        holder.close()
    assert bench.defer(bench.task())
