"""What a section says, as rows of words: the same in the terminal and on the page.

Owns: which figures are shown, in what order and unit.
Leaves to others: drawing them (table for the terminal, page for Markdown, plot).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.verdicts import judge

LOAD_TITLES = {
    "small-1": "1 caller, small body",
    "small-64": "64 callers, small body",
    "small-1000": "1,000 callers, small body",
    "big-1": "1 caller, 1 MiB body",
    "big-8": "8 callers, 1 MiB body",
}
PUBLISH_TITLES = {
    "one-1": "1 caller",
    "one-64": "64 callers",
    "one-256": "256 callers",
    "batch-1": "1 caller, batches of {batch}",
}


@dataclass(frozen=True)
class Grid:
    """A titled table; the first column holds names, the others figures. `bold` rows are what it is about."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()
    note: str = ""


def per_second(value: float) -> str:
    """Three digits are known, the rest is noise: 123,456 becomes 123,000."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def micros(value: float) -> str:
    """A duration given in microseconds, in the unit in which it is short."""
    if value < 1_000:
        return f"{value:.3g} µs" if value < 100 else f"{value:.0f} µs"
    return f"{value / 1_000:.3g} ms"


def times(ratio: float) -> str:
    """A ratio."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×"


def _gist(failure: str) -> str:
    """What was attempted, and the last line of the traceback."""
    lines = failure.splitlines()
    return " … ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip())))


def _absent(section: Mapping[str, Any]) -> str:
    """Who took no part, and who failed."""
    missing = section["missing"].values()
    lacking = [f"{one['title']} is missing ({', '.join(one['lacks'])}): {one['install']}" for one in missing]
    failed = [
        f"{one['title']} failed {len(one['failures'])}×, first: {_gist(one['failures'][0])}"
        for one in section["contestants"].values()
        if one.get("failures")
    ]
    return "\n".join(lacking + failed)


def ranked(section: Mapping[str, Any], load: str, by: str) -> list[tuple[str, str, Mapping[str, float]]]:
    """(key, title, figures) of those who have figures of a load; the greatest first."""
    contestants = section["contestants"].items()
    measured = [(key, one["title"], one["loads"][load]) for key, one in contestants if load in one["loads"]]
    return sorted(measured, key=lambda entry: -entry[2][by])


@dataclass(frozen=True)
class _Column:
    """A figure of a load: its head, its name among the figures, how it is written."""

    head: str
    name: str
    written: Callable[[float], str]


_APART = _Column("apart", "spread", lambda value: f"{value * 100:.0f} %")
_WAIT = (_Column("p50", "p50_us", micros), _Column("p99", "p99_us", micros))


def _compared(section: Mapping[str, Any], load: str, title: str, columns: Sequence[_Column]) -> Grid:
    """The contestants under one load, by the first column; beside that figure stands mesh's ratio to each.

    A time is ranked and compared upside down: what is faster comes first, and mesh's ratio says how much faster it is.
    """
    by = columns[0].name
    upside_down = by.endswith("_us")
    measured = ranked(section, load, by)
    if upside_down:
        measured.reverse()
    mesh = next((figures[by] for key, _, figures in measured if key == "mesh"), None)

    def ratio(key: str, theirs: float) -> str:
        if key == "mesh" or mesh is None:
            return ""
        return times(theirs / mesh if upside_down else mesh / theirs)

    rows = [
        [
            name,
            columns[0].written(figures[by]),
            ratio(key, figures[by]),
            *(column.written(figures[column.name]) for column in columns[1:]),
        ]
        for key, name, figures in measured
    ]
    heads = ("", columns[0].head, "mesh is", *(column.head for column in columns[1:]))
    return Grid(title, heads, rows, frozenset(at for at, (key, _, _) in enumerate(measured) if key == "mesh"))


def _noted(grids: list[Grid], note: str) -> list[Grid]:
    """The note under the first of them."""
    return [replace(grid, note=note) if number == 0 else grid for number, grid in enumerate(grids)]


def _rpc(section: Mapping[str, Any]) -> list[Grid]:
    columns = (
        _Column("calls/s", "calls_per_s", per_second),
        *_WAIT,
        _Column("CPU/call", "cpu_us", micros),
        _APART,
    )
    found = [
        _compared(section, load, f"Round trips: {LOAD_TITLES.get(load, load)}", columns) for load in section["loads"]
    ]
    return _noted(found, _absent(section))


def _disk(section: Mapping[str, Any]) -> str:
    """On what the figures stand, and who is not among them."""
    disk = section["disk"]
    line = f"Data on {disk['file_system']}; a write of 4 KiB and its fdatasync take {micros(disk['sync_us'])} here."
    return "\n".join(filter(None, (line, _absent(section))))


def _publish(section: Mapping[str, Any]) -> list[Grid]:
    columns = (
        _Column("messages/s", "calls_per_s", per_second),
        *_WAIT,
        _Column("CPU each", "cpu_us", micros),
        _APART,
    )
    found = []
    for load in section["loads"]:
        title = PUBLISH_TITLES.get(load, load).format(batch=section["batch"])
        found.append(_compared(section, load, f"Durable publishing: {title}", columns))
    return _noted(found, _disk(section))


def _tasks(section: Mapping[str, Any]) -> list[Grid]:
    many = (
        _Column("tasks/s", "tasks_per_s", per_second),
        _Column("published/s", "published_per_s", per_second),
        _Column("CPU each", "cpu_us", micros),
        _APART,
    )
    one = (_WAIT[0], _WAIT[1], _APART)
    found = [
        _compared(section, "many", "Tasks: published, run and acknowledged by one worker", many),
        _compared(section, "one", "One task at a time: from publish to end of run", one),
    ]
    return _noted(found, _disk(section))


def _web(title: str, section: Mapping[str, Any], mesh: str, note: str) -> Grid:
    rows = [
        [
            one["title"],
            per_second(one["requests_per_s"]),
            micros(one["p50_us"]),
            micros(one["p99_us"]),
            f"{one['bad']:.0f}",
            f"{one['spread'] * 100:.0f} %",
        ]
        for one in section["contestants"].values()
    ]
    bold = frozenset(at for at, key in enumerate(section["contestants"]) if key == mesh)
    return Grid(title, ("", "requests/s", "p50", "p99", "bad", "apart"), rows, bold, note)


def _http(section: Mapping[str, Any]) -> list[Grid]:
    note = f"mesh gives {times(section['ratio'])} the requests per second of the plain application."
    return [_web("HTTP: `wrk -t1 -c64`, one GET route, a small JSON answer", section, "mesh", note)]


def _idle(section: Mapping[str, Any]) -> list[Grid]:
    kept = f"{section['kept_open']:.0f} of {section['idle']:.0f} idle connections were open to the end"
    note = (
        f"Beside the idle ones the active ones get {times(section['ratio'])}; {kept}; "
        f"each cost the gateway {section['kb_each']:.3g} kB."
    )
    return [_web("HTTP with idle connections: 64 active ones", section, "", note)]


def _events(section: Mapping[str, Any]) -> list[Grid]:
    rows = [
        ["delivered per second", per_second(section["events_per_s"])],
        ["lost", f"{section['lost']:.0f} of {section['emitted']:,.0f}"],
        ["one at a time, emit to handler, p50", micros(section["p50_us"])],
        ["one at a time, emit to handler, p99", micros(section["p99_us"])],
    ]
    return [Grid('Events to every instance (`to="every"`): one publisher, one subscriber', ("", ""), rows)]


def _by_instances(title: str, what: str) -> Callable[[Mapping[str, Any]], list[Grid]]:
    def grids(section: Mapping[str, Any]) -> list[Grid]:
        rows = []
        for count, loads in section["instances"].items():
            for load, figures in loads.items():
                rows.append(
                    [
                        f"{count}, {load} caller{'' if load == '1' else 's'}",
                        per_second(figures["calls_per_s"]),
                        micros(figures["p50_us"]),
                        micros(figures["p99_us"]),
                        micros(figures["cpu_us"]),
                    ]
                )
        return [Grid(title, ("instances", what, "p50", "p99", "CPU each"), rows)]

    return grids


def _startup(section: Mapping[str, Any]) -> list[Grid]:
    names = {"worker": "worker, until a client finds it", "gateway": "gateway, until it accepts", "up": "`mesh up`"}
    rows = [
        [names[key], f"{section[key]['seconds']:.2f} s", f"{section[key]['worst_s']:.2f} s"]
        for key in names
        if key in section
    ]
    return [Grid("Start-up", ("", "median", "worst"), rows, note="\n".join(section.get("failures", [])))]


def _memory(section: Mapping[str, Any]) -> list[Grid]:
    rows = [
        [one["title"], f"{one['pss_mb']:.1f} MB", f"{one['rss_mb']:.1f} MB"] for one in section["processes"].values()
    ]
    note = "\n".join(
        ["Pss counts a page shared by n processes as 1/n of a page in each.", *section.get("failures", [])]
    )
    return [Grid("Memory of idle processes", ("", "Pss", "Rss"), rows, note=note)]


#: In the order in which they are shown and run.
SECTIONS: dict[str, Callable[[Mapping[str, Any]], list[Grid]]] = {
    "rpc": _rpc,
    "http": _http,
    "events": _events,
    "fanout": _by_instances("Fan-out: `scatter` to every instance", "scatters/s"),
    "startup": _startup,
    "memory": _memory,
    "instances": _by_instances("Cost of a call against registered instances", "calls/s"),
    "idle": _idle,
    "publish": _publish,
    "tasks": _tasks,
}


def verdict_grid(sections: Mapping[str, Any]) -> Grid:
    """The promises and whether they are kept."""
    rows = [[verdict.promise.what, verdict.needed, verdict.got, verdict.word] for verdict in judge(sections)]
    return Grid("What is promised", ("", "needed", "measured", ""), rows)


def grids(name: str, section: Mapping[str, Any]) -> list[Grid]:
    """The tables of one section; one line with the reason if it failed."""
    if "error" in section:
        return [Grid(name, ("",), [[str(section["error"]).splitlines()[0]]])]
    return SECTIONS[name](section)
