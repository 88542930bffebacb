"""How far a run is: a bar on a terminal, lines elsewhere.

Owns: turning what parts say ("rpc, round 2 of 3: …") into a share of the whole. Leaves to others: saying it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_ROUND = re.compile(r"(\w+), round (\d+) of (\d+)")


def share(text: str, parts: Sequence[str]) -> float | None:
    """How much of the run is behind what is said now, 0 to 1; None when it does not tell."""
    found = _ROUND.match(text)
    if found is None or found[1] not in parts:
        return None
    return (parts.index(found[1]) + (int(found[2]) - 1) / int(found[3])) / len(parts)


@contextmanager
def shown(console: Console, parts: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """What to call with each step of the run."""
    if not console.is_terminal:
        yield lambda text: console.print(text, style="dim")
        return
    columns = (
        BarColumn(20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=1.0)

        def say(text: str) -> None:
            done = share(text, parts)
            if done is None:
                progress.update(bar, description=text)
            else:
                progress.update(bar, description=text, completed=done)

        yield say
