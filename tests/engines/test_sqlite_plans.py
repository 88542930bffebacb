"""No statement walks through rows that do not concern it, and none sorts: a million waiting rows cost nothing."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator

import pytest
from sqlite_bench import QUEUE, Bench

from mesh.engines.sqlite import statements

#: Files of statements that run beside work. `check` reads everything, on purpose and in a thread of its own.
FILES = ("book", "tasks", "jobs", "log", "state", "schedules", "locks", "units", "sweep")

#: What may walk through a whole table or index, and why.
WALKS = {
    "book.marks": "three rows",
    "book.queues": "at the start; as many as there are queues",
    "book.count": "at the start; an index without the rows",
    "locks.anew": "at the start, after the machine has booted; as many as there are locks",
    "book.suspects": "at the start; as many as there are queues",
    "book.running": "at the start; as many as there are queues",
    "state.namespaces": "at the start; as many as there are namespaces",
    "schedules.all": "for people; as many as there are schedules",
    "locks.all": "for people; as many as are held",
    "log.scan": "a window of the log",
    "log.old": "a window of the log",
    "units.sweep": "a window of the oldest",
    "state.expired": "groups the few keys that are over and not swept yet",
    "jobs.info": "only the head of by_id and by_seq",
}

NAMED = [
    (f"{file}.{name}", statement)
    for file in FILES
    for name, statement in statements.named(file).items()
    if re.match(r"(SELECT|INSERT|UPDATE|DELETE)\b", statement)
]


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for _, script in statements.migrations():
            connection.executescript(script)
        yield connection


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    """What SQLite would do, one step a line."""
    numbered = [int(number) for number in re.findall(r"\?(\d+)", statement)]
    count = max([statement.count("?"), *numbered]) if not numbered else max(numbered)
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * count)]


@pytest.mark.parametrize(("name", "statement"), NAMED, ids=[name for name, _ in NAMED])
def test_a_statement_walks_through_nothing_and_sorts_nothing(
    connection: sqlite3.Connection, name: str, statement: str
) -> None:
    """Its plan has no SCAN of a table and no TEMP B-TREE."""
    for step in plan(connection, statement):
        harmless = "json_each" in step or "VIRTUAL TABLE" in step or "CONSTANT ROW" in step
        assert harmless or name in WALKS or not step.startswith("SCAN"), f"{name}: {step}"
        assert name in WALKS or "TEMP B-TREE" not in step, f"{name}: {step}"


def test_every_exception_is_still_one() -> None:
    """The list above names statements that exist."""
    assert set(WALKS) <= {name for name, _ in NAMED}


def test_a_claim_walks_the_ready_rows_alone(connection: sqlite3.Connection) -> None:
    """By the index that stands in the order in which they go out, stopped by its limit."""
    [walk] = [step for step in plan(connection, statements.named("tasks")["claim"]) if "tasks_by_place" in step]
    assert walk == "SEARCH tasks USING COVERING INDEX tasks_by_place (queue=? AND status=? AND sort>? AND sort<?)"


def test_what_waits_costs_a_claim_nothing(bench: Bench) -> None:
    """Thirty thousand rows of every other kind, in the same queue and beside it, change little of what one takes."""

    def claims_s() -> float:
        ids = bench.defer(*(bench.task() for _ in range(200)))
        began = time.perf_counter()
        for _ in ids:
            bench.settle(bench.one())
        return time.perf_counter() - began

    alone_s = min(claims_s() for _ in range(3))
    later = bench.wall + 1e6
    for _ in range(10):
        bench.defer(*(bench.task(due_at=later) for _ in range(1000)))
        bench.defer(*(bench.task(order="one") for _ in range(1000)))
        bench.defer(*(bench.task("other.queue") for _ in range(1000)))
    # The head of the line above is ready, too: out of the way with it.
    bench.claim(1)
    assert bench.core.ready(QUEUE) == 0
    among_s = min(claims_s() for _ in range(3))
    # A walk over ten thousand rows takes a millisecond, which is ten times what a claim takes. Six allows for noise.
    assert among_s < 6 * alone_s, f"{alone_s=} {among_s=}"
