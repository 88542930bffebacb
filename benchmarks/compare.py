"""`python -m benchmarks.compare OTHER`: this checkout against another one, alternating in one run.

Owns: the order of the runs, and the ratios. Leaves to others: what is measured (each checkout's own benchmarks).

Each checkout runs its own code in its own `.venv`, one after the other, again and again: what the machine does besides
meets both alike. The ratio of two figures is that of their medians; above 1 this checkout is better.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.children import ROOT


class Figure(NamedTuple):
    """One number of a run.

    Attributes:
        part: of `python -m benchmarks`.
        read: finds it in the part's section of results.json.
        more: a larger one is better.
    """

    part: str
    read: Callable[[dict[str, Any]], float]
    more: bool = True


def _load(name: str, field: str) -> Callable[[dict[str, Any]], float]:
    return lambda section: float(section["contestants"]["mesh"]["loads"][name][field])


FIGURES: Final[dict[str, Figure]] = {
    "round trips/s, 64 callers": Figure("rpc", _load("small-64", "calls_per_s")),
    "client CPU per call, 64 callers": Figure("rpc", _load("small-64", "cpu_us"), more=False),
    "round trips/s, 1,000 callers": Figure("rpc", _load("small-1000", "calls_per_s")),
    "client CPU per call, 1,000 callers": Figure("rpc", _load("small-1000", "cpu_us"), more=False),
    "HTTP requests/s, 64 connections": Figure(
        "http", lambda section: float(section["contestants"]["mesh"]["requests_per_s"])
    ),
    "published/s, 64 callers": Figure("publish", _load("one-64", "calls_per_s")),
    "published/s, 256 callers": Figure("publish", _load("one-256", "calls_per_s")),
    "tasks/s end to end": Figure("tasks", _load("many", "tasks_per_s")),
}


def _run(tree: Path, part: str, seconds: float) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [tree / ".venv/bin/python", "-m", "benchmarks", part, "--only", "mesh"]
        command += ["--rounds", "1", "--seconds", str(seconds), "--json", file.name]
        done = subprocess.run([str(word) for word in command], cwd=tree, capture_output=True, text=True, check=False)
        try:
            found: dict[str, Any] = json.loads(Path(file.name).read_text())["sections"][part]
        except (ValueError, KeyError):
            raise SystemExit(f"{tree}: {part} was not measured:\n{done.stdout}\n{done.stderr}") from None
        return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, help="another checkout, with a .venv of its own")
    parser.add_argument("--runs", type=int, default=7, help="of each checkout (7)")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long one load lasts (1.5)")
    parser.add_argument("--parts", default="rpc,http,publish,tasks", help="rpc,http,publish,tasks")
    arguments = parser.parse_args()
    wanted = {name: figure for name, figure in FIGURES.items() if figure.part in arguments.parts.split(",")}
    trees = {"this": ROOT, "other": arguments.other.resolve()}
    seen: dict[tuple[str, str], list[float]] = {}
    for run in range(arguments.runs):
        for part in dict.fromkeys(figure.part for figure in wanted.values()):
            # The first finds the machine as the other left it, so the order changes with each run.
            for which in ("this", "other") if run % 2 else ("other", "this"):
                section = _run(trees[which], part, arguments.seconds)
                for name, figure in wanted.items():
                    if figure.part == part:
                        seen.setdefault((name, which), []).append(figure.read(section))
        print(f"run {run + 1} of {arguments.runs}", file=sys.stderr)
    print(f"{'':38}{'this':>12}{'other':>12}{'ratio':>8}")
    for name, figure in wanted.items():
        mine, theirs = (statistics.median(seen[name, which]) for which in ("this", "other"))
        ratio = mine / theirs if figure.more else theirs / mine
        print(f"{name:38}{mine:>12,.1f}{theirs:>12,.1f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
