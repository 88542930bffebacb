"""docs/benchmarks/README.md, made from the JSON.

Owns: the page's words and Markdown.
Leaves to others: the figures (results), the tables (grids), the plots (plot).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.grids import SECTIONS, Grid, grids, verdict_grid
from benchmarks.results import Results

HEAD = """\
<!-- Written by `python -m benchmarks`. Change benchmarks/page.py, not this file. -->
# Benchmarks

```
make bench                            # installs the peers, measures everything, writes this page
.venv/bin/python -m benchmarks rpc    # one part; --short for a glance, --help for the rest
```
"""

METHOD = """\
## How it was measured

- One client process and one answering process each, on one machine, in one run. Everybody's processes are up during a
  round; each load goes over all contestants in turn, starting with another one each time; the median of the rounds
  counts. "apart" is (best − worst) / median: what differs by less is no difference.
- A closed loop of so many callers: each sends its next call when the last one is answered. Every call is timed, for all
  contestants alike, with one reading of the clock.
- The method returns its one argument: `{"name": "x", "i": 7}`, or 1 MiB of bytes. Each contestant first proves that
  both bodies come back as they went.
- uvloop where the contestant allows it and is not slower on it. mesh is called through its public face only, with the
  defaults of its configuration.
- "CPU/call" and "CPU each" are the processor time of the client process, all its threads, divided by the calls.
- The raw loop is the bare limit: the same sockets and coalescing without deadlines, errors, limits, types or failover.
- "bad" counts answers other than 2xx and 3xx, and socket errors.
- A promise about one caller compares calls per second, the inverse of the mean round trip.

### The durable half

- Data lies on the machine's disk, in /var/tmp, never in memory. The disk is synced before each load, so
  that nobody pays for what an earlier contestant left unwritten.
- Publishing: a message is `{"name": "x", "i": 7}`; nobody consumes. A caller publishes the next one when the last one
  is confirmed. After each load a contestant must hold at least as many messages as it has confirmed, where it can tell.
- What a confirmation is worth differs. mesh, RabbitMQ and Redis with `appendfsync always` confirm what is on the disk.
  nats-server by default confirms what the kernel has and syncs every two minutes: a crash of its process loses nothing,
  a power cut what was confirmed since. It stands in the table both ways, and the promise is held against the default,
  its faster one. RabbitMQ is held against the faster of its two kinds of queue.
- Batches: mesh commits a batch at once, nats-py publishes without waiting in between and then waits for all, redis-py
  sends a pipeline. AMQP has none. p50 and p99 are those of a whole batch.
- Tasks: one publisher process, one worker, and as many tasks as take about 4.5 s, from the first publish to the end of
  the last run. The publisher goes as fast as the contestant lets it, with at most 64 under way, 256 for mesh, which
  commits together what waits together (taskiq gains nothing by more); Celery has no asyncio and publishes one after the
  other. When the clock stops, the last few tasks may still have to be acknowledged.
- Every contestant's task counts itself in the same way: a lock, the clock, and sixteen bytes of memory that publisher
  and worker share, about a microsecond. One more or one fewer than published is a failure.
- Celery and taskiq have a Redis with `appendfsync everysec`, as is usual: a crash of the machine may cost a second of
  tasks, where mesh waits for the disk. Celery acknowledges late; its pool of threads, and other prefetches, measured
  between the two shown or below. Of taskiq's brokers only the stream acknowledges: a task that a worker took from the
  list dies with it. The promises are held against the faster of each.
"""


def _cell(text: str, bold: bool) -> str:
    text = text.replace("|", "\\|")
    return f"**{text}**" if bold and text else text


def markdown(grid: Grid, level: str = "##") -> str:
    """One grid as Markdown, figures to the right."""
    marks = {"reached": "✓ reached", "not reached": "✗ not reached"}
    lines = [
        f"{level} {grid.title}",
        "",
        "| " + " | ".join(grid.columns) + " |",
        "|" + "|".join("---" if number == 0 else "--:" for number in range(len(grid.columns))) + "|",
    ]
    for at, row in enumerate(grid.rows):
        lines.append("| " + " | ".join(_cell(marks.get(cell, cell), at in grid.bold) for cell in row) + " |")
    if grid.note:
        lines += ["", *(f"{line}  " for line in grid.note.splitlines())]
        lines[-1] = lines[-1].rstrip()
    return "\n".join(lines) + "\n"


def _where(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    short = [name for name, section in results["sections"].items() if section.get("short")]
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['system']}.  ",
        f"{what}.",
    ]
    if short:
        lines += ["", f"**A short run ({', '.join(short)}): it shows that things run, not how fast.**"]
    return "\n".join(lines) + "\n"


def _when(results: Results) -> str:
    lines = ["| part | measured at | commit | load before | rounds |", "|---|---|---|--:|--:|"]
    for name, section in results["sections"].items():
        load = f"{section['load']:.1f}" if "load" in section else ""
        row = (
            name,
            section.get("taken_at", ""),
            section.get("commit", ""),
            load,
            str(section.get("rounds", "")),
        )
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


#: The parts in which several contestants are compared, and what is said above them.
CONTESTS = {"rpc": "Round trips", "publish": "Durable publishing", "tasks": "Tasks"}


def _contestants(sections: Mapping[str, Any]) -> list[str]:
    found = {name: sections.get(name, {}).get("contestants", {}) for name in CONTESTS}
    parts = ["## The contestants\n"] if any(found.values()) else []
    for name, contestants in found.items():
        if contestants:
            parts.append(f"### {CONTESTS[name]}\n")
            parts.append("".join(f"- {one['title']}: {one['how']}\n" for one in contestants.values()))
    return parts


def page(results: Results, plots: list[str]) -> str:
    """The whole page; `plots` are the names of SVG files beside it."""
    sections = results["sections"]
    parts = [HEAD, _where(results), markdown(verdict_grid(sections))]
    parts += [f"![{name.removesuffix('.svg')}]({name})\n" for name in plots]
    for name in SECTIONS:
        if name in sections:
            parts += [markdown(grid) for grid in grids(name, sections[name])]
    parts += _contestants(sections)
    parts += [METHOD, "## When\n", _when(results)]
    return "\n".join(parts)
