"""Shared output functions of commands: data goes to stdout, everything else to stderr.

Owns: the --json option, tables, JSON, notes and progress. rich is loaded only when something is drawn.
Leaves to others: errors (report).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add --json to a command; `wants_json` returns whether it was given, there or before the command."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(dict)["json"] = True

    option = click.option("--json", is_flag=True, expose_value=False, callback=remember, help="Print data as JSON.")
    return option(command)


def wants_json() -> bool:
    """Whether this command line has --json."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.obj and ctx.obj.get("json"))


_ENCODER = msgspec.json.Encoder(enc_hook=str, decimal_format="number")


def write_json(value: Any) -> None:
    """Write one line of JSON to stdout, flushed, so that a reader receives it at once."""
    line = _ENCODER.encode(value)
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


def write_value(value: Any) -> None:
    """Write an answer for people: text as it is, anything else as JSON, indented on a terminal."""
    if wants_json():
        write_json(value)
    elif isinstance(value, str):
        sys.stdout.write(value + "\n")
        sys.stdout.flush()
    elif sys.stdout.isatty():
        plain = msgspec.to_builtins(value, enc_hook=str)
        sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        write_json(value)


def note(text: str) -> None:
    """Write a line for people to stderr."""
    click.echo(text, err=True)


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Write a table to stdout; `right` names the columns with numbers. Without a terminal it is as wide as needed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    # Never wrap lines in a pipe: they are for grep and awk.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)


_STYLES = {
    "RUNNING": "green",
    "STARTING": "yellow",
    "STOPPING": "yellow",
    "BACKOFF": "red",
    "FATAL": "red",
    "EXITED": "red",
    "STOPPED": "dim",
}


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr with a text that the yielded function changes; nothing when stderr is no terminal."""
    if wants_json() or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(text) as status:
        yield lambda text: status.update(text)


def for_people(seconds: float) -> str:
    """A duration in at most two units: 45s, 12m 5s, 3h 20m, 4d 2h."""
    whole = int(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{small}"
    return f"{whole}s"
