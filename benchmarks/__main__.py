"""`python -m benchmarks [PART…]`: measure, show, write.

Owns: the command line, and the order of things.
Leaves to others: everything that is measured or drawn.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, page, peers, plot, publishers, queues, results, table
from benchmarks.children import ROOT, ChildFailed
from benchmarks.grids import SECTIONS
from benchmarks.plan import Plan, short
from benchmarks.progress import shown

#: The file of each part, where it is not its name: `http` would hide the standard library's in a careless path.
FILES = {"http": "http_gateway"}
#: Who may be named with --only; mesh takes part in any case.
KEYS = tuple(dict.fromkeys(key for part in (peers, publishers, queues) for key in part.ROSTER.keys))
OUT = ROOT / "docs" / "benchmarks"
JSON = "results.json"
#: Above this share of the processors in use before a part begins, it is said.
BUSY = 0.75


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", default=["all"], help=f"{', '.join(SECTIONS)} or all (the default)"
    )
    parser.add_argument("--short", action="store_true", help="a few seconds: to see that it runs, not to quote")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians of so many rounds (3)")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="how long one load lasts (1.5)")
    parser.add_argument(
        "--only", default="", metavar="A,B", help=f"rpc, publish and tasks: mesh beside these: {','.join(KEYS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of this run there")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="join figures, plots and page there (docs/benchmarks; a run with --short or --only writes only if told)",
    )
    return parser


def _chosen(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[list[str], Plan]:
    parts = list(dict.fromkeys(arguments.parts))
    if unknown := [part for part in parts if part not in SECTIONS and part != "all"]:
        parser.error(f"{unknown[0]!r} is no part: choose from {', '.join(SECTIONS)}, all")
    only = tuple(filter(None, arguments.only.split(",")))
    if strangers := [key for key in only if key not in KEYS]:
        parser.error(f"--only: {strangers[0]!r} is no contestant: choose from {', '.join(KEYS)}")
    if arguments.rounds < 1 or not 0 < arguments.seconds <= 60:
        parser.error("--rounds is at least 1, --seconds between 0 and 60")
    plan = Plan(arguments.rounds, arguments.seconds, only=only)
    return list(SECTIONS) if "all" in parts else parts, short(plan) if arguments.short else plan


async def measure(parts: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Run the parts one after the other; one that fails is reported in its place and the rest goes on."""
    # Ends like Ctrl-C: everything that was started is ended.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    commit, sections = machine.commit(), {}
    for part in parts:
        run = importlib.import_module(f"benchmarks.{FILES.get(part, part)}").run
        # Figures from a machine that was busy already are worth little; this tells them apart later.
        load = os.getloadavg()[0]
        if load > BUSY * (os.cpu_count() or 1):
            plan.say(f"{part}: the machine is busy (load {load:.1f}), the figures will be worth little")
        taken_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        try:
            section = await run(plan)
        except (ChildFailed, OSError, TimeoutError) as exc:
            section = {"error": str(exc) or type(exc).__name__}
        sections[part] = {"taken_at": taken_at, "commit": commit, "load": load, "short": plan.short, **section}
    return sections


def publish(out: Path, found: results.Results) -> None:
    """Join the figures with those that are there, and draw and write everything anew."""
    whole = results.joined(results.load(out / JSON), found)
    results.save(out / JSON, whole)
    plots = plot.draw(whole["sections"], out)
    (out / "README.md").write_text(page.page(whole, plots))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show on stdout, write.

    Returns:
        0, or 1 if a part or a contestant failed, or 130 after Ctrl-C. What is not installed is named and no failure.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    parts, plan = _chosen(parser, arguments)
    screen, progress = Console(), Console(stderr=True)
    found = results.new(machine.machine(), machine.versions())
    try:
        with shown(progress, parts) as said:
            found["sections"] = asyncio.run(measure(parts, Plan(**{**vars(plan), "say": said})))
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.print("stopped; nothing was written")
        return 130
    table.show(screen, found["sections"])
    whole = not plan.short and not plan.only
    out = arguments.out or (OUT if whole else None)
    if arguments.json:
        results.save(arguments.json, found)
    if out:
        publish(out, found)
        progress.print(f"written: {out / 'README.md'}, {JSON} and plots")
    return 1 if _failures(found["sections"]) else 0


def _failures(sections: dict[str, Any]) -> bool:
    return any(
        "error" in one
        or one.get("failures")
        or any(each.get("failures") for each in one.get("contestants", {}).values())
        for one in sections.values()
    )


if __name__ == "__main__":
    sys.exit(main())
