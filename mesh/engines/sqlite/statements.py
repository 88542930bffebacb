"""SQL by name, kept in .sql files beside the code.

Owns: reading those files. A statement begins with a line `-- name: claim` and ends where the next one begins;
`{columns}` in it is replaced by the statement of that name in the same file.
Leaves to others: running them.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from typing import Final

_FOLDER: Final = files(__package__) / "sql"
_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^ *--.*\n?", re.MULTILINE)
_USE: Final = re.compile(r"\{(\w+)\}")


def named(file: str) -> dict[str, str]:
    """The statements of one file by name. Callers look names up at import: a missing name is a KeyError there."""
    _, *parts = _NAME.split((_FOLDER / f"{file}.sql").read_text("utf-8"))
    pairs = zip(parts[::2], parts[1::2], strict=True)
    plain = {name: _COMMENT.sub("", text).strip().removesuffix(";") for name, text in pairs}
    return {name: _USE.sub(lambda use: plain[use[1]], text) for name, text in plain.items()}


def migrations() -> list[tuple[int, str]]:
    """(version, SQL of the migration), in order."""
    found = [(int(each.name[:4]), each) for each in (_FOLDER / "migrations").iterdir() if each.name.endswith(".sql")]
    return [(version, each.read_text("utf-8")) for version, each in sorted(found, key=lambda pair: pair[0])]


def split(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit the running transaction."""
    statement = ""
    for line in _COMMENT.sub("", script).splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
