"""The tables in the terminal.

Owns: rich.
Leaves to others: what is in them (grids).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.grids import SECTIONS, Grid, grids, verdict_grid

WORDS = {"reached": "green", "not reached": "bold red", "not measured": "dim"}


def _plain(text: str) -> str:
    return text.replace("`", "")


def rich_table(grid: Grid) -> Table:
    """One grid; figures to the right, verdicts in their colour."""
    table = Table(
        title=_plain(grid.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for number, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=len(grid.columns) > 4 or number > 0)
    for at, row in enumerate(grid.rows):
        style = "bold cyan" if at in grid.bold else ""
        table.add_row(*(Text(_plain(cell), style=WORDS.get(cell, style)) for cell in row))
    return table


def show(console: Console, sections: Mapping[str, Any]) -> None:
    """All sections that were measured, then the verdicts that they allow."""
    shown = [grid for name in SECTIONS if name in sections for grid in grids(name, sections[name])]
    for grid in [*shown, verdict_grid(sections)]:
        console.print(rich_table(grid))
        if grid.note:
            console.print(Text(_plain(grid.note), style="dim"))
        console.print()
