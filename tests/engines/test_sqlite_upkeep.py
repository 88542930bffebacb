"""Upkeep of the file: sweeping, state and its counts, free pages, the log's length, copies and checks."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_bench import QUEUE, Bench

from mesh.engines.sqlite import sweep
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.state import _behind
from mesh.engines.sqlite.status import PROOF_S
from mesh.errors import BadRequest, LockLost, LockTaken, SetupError
from mesh.tasks.contract import Queue

# --- sweeping -----------------------------------------------------------------------------------------------


def test_a_sweep_takes_as_many_as_it_may(bench: Bench) -> None:
    """In turns; what is not over stays."""
    bench.defer(*(bench.task(keep_s=float(number)) for number in range(1, 101)))
    bench.settle(*bench.claim())
    bench.wall += 50.0
    assert bench.sweep() == 50
    assert len(bench.core.jobs(QUEUE, "done", limit=1000, wall=bench.wall)) == 50
    bench.wall += PROOF_S + 60
    assert [bench.sweep(40) for _ in range(4)] == [40, 40, 20, 0]
    assert bench.core.info().tasks == 0


def test_a_queue_that_nobody_knows_goes_with_its_last_job(bench: Bench) -> None:
    """One that a worker declared stays."""
    with bench.core.turn(bench.wall) as turn:
        turn.declare(Queue(QUEUE, 10))
    bench.defer(bench.task(keep_s=0.0), bench.task("mistyped.name", keep_s=0.0))
    bench.settle(bench.one(), bench.one(queue="mistyped.name"))
    bench.wall += PROOF_S + 1
    while bench.sweep():
        pass
    assert bench.sweep() == 0
    assert bench.core.names() == [QUEUE]
    bench.sound()
    assert bench.core.names() == [QUEUE]


def test_expired_keys_units_and_locks_are_swept(bench: Bench) -> None:
    """They were absent before."""
    bench.commit(writes=[bench.write(f"k{number}", value=b"\x01", ttl_s=10.0) for number in range(20)])
    bench.commit(writes=[bench.write("stays", value=b"\x01")])
    with bench.core.turn(bench.wall) as turn:
        turn.acquire("nightly", "me", 10.0)
    bench.wall += 10.0
    assert bench.core.get("carts", ["k3", "stays"], bench.wall)[0] is None
    assert [entry.key for entry in bench.core.page("carts", wall=bench.wall)] == ["stays"]
    assert bench.core.namespaces(bench.wall) == [("carts", 1)]
    assert bench.core.locks(bench.wall) == []
    assert bench.sweep(15) == 15
    assert bench.core.namespaces(bench.wall) == [("carts", 1)]
    assert bench.sweep(15) == 6
    bench.wall += PROOF_S
    assert bench.sweep(15) == 2
    bench.sound()


def test_nobody_starves_while_others_have_enough(bench: Bench) -> None:
    """What there is much of leaves its turn to the rest."""
    bench.defer(*(bench.task(keep_s=0.0) for _ in range(60)), *(bench.task("a.few", keep_s=0.0) for _ in range(3)))
    bench.settle(*bench.claim(), *bench.claim(queue="a.few"))
    bench.commit(writes=[bench.write(f"k{number}", value=b"\x01", ttl_s=10.0) for number in range(10)])
    bench.wall += 2 * PROOF_S
    swept = [bench.sweep(5) for _ in range(8)]
    assert swept == [5] * 8
    assert bench.core._rooms.state._spaces["carts"].entries == 0
    while bench.sweep(5):
        pass
    assert bench.core.info().tasks == 0


def test_free_pages_are_given_back_in_bites(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When they are many; else they are kept for what comes next."""
    monkeypatch.setattr(sweep, "SPARE_PAGES", 10)
    bench.defer(*(bench.task(body=os.urandom(3000), keep_s=0.0) for _ in range(300)))
    bench.settle(*bench.claim(1000))
    bench.core.rest()
    full = bench.core.info().size_bytes
    bench.wall += PROOF_S + 1
    while bench.sweep(200):
        pass
    info = bench.core.info()
    assert info.size_bytes < full / 2
    assert info.free_bytes <= max(10 * 4096, info.size_bytes / 4)
    bench.sound()


def test_the_write_ahead_log_does_not_grow_without_end(bench: Bench) -> None:
    """Whatever is written, when nobody reads: a few megabytes."""
    for _ in range(60):
        bench.defer(*(bench.task(body=os.urandom(1000), keep_s=0.0) for _ in range(200)))
        bench.settle(*bench.claim(1000))
    assert bench.core.info().wal_bytes < 16 * 2**20


def test_a_long_log_is_cut_at_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It became long while somebody read for a long time."""
    monkeypatch.setattr("mesh.engines.sqlite.core._LONG_LOG_BYTES", 2**20)
    reader = sqlite3.connect(bench.core.path)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM tasks").fetchall()
    for _ in range(40):
        bench.defer(*(bench.task(body=os.urandom(1000)) for _ in range(200)))
    assert bench.core.info().wal_bytes > 8 * 2**20
    reader.close()
    bench.core.rest()
    assert bench.core.info().wal_bytes == 0
    bench.defer(bench.task())
    bench.sound()


# --- state --------------------------------------------------------------------------------------------------


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3), max_size=30),
    st.text(st.characters(codec="utf-8"), max_size=2),
)
@settings(max_examples=300)
def test_what_begins_with_a_prefix_is_below_its_end(keys: list[str], prefix: str) -> None:
    """In the order of UTF-8 bytes, whatever the characters."""
    end = _behind(prefix)
    for key in keys:
        inside = key.encode() >= prefix.encode() and (end is None or key.encode() < end.encode())
        assert inside == key.startswith(prefix)


def test_pages_of_keys_are_in_the_order_of_their_bytes(bench: Bench) -> None:
    """Also outside of the plane that most fonts know, and with nothing left out."""
    keys = ["a", "aa", "ab", "b", "\x00", "a\x00", "ß", "ßß", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]
    bench.commit(writes=[bench.write(key, value=b"\x01") for key in keys])
    bench.commit(writes=[bench.write("a", value=b"\x01", namespace="other")])
    for prefix in ["", *keys]:
        found: list[str] = []
        while page := bench.core.page(
            "carts", prefix=prefix, after=found[-1] if found else "", limit=2, wall=bench.wall
        ):
            found += [entry.key for entry in page]
        assert found == sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
    assert [entry and entry.key for entry in bench.core.get("carts", [*keys, "?"], bench.wall)] == [*keys, None]
    assert bench.core.namespaces(bench.wall) == [("carts", len(keys)), ("other", 1)]
    bench.sound()


def test_one_transaction_may_write_a_key_twice(bench: Bench) -> None:
    """Each write sees the one before it; the last stands, and keys are counted once."""
    outcome = bench.commit(
        writes=[
            bench.write("n", "add", by=2),
            bench.write("n", "add", by=3),
            bench.write("u", value=b"\x01", etag="", new_etag="e1"),
            bench.write("u", "delete", etag="e1"),
            bench.write("v", "delete"),
            bench.write("u", value=b"\x02", etag="", new_etag="e2"),
        ]
    )
    assert [entry and (entry.key, entry.value) for entry in outcome.entries] == [
        ("n", b"\x02"),
        ("n", b"\x05"),
        ("u", b""),
        None,
        None,
        ("u", b""),
    ]
    assert bench.core.namespaces(bench.wall) == [("carts", 2)]
    bench.commit(writes=[bench.write("n", "delete"), bench.write("u", "delete", etag="e2")])
    assert bench.core.namespaces(bench.wall) == []
    bench.sound()


def test_large_values_are_kept(bench: Bench) -> None:
    """A few megabytes, and another one over them."""
    for value in (os.urandom(5_000_000), os.urandom(3)):
        bench.commit(writes=[bench.write("u", value=value)])
        [entry] = bench.core.get("carts", ["u"], bench.wall)
        assert entry is not None
        assert entry.value == value


# --- locks --------------------------------------------------------------------------------------------------


def test_tokens_grow_for_ever(bench: Bench) -> None:
    """Over releases, ends, restarts, and for names that left no row behind."""
    tokens = []
    for number in range(6):
        with bench.core.turn(bench.wall) as turn:
            tokens.append(turn.acquire("nightly", f"owner-{number}", 5.0).token)
            if number % 2:
                assert turn.release_lock("nightly", f"owner-{number}")
                assert turn.freed == {"nightly"}
        bench.wall += 5.0
        bench.sweep()
        bench.reopen()
    assert tokens == sorted(set(tokens))


def test_a_lock_is_its_owner_s_until_its_time_is_over(bench: Bench) -> None:
    """Whoever else asks is told who has it and until when."""
    with bench.core.turn(bench.wall) as turn:
        grant = turn.acquire("nightly", "me", 5.0)
        assert turn.acquire("nightly", "me", 3.0) == grant
        with pytest.raises(LockTaken) as taken:
            turn.acquire("nightly", "you", 5.0)
        assert taken.value.details == {"name": "nightly", "owner": "me", "until_at": bench.wall + 5.0}
        assert not turn.release_lock("nightly", "you")
        with pytest.raises(LockLost):
            turn.renew_lock("nightly", "you", 5.0)
        assert turn.renew_lock("nightly", "me", 9.0).until_at == bench.wall + 9.0
        for wrong in [("", "me", 1.0), ("x", "", 1.0), ("x", "me", 0.0), ("x", "me", float("nan"))]:
            with pytest.raises(BadRequest):
                turn.acquire(*wrong)
    bench.reopen()
    held = bench.core.lock("nightly", bench.wall)
    assert held is not None
    assert (held.owner, held.token) == ("me", grant.token)
    assert bench.core.lock("nightly", bench.wall + 9.0) is None


# --- copies and checks --------------------------------------------------------------------------------------


def test_a_backup_is_a_store(bench: Bench, tmp_path: Path) -> None:
    """One file, for its user alone, with all that was confirmed when it was begun; nothing else is left beside it."""
    ids = bench.defer(*(bench.task(body=os.urandom(2000)) for _ in range(50)))
    bench.commit(writes=[bench.write("u1", value=b"\x01")], events=[bench.event()])
    made = bench.core.backup(tmp_path / "backups" / "mesh.db")
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["mesh.db"]
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert (made.size_bytes, made.schema) == (made.path.stat().st_size, bench.core.info().schema)
    bench.defer(bench.task())
    copy = Core(tmp_path / "backups")
    copy.open()
    assert copy.ready(QUEUE) == 50
    assert copy.job(ids[3], bench.wall) == bench.core.job(ids[3], bench.wall)
    assert copy.check() == []
    copy.close()


def test_a_backup_overwrites_nothing_unless_told(bench: Bench, tmp_path: Path) -> None:
    """And never the store itself, or a folder."""
    path = tmp_path / "copy.db"
    path.write_text("precious")
    with pytest.raises(SetupError, match=r"copy\.db"):
        bench.core.backup(path)
    assert path.read_text() == "precious"
    assert bench.core.backup(path, overwrite=True).path == path
    assert path.read_bytes().startswith(b"SQLite")
    for wrong in (bench.core.path, tmp_path):
        with pytest.raises(SetupError):
            bench.core.backup(wrong, overwrite=True)
    assert bench.core.check() == []


def test_a_backup_goes_on_while_the_store_writes(bench: Bench, tmp_path: Path) -> None:
    """It is of one instant: of each turn it has everything or nothing."""
    for _ in range(20):
        bench.defer(*(bench.task(body=os.urandom(3000)) for _ in range(50)))
    done = threading.Event()
    errors: list[BaseException] = []

    def copy() -> None:
        try:
            bench.core.backup(tmp_path / "copies" / "mesh.db")
        except BaseException as exc:
            errors.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=copy)
    thread.start()
    count = 0
    while not done.is_set() or not count:
        bench.commit(tasks=[bench.task("a.b")], writes=[bench.write("n", "add", by=1)])
        count += 1
    thread.join()
    assert errors == []
    copied = Core(tmp_path / "copies")
    copied.open()
    [entry] = copied.get("carts", ["n"], bench.wall)
    assert copied.ready("a.b") == (msgspec.msgpack.decode(entry.value) if entry is not None else 0)
    assert copied.ready(QUEUE) == 1000
    assert copied.check() == []
    copied.close()


DAMAGE = {
    "waiting jobs that nothing holds back: 1": "UPDATE tasks SET status = 0, sort = 0 WHERE seq = 1",
    "running jobs of no session: 1": "UPDATE tasks SET owner = 'x' WHERE seq = 1",
    "jobs in the wrong place: 1": "UPDATE tasks SET sort = 3 WHERE seq = 1",
    "jobs of no queue: 1": "UPDATE tasks SET queue = 99 WHERE seq = 1",
    "missing bodies and results: 1": "DELETE FROM blobs WHERE id = 4",
    "blobs of no job: 1": "INSERT INTO blobs VALUES (5000, x'00')",
    "failures of no job: 1": "INSERT INTO failures VALUES (5000, 0, '', '', '')",
    "answers for no job: 1": "INSERT INTO priors VALUES (5000, 0, x'00')",
    "outstanding deliveries of no event: 1": "DELETE FROM events",
    "namespaces that count wrongly: 1": "UPDATE namespaces SET entries = 7",
    "lines with two jobs on their way: 1": "UPDATE tasks SET status = 2, sort = 4 WHERE line IS NOT NULL",
}


@pytest.mark.parametrize("found", DAMAGE)
def test_a_check_finds_what_should_not_be(bench: Bench, found: str) -> None:
    """Between the tables, where SQLite sees nothing wrong."""
    with bench.core.turn(bench.wall) as turn:
        turn.declare(Queue("orders.audit", 10, patterns=("#",)))
    bench.defer(bench.task(), bench.task(body=b"x" * 5000), bench.task(order="o"), bench.task(order="o"))
    bench.commit(events=[bench.event()], writes=[bench.write("u", value=b"\x01")])
    assert bench.core.check() == []
    with sqlite3.connect(bench.core.path) as other:
        other.execute(DAMAGE[found])
    other.close()
    assert bench.core.check() == [found]


def test_a_file_in_numbers(bench: Bench) -> None:
    """What `mesh store info` shows."""
    bench.defer(*(bench.task() for _ in range(3)))
    bench.commit(events=[bench.event()])
    info = bench.core.info()
    assert (info.path, info.tasks, info.events, info.writable, info.reason) == (bench.core.path, 3, 1, True, "")
    assert info.size_bytes > 0
    assert info.wal_bytes > 0


def test_how_many_jobs_were_done_outlives_a_restart(bench: Bench) -> None:
    """Kept with each sweep, and when the store ends; what a failed turn counted is not."""

    def done() -> int:
        return next(queue.done for queue in bench.core.queues(bench.wall) if queue.name == QUEUE)

    def work(count: int) -> None:
        bench.defer(*(bench.task() for _ in range(count)))
        bench.settle(*bench.claim())

    work(3)
    bench.core.close()
    bench.core.open()
    assert done() == 3
    work(2)
    with contextlib.suppress(KeyError), bench.core.turn(bench.wall) as turn:
        turn.sweep()
        raise KeyError
    with bench.core.turn(bench.wall) as turn:
        turn.sweep()
    with contextlib.closing(sqlite3.connect(bench.core.path)) as other:
        assert other.execute("SELECT sum(done) FROM queues").fetchone() == (5,)
    assert done() == 5
