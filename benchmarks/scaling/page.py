"""The tables, as Markdown that reads well in a terminal, too; and the document that they stand in.

Owns: laying out, and replacing each table in docs/scaling.md.
Leaves to others: what stands in them (parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.children import ROOT
from benchmarks.scaling.parts import SECTIONS, Case

DOCUMENT: Final[Path] = ROOT / "docs" / "scaling.md"


def tables(cases: Sequence[Case]) -> dict[str, str]:
    """Every section, a row for each part and a column for each size."""
    found = {}
    for title, rows in SECTIONS.items():
        lines = [(title, *(f"{case.model.hosts:,} hosts" for case in cases))]
        lines += [(name, *(write(case) for case in cases)) for name, write in rows]
        found[title] = _table(lines)
    return found


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    head, *rows = lines

    def row(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([row(head), f"|{'|'.join(rules)}|", *map(row, rows)])


def cells(text: str, title: str) -> list[list[str]]:
    """The table of that section in a text: a list of rows, the head first; [] when it is not there."""
    found: list[list[str]] = []
    for line in text.splitlines():
        row = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and (found or row[0] == title):
            found.append(row)
        elif found:
            break
    return found[:1] + found[2:]


def fill(text: str, made: dict[str, str]) -> str:
    """The text with each of its tables replaced by the one of the same title."""
    lines = text.splitlines()
    done: list[str] = []
    skipping = False
    for line in lines:
        title = line.strip().strip("|").split("|")[0].strip() if line.startswith("|") else ""
        if title in made and not skipping:
            done += made[title].splitlines()
            skipping = True
        elif not line.startswith("|"):
            skipping = False
        if not skipping:
            done.append(line)
    return "\n".join(done) + "\n"
