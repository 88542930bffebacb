"""The file of the store: who may open it, in which version, and what is said when it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_bench import QUEUE, Bench

from mesh.engines.sqlite import file, statements
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.disk import Damaged
from mesh.engines.sqlite.file import APPLICATION_ID, FILE
from mesh.errors import SetupError

HOLDER = """
import sys, os
from pathlib import Path
from mesh.engines.sqlite.core import Core
core = Core(Path(sys.argv[1]))
core.open()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def files(dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dir.iterdir())}


@contextlib.contextmanager
def raw(dir: Path) -> Iterator[sqlite3.Connection]:
    """The file in other hands."""
    with contextlib.closing(sqlite3.connect(dir / FILE, isolation_level=None)) as connection:
        yield connection


# --- one owner, and nobody else ----------------------------------------------------------------------------


def test_a_new_store_is_for_its_user_alone(tmp_path: Path) -> None:
    """The folder is made with its parents; nobody else may look into it or read its files, whatever the umask."""
    before = os.umask(0)
    try:
        bench = Bench(tmp_path / "deep" / "data")
        bench.defer(bench.task())
    finally:
        os.umask(before)
    assert bench.dir.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in bench.dir.iterdir()} == {0o600}
    bench.core.close()


def test_a_folder_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    """It may have been made by hand."""
    (tmp_path / "data").mkdir(mode=0o755)
    Bench(tmp_path / "data").core.close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_second_opener_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """Also one in another process; when that is killed, its folder is free."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        core = Core(tmp_path)
        with pytest.raises(SetupError, match=rf"\bpid {pid}\b"):
            core.open()
        holder.kill()
        holder.wait()
        core.open()
        with pytest.raises(SetupError, match=rf"\bpid {os.getpid()}\b"):
            Core(tmp_path).open()
        core.close()
        Bench(tmp_path).core.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """And what to do."""
    (tmp_path / "data").write_text("a file")
    with pytest.raises(SetupError, match=r"data\b.*\[store\] dir"):
        Core(tmp_path / "data").open()


def test_a_core_that_is_not_open_says_so(tmp_path: Path) -> None:
    """Before, and after; closing twice does no harm."""
    core = Core(tmp_path)
    with pytest.raises(SetupError, match=r"mesh\.db"):
        core.queues(0.0)
    core.open()
    core.close()
    core.close()
    with pytest.raises(SetupError, match=r"mesh\.db"):
        core.turn(0.0)


def test_turns_do_not_nest(bench: Bench) -> None:
    """One at a time."""
    with bench.core.turn(bench.wall), pytest.raises(RuntimeError):
        bench.core.turn(bench.wall)
    assert bench.defer(bench.task())


# --- versions ----------------------------------------------------------------------------------------------


def test_a_file_of_a_newer_version_is_left_alone(bench: Bench) -> None:
    """Its schema may mean something else."""
    bench.core.close()
    with raw(bench.dir) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = files(bench.dir)
    with pytest.raises(SetupError, match=rf"\b99\b.*\b{file.newest_schema()}\b"):
        bench.core.open()
    assert files(bench.dir) == before


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A database that happens to have the name."""
    with raw(tmp_path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    before = files(tmp_path)
    with pytest.raises(SetupError, match=r"\[store\] dir"):
        Core(tmp_path).open()
    with raw(tmp_path) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(SetupError, match=r"\[store\] dir"):
        Core(tmp_path).open()
    assert set(files(tmp_path)) == set(before)


@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_was_only_begun_is_a_new_store(tmp_path: Path, begun: bool) -> None:
    """Whoever made it died before anything was in it, or when it had a head alone."""
    (tmp_path / FILE).touch()
    if begun:
        with raw(tmp_path) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
    bench = Bench(tmp_path)
    bench.defer(bench.task())
    bench.sound()
    bench.core.close()


def test_a_file_knows_its_version_and_its_owner(bench: Bench) -> None:
    """The number of the last migration; migrations are numbered without holes."""
    numbers = [number for number, _ in statements.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert bench.core.info().schema == numbers[-1]
    with raw(bench.dir) as connection:
        assert file.pragma(connection, "application_id") == APPLICATION_ID
        assert file.pragma(connection, "journal_mode") == "wal"
        assert file.pragma(connection, "auto_vacuum") == 2
        assert file.pragma(connection, "page_size") == file.PAGE_BYTES
    assert bench.core._connection is not None
    assert file.pragma(bench.core._connection, "synchronous") == 2


def test_a_migration_brings_an_older_file_up_to_date(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is in it, in one transaction."""
    [id] = bench.defer(bench.task())
    bench.core.close()
    later = [
        (8, "ALTER TABLE tasks ADD COLUMN two TEXT;"),
        (9, "CREATE TABLE three (a);\nINSERT INTO three VALUES (3);"),
    ]
    every = [*statements.migrations(), *later]
    monkeypatch.setattr(statements, "migrations", lambda: every)
    bench.core.open()
    assert bench.core.info().schema == 9
    assert bench.status(id) == "ready"
    with raw(bench.dir) as connection:
        assert connection.execute("SELECT a FROM three").fetchall() == [(3,)]


def test_a_migration_that_fails_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the steps before it, nor the version."""
    [id] = bench.defer(bench.task())
    bench.core.close()
    newest = file.newest_schema()
    every = [*statements.migrations(), (8, "CREATE TABLE two (a);"), (9, "CREATE TABLE tasks (a);")]
    with monkeypatch.context() as patched:
        patched.setattr(statements, "migrations", lambda: every)
        with pytest.raises(SetupError, match=rf"\b{newest} to 9\b"):
            bench.core.open()
    bench.core.open()
    assert bench.core.info().schema == newest
    assert bench.status(id) == "ready"
    with raw(bench.dir) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema WHERE name = 'two'").fetchall() == []


def test_statements_are_found_by_name() -> None:
    """Comments are left out, fragments are filled in; what is missing is missed at once."""
    tasks = statements.named("tasks")
    assert tasks["by_id"].startswith("SELECT queue, seq, id, status")
    assert not any("--" in statement or "{" in statement for statement in tasks.values())
    with pytest.raises(KeyError):
        tasks["nothing"]


# --- damage ------------------------------------------------------------------------------------------------


def filled(bench: Bench) -> None:
    """Some pages of everything, all of it in the file."""
    for _ in range(4):
        bench.defer(*(bench.task(body=os.urandom(300), key=str(number)) for number in range(100)))
        bench.wall += 10_000
        bench.sweep(10_000)
    bench.core.close()


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.9])
def test_a_damaged_file_is_refused_and_left_as_it_is(bench: Bench, where: float) -> None:
    """With what to do; nothing is written over, so that whatever can be saved can be."""
    filled(bench)
    path = bench.dir / FILE
    content = bytearray(path.read_bytes())
    start = int(len(content) * where) // 4096 * 4096
    content[start : start + 4096] = os.urandom(4096)
    path.write_bytes(content)
    before = files(bench.dir)
    with pytest.raises(Damaged, match=r"mesh store backup"):
        bench.core.open()
    assert files(bench.dir) == before


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough" * 100, b"SQLite format 3\0" + bytes(4080)]
)
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    """It is not made into one."""
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(SetupError):
        Core(tmp_path).open()
    assert files(tmp_path)[FILE] == content


def test_a_file_that_was_cut_is_refused(bench: Bench) -> None:
    """Half of it is gone."""
    filled(bench)
    path = bench.dir / FILE
    os.truncate(path, path.stat().st_size // 2)
    before = path.read_bytes()
    with pytest.raises(Damaged):
        bench.core.open()
    assert path.read_bytes() == before


def test_damage_that_shows_later_is_told_as_such(bench: Bench) -> None:
    """Of a page that nobody read at the start: whoever meets it hears the same."""
    bench.defer(*(bench.task(body=os.urandom(900)) for number in range(2000)))
    bench.core.close()
    bench.core = Core(bench.dir, cache_bytes=1)
    bench.core.open()
    path = bench.dir / FILE
    with path.open("r+b") as changing:
        for page in range(3, path.stat().st_size // 4096):
            changing.seek(page * 4096)
            changing.write(os.urandom(4096))
    with pytest.raises(Damaged):
        bench.core.jobs(QUEUE, "ready", wall=bench.wall)
    with pytest.raises(Damaged), bench.core.turn(bench.wall) as turn:
        turn.claim(QUEUE, 2000, "worker-1@1")


def test_a_core_that_could_not_open_can_be_opened_later(bench: Bench) -> None:
    """It let go of the folder."""
    filled(bench)
    path = bench.dir / FILE
    good = path.read_bytes()
    path.write_bytes(b"x" * len(good))
    with pytest.raises(SetupError):
        bench.core.open()
    path.write_bytes(good)
    bench.core.open()
    assert bench.core.check() == []
