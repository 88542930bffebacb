"""Files that another program changes while the store has them open: nothing is confirmed that would be lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_bench import Bench

from mesh.engines.contract import Unit
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.disk import Damaged
from mesh.engines.sqlite.folder import PID_FILE
from mesh.tasks.contract import NewTask

WALL = 1_000_000.0


READER = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1])
print(*file.execute("PRAGMA integrity_check").fetchone())
print(*(id for id, in file.execute("SELECT id FROM tasks ORDER BY seq")))
"""


def defer(core: Core, id: str) -> None:
    with core.turn(WALL) as turn:
        turn.apply([Unit(f"u{id}", tasks=[NewTask(id, "orders.charge", b"x" * 900)])])


def truncate(path: Path, size: int = 0) -> None:
    os.truncate(path, size)


def replace(path: Path) -> None:
    """By another inode with the same contents."""
    shutil.copy2(path, path.with_name("other"))
    os.replace(path.with_name("other"), path)


def overwrite(path: Path) -> None:
    """In place, with other bytes of the same length, as `cp` does."""
    path.write_bytes(bytes(path.stat().st_size))


def write(path: Path) -> None:
    """Another program commits, as `sqlite3 mesh.db` does."""
    other = sqlite3.connect(path)
    other.execute("INSERT OR REPLACE INTO marks VALUES ('other', 1)")
    other.commit()
    # Not closed: it must not be the last connection.
    write.kept = other  # type: ignore[attr-defined]


def move(path: Path) -> None:
    """The directory gets another name."""
    path.parent.rename(path.parent.with_name("moved"))


#: What happens to which file, and whether all that was confirmed can be saved.
HARM: dict[str, tuple[str, Callable[[Path], object], bool]] = {
    "log removed": ("-wal", Path.unlink, True),
    "log moved": ("-wal", lambda path: path.rename(path.with_name("elsewhere")), True),
    "log replaced": ("-wal", replace, True),
    "log truncated": ("-wal", truncate, False),
    "log cut": ("-wal", lambda path: truncate(path, path.stat().st_size - 1), False),
    "log overwritten": ("-wal", overwrite, False),
    "index removed": ("-shm", Path.unlink, True),
    "index replaced": ("-shm", replace, True),
    "index truncated": ("-shm", truncate, False),
    "database removed": ("", Path.unlink, False),
    "database replaced": ("", replace, False),
    "database truncated": ("", lambda path: truncate(path, path.stat().st_size - 4096), False),
    "database overwritten": ("", overwrite, False),
    "database written to": ("", write, False),
    "directory moved": ("", move, False),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("inside", [False, True], ids=["between", "in a transaction"])
def test_nothing_is_confirmed_after_it(bench: Bench, harm: str, inside: bool) -> None:
    """Between two transactions, and while one is under way."""
    suffix, act, saved = HARM[harm]
    if inside and harm in ("database written to", "index truncated"):
        pytest.skip("SQLite's own lock keeps others from writing; reading a truncated map ends the process")
    core = bench.core
    defer(core, "before")
    file = core.path.with_name(core.path.name + suffix)
    with pytest.raises(Damaged) as caught:  # noqa: PT012
        if inside:
            with core.turn(WALL) as turn:
                turn.apply([Unit("uafter", tasks=[NewTask("after", "orders.charge", b"x" * 900)])])
                act(file)
        else:
            act(file)
            defer(core, "after")
    assert caught.value.details["path"].startswith(str(core.path))
    assert caught.value.doubtful or not inside
    # No other transaction begins, and the memory is as it was before.
    assert core.ready("orders.charge") == 1
    with pytest.raises(Damaged):
        defer(core, "later")
    core.close()
    assert core.fatal is caught.value
    assert core.rescued == saved
    if saved:
        for beside in ("-wal", "-shm"):
            core.path.with_name(core.path.name + beside).unlink(missing_ok=True)
        # By another process: this one still has the old files open.
        found = subprocess.run(
            [sys.executable, "-c", READER, str(core.path)], capture_output=True, text=True, check=True, timeout=30
        )
        assert found.stdout.split()[:2] == ["ok", "before"]


@pytest.mark.parametrize("cut", [1500, 4100])
def test_a_cut_log_is_noticed_when_its_last_frame_ends_in_zeros(bench: Bench, cut: int) -> None:
    """Writing behind the end of a cut file leaves zeros, so a frame that ends in zeros is compared as a whole."""
    core = bench.core
    # Until the highest page, which is the last of a transaction, is one that begins with such a body.
    for number in range(10):
        with core.turn(WALL) as turn:
            turn.apply([Unit(f"u{number}", tasks=[NewTask(f"t{number}", "orders.charge", bytes(900))])])
    log = core.path.with_name("mesh.db-wal")
    guard = core._rooms.book.guard
    assert guard is not None
    assert not any(log.read_bytes()[: 32 + guard.frames * 4120][-64:])
    with pytest.raises(Damaged) as caught, core.turn(WALL) as turn:  # noqa: PT012
        turn.apply([Unit("uafter", tasks=[NewTask("after", "orders.charge", b"x" * 900)])])
        truncate(log, 32 + guard.frames * 4120 - cut)
    assert caught.value.doubtful
    assert caught.value.details["path"] == str(log)


@pytest.mark.parametrize("name", ["mesh.db-wal", "mesh.db-shm"])
def test_a_file_that_is_replaced_is_noticed_also_when_the_directorys_time_is_set_back(bench: Bench, name: str) -> None:
    """As `rsync -a` and `tar` do: they replace the files, and then the directory has its old modification time."""
    core = bench.core
    folder = core.path.parent
    defer(core, "before")
    # As long as its last change is recent, the names are looked at anyway.
    while time.time_ns() - folder.stat().st_mtime_ns < 150_000_000:
        defer(core, f"t{time.monotonic_ns()}")
    before = folder.stat()
    replace(folder / name)
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Damaged) as caught:
        defer(core, "after")
    assert caught.value.details["path"] == str(folder / name)
    assert caught.value.doubtful
    core.close()
    assert core.rescued


def test_a_backup_that_is_copied_over_the_database_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    """The log of the store that runs is not written into it, neither at once nor when the store closes."""
    core = bench.core
    defer(core, "old")
    core.backup(tmp_path / "copy.db")
    for number in range(300):
        defer(core, f"new{number}")
    shutil.copyfile(tmp_path / "copy.db", core.path)
    core.close()
    assert isinstance(core.fatal, Damaged)
    assert core.path.read_bytes() == (tmp_path / "copy.db").read_bytes()


def test_what_the_store_itself_does_is_not_taken_for_damage(bench: Bench, tmp_path: Path) -> None:
    """Checkpoints, a log that is cut, backups into the same directory, other files there, chmod, and readers."""
    core = bench.core
    for number in range(1500):
        defer(core, f"t{number}")
        if number % 300 == 0:
            core.rest()
            core.backup(core.path.with_name(f"copy{number}.db"))
            os.chmod(core.path, 0o640 if number else 0o600)
        if number == 700:
            with sqlite3.connect(f"file:{core.path}?mode=ro", uri=True) as reader:
                assert reader.execute("SELECT count(*) FROM tasks").fetchone() == (701,)
            reader.close()
    core.path.with_name(PID_FILE).touch()
    assert core._rooms.book.guard is not None
    assert core._rooms.book.fatal is None
    core.close()
    assert core.fatal is None


def test_a_failed_transaction_is_not_taken_for_damage(bench: Bench) -> None:
    core = bench.core
    defer(core, "one")
    with contextlib.suppress(KeyError), core.turn(WALL) as turn:
        turn.apply([Unit("u", tasks=[NewTask("two", "orders.charge", b"x" * 900)])])
        raise KeyError
    defer(core, "three")
    assert core.ready("orders.charge") == 2


def test_a_restored_backup_gets_its_log_back(bench: Bench, tmp_path: Path) -> None:
    """A backup is one file without a log; the store that opens it writes one again."""
    core = bench.core
    defer(core, "one")
    (tmp_path / "data").mkdir(mode=0o700)
    core.backup(tmp_path / "data" / "mesh.db")
    restored = Core(tmp_path / "data")
    restored.open()
    defer(restored, "two")
    assert restored.path.with_name("mesh.db-wal").stat().st_size > 0
    assert restored.ready("orders.charge") == 2
    restored.close()
