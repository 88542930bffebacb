"""docs/benchmarks/README.md, made from the JSON.

Owns: the page's words and Markdown.
Leaves to others: the figures (results), the tables (grids), the plots (plot).
"""

from __future__ import annotations

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
- "CPU/call" is the processor time of the client process, all its threads, divided by the calls.
- The raw loop is the bare limit: the same sockets and coalescing without deadlines, errors, limits, types or failover.
- "bad" counts answers other than 2xx and 3xx, and socket errors.
- A promise about one caller compares calls per second, the inverse of the mean round trip.
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


def page(results: Results, plots: list[str]) -> str:
    """The whole page; `plots` are the names of SVG files beside it."""
    sections = results["sections"]
    parts = [HEAD, _where(results), markdown(verdict_grid(sections))]
    parts += [f"![{name.removesuffix('.svg')}]({name})\n" for name in plots]
    for name in SECTIONS:
        if name in sections:
            parts += [markdown(grid) for grid in grids(name, sections[name])]
    contestants = sections.get("rpc", {}).get("contestants", {})
    if contestants:
        parts.append("## The contestants\n")
        parts.append("".join(f"- {one['title']}: {one['how']}\n" for one in contestants.values()))
    parts += [METHOD, "## When\n", _when(results)]
    return "\n".join(parts)
