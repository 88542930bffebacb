"""What keys cost: calls over tcp with CURVE beside ipc without: `python -m benchmarks.curve [--json]`.

Owns: the three meshes, and taking turns on them.
Leaves to others: the loop of calls (drive), the process that calls (host), processes as such (children).

Each mesh is a hub, one `mesh run` worker and one client, in processes of their own, with their defaults; only
mesh.toml differs. In a round all three are up and each load goes over them in turn, so that noise of the machine hits
all alike. The ratio of a round is between neighbours in time; what is told is the median of those.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.children import Child, ChildFailed, Children, free_ports, python
from benchmarks.peers import Place
from benchmarks.plan import turns

MESH: Final = "mesh.cli.main"
#: What is wanted of tcp with keys, as a share of ipc without, at 64 callers with a small body.
WANTED: Final = 0.8


@dataclass(frozen=True)
class Kind:
    """One way to connect; `settings` is its mesh.toml, where {hub} is the hub's free port."""

    key: str
    title: str
    settings: str = ""
    keys: bool = False


_TCP = '[mesh]\nbind = "tcp://127.0.0.1:*"\nhubs = ["tcp://127.0.0.1:{hub}"]\n'
KINDS: Final = (
    Kind("ipc", "ipc, no keys"),
    Kind("tcp", "tcp on 127.0.0.1, no keys", _TCP),
    Kind("curve", "tcp on 127.0.0.1, keys", _TCP + '[keys]\ndir = "keys"\n', keys=True),
)


@dataclass(frozen=True)
class Load:
    """So many callers with one kind of body."""

    body: str
    callers: int

    @property
    def key(self) -> str:
        return f"{self.body}-{self.callers}"


LOADS: Final = (Load("small", 1), Load("small", 64), Load("small", 1000), Load("big", 8))


async def _start(children: Children, kind: Kind) -> Child:
    directory = Path(tempfile.mkdtemp(prefix=f"{kind.key}-", dir=children.directory))
    (directory / "mesh.toml").write_text(kind.settings.replace("{hub}", str(free_ports(1)[0])))
    if kind.keys:
        await children.run(
            f"{kind.key}-keys", python(MESH, "keys", "make", "hub", "echo", "client"), timeout=20, cwd=directory
        )
    await children.start(f"{kind.key}-hub", python(MESH, "hub"), cwd=directory)
    await children.start(f"{kind.key}-worker", python(MESH, "run", "benchmarks.service:Echo"), cwd=directory)
    place = Place(directory, ())
    client = python("benchmarks.host", "ask", "mesh", place.as_argument())
    return await children.start_client(f"{kind.key}-client", client, cwd=directory)


async def _one_round(number: int, loads: Sequence[Load], seconds: float) -> list[dict[str, Any]]:
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        # /tmp, not TMPDIR: a socket's path may have 107 characters.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp")))
        children = await stack.enter_async_context(Children(directory))
        clients = {kind.key: await _start(children, kind) for kind in KINDS}
        for turn, load in enumerate(loads):
            row: dict[str, Any] = {"round": number + 1, "load": load.key}
            for kind in turns(KINDS, number * len(loads) + turn):
                question = {"body": load.body, "callers": load.callers, "seconds": seconds, "warm_s": seconds / 3}
                row[kind.key] = await clients[kind.key].ask(question, timeout=30 + 4 * seconds)
            rows.append(row)
    return rows


async def measure(rounds: int, seconds: float, loads: Sequence[Load] = LOADS) -> list[dict[str, Any]]:
    """One row for each round and load: what each kind did."""
    rows = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        rows += await _one_round(number, loads, seconds)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each load: medians over the rounds of calls per second, and of each round's ratio to ipc."""
    found = []
    for load in dict.fromkeys(row["load"] for row in rows):
        mine = [row for row in rows if row["load"] == load]
        told: dict[str, Any] = {"load": load, "rounds": len(mine)}
        for kind in KINDS:
            told[kind.key] = round(statistics.median(row[kind.key]["calls_per_s"] for row in mine))
            ratios = [row[kind.key]["calls_per_s"] / row["ipc"]["calls_per_s"] for row in mine]
            told[f"{kind.key}_of_ipc"] = round(statistics.median(ratios), 3)
            told[f"{kind.key}_cpu_us"] = round(statistics.median(row[kind.key]["cpu_us"] for row in mine), 1)
            told[f"{kind.key}_from_to"] = [round(min(ratios), 3), round(max(ratios), 3)]
        found.append(told)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curve", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians of so many rounds (5)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="how long one load lasts (1)")
    chosen = parser.parse_args(arguments)
    try:
        rows = asyncio.run(measure(chosen.rounds, chosen.seconds))
    except ChildFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    told = summary(rows)
    if chosen.json:
        print(json.dumps({"benchmark": "curve", "seconds": chosen.seconds, "rows": told}, indent=2))
    else:
        print(f"calls per second, medians of {chosen.rounds} rounds; × is a share of ipc without keys\n")
        print(
            "load       │     ipc │     tcp │      × │ tcp with keys │      × (from – to)     │ client's CPU per call"
        )
        for row in told:
            low, high = row["curve_from_to"]
            print(
                f"{row['load']:<10} │ {row['ipc']:>7,} │ {row['tcp']:>7,} │ {row['tcp_of_ipc']:5.2f}× │ "
                f"{row['curve']:>13,} │ {row['curve_of_ipc']:5.2f}× ({low:.2f} – {high:.2f}) │ "
                f"{row['ipc_cpu_us']:.1f} µs → {row['curve_cpu_us']:.1f} µs"
            )
    reached = next(row["curve_of_ipc"] for row in told if row["load"] == "small-64")
    print(f"\nsmall-64 with keys: {reached:.2f}× of ipc without; at least {WANTED}× is wanted", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
