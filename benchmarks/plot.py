"""The plots, as SVG.

Owns: matplotlib, and what the plots look like.
Leaves to others: the figures (results).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grids import micros, per_second, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MESH, RAW, OTHERS, INK, FAINT = "#0b7285", "#868e96", "#b8c4ce", "#212529", "#dee2e6"
RPC = {"small-1": "1 caller", "small-64": "64 callers", "small-1000": "1,000 callers"}
PUBLISH = {"one-1": "1 caller", "one-64": "64 callers", "one-256": "256 callers"}

#: Contestants with their figures, the one for the lowest bar first.
Ranked = Sequence[tuple[str, str, Mapping[str, float]]]

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # The same figures give the same file.
    "svg.hashsalt": "mesh",
}


def _colour(key: str) -> str:
    return MESH if key == "mesh" else RAW if key == "raw" else OTHERS


def _bars(axes: Axes, order: Ranked, by: str, what: str) -> None:
    values = [figures[by] for _, _, figures in order]
    axes.barh([title for _, title, _ in order], values, color=[_colour(key) for key, _, _ in order], height=0.72)
    for at, value in enumerate(values):
        weight = "bold" if order[at][0] == "mesh" else "normal"
        axes.annotate(
            per_second(value), (value, at), (4, 0), textcoords="offset points", va="center", fontsize=9, weight=weight
        )
    axes.set_xlim(0, max(values) * 1.24)
    axes.set_xlabel(f"{what} per second")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    axes.locator_params(axis="x", nbins=5)


def _ranges(axes: Axes, order: Ranked, what: str) -> None:
    for at, (key, _, figures) in enumerate(order):
        colour = _colour(key)
        axes.plot([figures["p50_us"], figures["p99_us"]], [at, at], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(figures["p50_us"], at, "o", color=colour, markersize=8)
        axes.plot(figures["p99_us"], at, "|", color=colour, markersize=13, markeredgewidth=3)
    axes.set_yticks(range(len(order)), [title for _, title, _ in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    _log_time(axes, "x")
    axes.set_xlabel(f"{what}, p50 (dot) to p99 (bar), logarithmic")


def _log_time(axes: Axes, which: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    # Over a decade or two, powers of ten alone leave an axis almost without numbers.
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 30 else (1, 3) if high / low < 300 else (1,)))
    axis.set_major_formatter(lambda value, _: micros(value))
    axis.set_minor_locator(NullLocator())


def _finish(figure: Figure) -> None:
    for axes in figure.axes:
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for label in axes.get_yticklabels():
            if label.get_text() == "mesh":
                label.set_fontweight("bold")
                label.set_color(MESH)


def _lowest_first(section: Mapping[str, Any], load: str, by: str) -> Ranked:
    """Slowest first: a horizontal bar chart grows upwards."""
    return ranked(section, load, by)[::-1]


def _speed_and_wait(
    section: Mapping[str, Any], columns: Mapping[str, str], title: str, what: str, wait: str
) -> Figure | None:
    """A column for each load: bars of throughput, and ranges of latency below."""
    from matplotlib.figure import Figure

    loads = {load: order for load in columns if (order := _lowest_first(section, load, "calls_per_s"))}
    if not loads:
        return None
    rows = max(len(order) for order in loads.values())
    figure = Figure(figsize=(4.6 * len(loads), 1.6 + 0.72 * rows), layout="constrained")
    grid = figure.subplots(2, len(loads), squeeze=False)
    for column, (load, order) in enumerate(loads.items()):
        _bars(grid[0][column], order, "calls_per_s", what)
        _ranges(grid[1][column], order, wait)
        grid[0][column].set_title(columns[load])
    figure.suptitle(title, weight="bold", fontsize=13)
    _finish(figure)
    return figure


def _rpc(section: Mapping[str, Any]) -> Figure | None:
    title = "Round trips with a small body: throughput and latency"
    return _speed_and_wait(section, RPC, title, "calls", "round trip")


def _publish(section: Mapping[str, Any]) -> Figure | None:
    title = "Durable publishing: throughput, and the wait for a confirmation"
    return _speed_and_wait(section, PUBLISH, title, "messages", "wait")


def _tasks(section: Mapping[str, Any]) -> Figure | None:
    from matplotlib.figure import Figure

    many, one = _lowest_first(section, "many", "tasks_per_s"), ranked(section, "one", "p50_us")
    if not many or not one:
        return None
    figure = Figure(figsize=(11, 1.2 + 0.36 * len(many)), layout="constrained")
    speed, wait = figure.subplots(1, 2)
    _bars(speed, many, "tasks_per_s", "tasks")
    _ranges(wait, one, "one at a time")
    figure.suptitle("Tasks: published, run and acknowledged by one worker", weight="bold", fontsize=13)
    _finish(figure)
    return figure


def _by_instances(title: str, what: str, section: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    counts = [int(count) for count in section["instances"]]
    loads = list(next(iter(section["instances"].values())))
    for load, colour, mark in zip(loads, (MESH, "#e8590c"), "os", strict=False):
        series = [section["instances"][str(count)][load] for count in counts]
        name = "1 caller" if load == "1" else f"{load} callers"
        speed.plot(counts, [one["calls_per_s"] for one in series], marker=mark, color=colour, label=name)
        latency.plot(counts, [one["p50_us"] for one in series], marker=mark, color=colour, label=name)
    speed.set_ylim(bottom=0)
    speed.set_ylabel(f"{what} per second")
    speed.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _log_time(latency, "y")
    latency.set_ylabel("p50, logarithmic")
    for axes in (speed, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("instances")
        axes.legend(frameon=False)
    figure.suptitle(title, weight="bold", fontsize=13)
    _finish(figure)
    for axes in (speed, latency):
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "rpc": _rpc,
    "fanout": lambda section: _by_instances("Fan-out: scatter to every instance", "scatters", section),
    "instances": lambda section: _by_instances("A call against registered instances", "calls", section),
    "publish": _publish,
    "tasks": _tasks,
}


def draw(sections: Mapping[str, Any], directory: Path) -> list[str]:
    """Write a plot for each section that has one.

    Returns:
        the names of the files, in the order of the page; none if matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(STYLE):
        for name, make in FIGURES.items():
            if name not in sections or "error" in sections[name]:
                continue
            figure = make(sections[name])
            if figure is not None:
                # No date in the file: the page says when.
                figure.savefig(directory / f"{name}.svg", metadata={"Date": None}, facecolor="white")
                written.append(f"{name}.svg")
    return written
