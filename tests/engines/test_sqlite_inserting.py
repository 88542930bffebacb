"""Inserting many rows with few statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mesh.engines.sqlite.inserting import SIZES, Insert

PLAIN = "INSERT INTO t (a, b, c) VALUES (?, ?, ?)"
#: A value that is used twice, one that is derived, and a constant.
NUMBERED = "INSERT INTO t (a, b, c) VALUES (?1, ?2 || '-' || ?2, 9 - ?1)"


@pytest.fixture
def file() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b, c)")
    yield connection
    connection.close()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 15, 16, 63, 64, 65, 200])
def test_all_rows_are_inserted_as_one_by_one(file: sqlite3.Connection, count: int) -> None:
    rows = [(number, f"b{number}", number % 7 or None) for number in range(count)]
    Insert(PLAIN).write(file.execute, rows)
    assert file.execute("SELECT a, b, c FROM t ORDER BY a").fetchall() == rows


@pytest.mark.parametrize("count", [1, 70])
def test_numbered_parameters_belong_to_their_row(file: sqlite3.Connection, count: int) -> None:
    Insert(NUMBERED).write(file.execute, [(number, f"b{number}") for number in range(count)])
    assert file.execute("SELECT a, b, c FROM t ORDER BY a").fetchall() == [
        (number, f"b{number}-b{number}", 9 - number) for number in range(count)
    ]


def test_few_statements_are_run() -> None:
    """At most three of each size, the largest aside."""
    ran: list[str] = []

    def execute(statement: str, values: Sequence[Any]) -> None:
        ran.append(statement)

    Insert(PLAIN).write(execute, [(1, 2, 3)] * (2 * SIZES[0] + SIZES[0] - 1))
    assert len(ran) == 2 + 3 * (len(SIZES) - 1)


def test_a_row_that_cannot_be_inserted_is_an_error(file: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        Insert(PLAIN).write(file.execute, [(1, 2, 3)] * 4)
