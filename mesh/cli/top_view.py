"""The view of `mesh top`, and the effect of its keys on the view.

Owns: the state of the screen, the meaning of each key, and drawing a frame. No terminal, no loop, no clock.
Leaves to others: the figures (observe.board), reading keys and executing commands (top).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from mesh.cli.output import for_people
from mesh.observe.board import Frame, Row, grouped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


class Column(NamedTuple):
    """One column: its head, the text of a cell, and its sort key; `falling`: the greatest first."""

    head: str
    cell: Callable[[Row], str]
    key: Callable[[Row], float | str]
    falling: bool = True


def _rate(value: float) -> str:
    return "–" if value <= 0 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    if value <= 0:
        return "–"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _count(value: int) -> str:
    return str(value) if value else "–"


def size(count: float) -> str:
    """Bytes as readable text: 27M, 1.4G."""
    return "–" if count <= 0 else f"{count / 2**20:.0f}M" if count < 2**30 else f"{count / 2**30:.1f}G"


COLUMNS: Final = (
    Column("name", lambda row: row.name, lambda row: row.name, falling=False),
    Column("state", lambda row: _state(row), lambda row: _state(row), falling=False),
    Column("pid", lambda row: _count(row.pid), lambda row: row.pid, falling=False),
    Column("up", lambda row: for_people(row.up_s) if row.running else "–", lambda row: row.up_s, falling=False),
    Column("calls/s", lambda row: _rate(row.sample.rate), lambda row: row.sample.rate),
    Column("errors/s", lambda row: _rate(row.sample.errors), lambda row: row.sample.errors),
    Column("mean", lambda row: _seconds(row.sample.mean_s), lambda row: row.sample.mean_s),
    Column("p99 ≤", lambda row: _seconds(row.sample.p99_s), lambda row: row.sample.p99_s),
    Column("in flight", lambda row: _count(row.sample.in_flight), lambda row: row.sample.in_flight),
    Column("waiting", lambda row: _count(row.sample.waiting), lambda row: row.sample.waiting),
    Column("cpu", lambda row: f"{row.sample.cpu:.0%}" if row.pid or row.running else "–", lambda row: row.sample.cpu),
    Column("memory", lambda row: size(row.sample.memory_bytes), lambda row: row.sample.memory_bytes),
)


#: The columns that stay on a narrow terminal, the most important first; name and state are always shown.
_NEEDED: Final = ("calls/s", "cpu", "memory", "p99 ≤", "in flight", "errors/s", "mean", "waiting", "up", "pid")
#: The number of spaces that rich puts between two columns.
_BETWEEN: Final = 3


def _fitting(rows: list[Row], width: int) -> list[Column]:
    """The columns that fit into the width, in their order."""
    room = width
    chosen = {"name", "state"}
    for column in sorted(COLUMNS, key=lambda each: _NEEDED.index(each.head) if each.head in _NEEDED else -1):
        room -= max([len(column.head) + 1, *(len(column.cell(row)) for row in rows)]) + _BETWEEN
        if column.head not in chosen and room + _BETWEEN < 0:
            break
        chosen.add(column.head)
    return [column for column in COLUMNS if column.head in chosen]


def _state(row: Row) -> str:
    if row.looping:
        return "CRASH LOOP"
    if row.copies == 1:
        return row.state
    return f"{row.state} ×{row.copies}" if row.running == row.copies else f"{row.running} of {row.copies}"


HELP: Final = (
    ("↑ ↓", "select"),
    ("s S", "sort by the next column; reverse the order"),
    ("g", "services, or each process"),
    ("/", "show only names that contain this"),
    ("l", "logs: of the selected, of all, none"),
    ("+ -", "scale the selected service; - asks before it stops a worker"),
    ("r", "restart the selected, one by one; asks first"),
    ("p", "pause"),
    ("q", "quit"),
)

#: Whether the logs at the bottom are those of the selected row, of all processes, or of none.
LOGS: Final = ("selected", "all", "none")


class Order(NamedTuple):
    """The command of a key: "scale" by `change`, "restart", or "quit"."""

    kind: str
    row: Row | None = None
    change: int = 0


class Screen:
    """The state of the screen.

    Attributes:
        said: a line about the current or the last command.
    """

    def __init__(self) -> None:
        self.sort = 0
        self.backwards = False
        self.by_process = False
        self.filter = ""
        self.selected = ""
        self.logs = LOGS[1]
        self.paused = False
        self.helps = False
        self.said = ""
        #: The text typed after "/", or None.
        self.typing: str | None = None
        #: The command that waits for confirmation with "y", because it stops a process.
        self.asked: Order | None = None

    # --- rows ---------------------------------------------------------------------------------------------

    def rows(self, frame: Frame) -> list[Row]:
        """The rows to show, in order; one of them is selected."""
        rows = frame.processes if self.by_process else grouped(frame.processes)
        wanted = self.typing if self.typing is not None else self.filter
        column = COLUMNS[self.sort]
        found = [row for row in rows if wanted.lower() in row.name.lower()]
        # Sort twice: rows with equal values stay in the order of their names.
        found.sort(key=lambda row: row.name)
        found.sort(key=column.key, reverse=column.falling != self.backwards)
        if found and self.selected not in {row.name for row in found}:
            self.selected = found[0].name
        return found

    def row(self, frame: Frame) -> Row | None:
        """The selected row."""
        return next((row for row in self.rows(frame) if row.name == self.selected), None)

    @property
    def log_names(self) -> tuple[str, ...]:
        """The names of the processes to show logs of, in the form that `mesh logs` accepts."""
        return (self.selected,) if self.logs == "selected" and self.selected else ()

    # --- keys ---------------------------------------------------------------------------------------------

    def press(self, key: str, frame: Frame) -> Order | None:
        """Process one key; returns its command, if it has one."""
        if self.typing is not None:
            self._type(key)
            return None
        if self.asked is not None:
            asked, self.asked, self.said = self.asked, None, ""
            return asked if key == "y" else None
        if key in ("q", "\x03", "\x04"):
            return Order("quit")
        row = self.row(frame)
        if key in ("+", "=", "-") and row is not None:
            order = Order("scale", row, -1 if key == "-" else 1)
            if key == "-" and any(each.running for each in frame.processes if each.group == row.group):
                self.asked, self.said = order, f"stop one of {row.group}? y"
                return None
            return order
        if key == "r" and row is not None:
            self.asked, self.said = Order("restart", row), f"restart {row.name}? y"
            return None
        step = _STEPS.get(key)
        if step is not None:
            step(self, frame)
        return None

    def _type(self, key: str) -> None:
        assert self.typing is not None
        if key in ("\r", "\n"):
            self.filter, self.typing = self.typing, None
        elif key == "\x1b":
            self.typing = None
        elif key in ("\x7f", "\b"):
            self.typing = self.typing[:-1]
        elif key.isprintable() and len(key) == 1:
            self.typing += key

    def _move(self, frame: Frame, by: int) -> None:
        names = [row.name for row in self.rows(frame)]
        if names:
            at = names.index(self.selected) if self.selected in names else 0
            self.selected = names[max(0, min(len(names) - 1, at + by))]

    def _sort(self, frame: Frame) -> None:
        self.sort, self.backwards = (self.sort + 1) % len(COLUMNS), False

    def _turn(self, frame: Frame) -> None:
        self.backwards = not self.backwards

    def _group(self, frame: Frame) -> None:
        self.by_process = not self.by_process

    def _filter(self, frame: Frame) -> None:
        self.typing = ""

    def _logs(self, frame: Frame) -> None:
        self.logs = LOGS[(LOGS.index(self.logs) + 1) % len(LOGS)]

    def _pause(self, frame: Frame) -> None:
        self.paused = not self.paused

    def _help(self, frame: Frame) -> None:
        self.helps = not self.helps


_STEPS: Final[dict[str, Callable[[Screen, Frame], None]]] = {
    "up": lambda screen, frame: screen._move(frame, -1),
    "k": lambda screen, frame: screen._move(frame, -1),
    "down": lambda screen, frame: screen._move(frame, 1),
    "j": lambda screen, frame: screen._move(frame, 1),
    "s": Screen._sort,
    "S": Screen._turn,
    "g": Screen._group,
    "\t": Screen._group,
    "/": Screen._filter,
    "l": Screen._logs,
    "p": Screen._pause,
    "?": Screen._help,
    "h": Screen._help,
}


# --- drawing --------------------------------------------------------------------------------------------


def draw(screen: Screen, frame: Frame, width: int, height: int) -> RenderableType:
    """The whole screen, at most `height` lines of `width`."""
    from rich.console import Group
    from rich.text import Text

    rows = screen.rows(frame)
    parts: list[RenderableType] = [_head(screen, frame)]
    if frame.trouble:
        parts.append(Text(frame.trouble, style="yellow", no_wrap=True, overflow="ellipsis"))
    if screen.helps:
        parts += [Text(f"  {keys:<5} {what}") for keys, what in HELP]
    # Five lines: head, table head and rule, foot, and a rule above the logs.
    room = height - 5 - bool(frame.trouble) - (len(HELP) if screen.helps else 0)
    most = max(1, room - (room // 3 if frame.lines else 0))
    at = next((place for place, row in enumerate(rows) if row.name == screen.selected), 0)
    begin = max(0, min(at - most + 1, len(rows) - most)) if at >= most else 0
    parts.append(table(rows[begin : begin + most], screen, width))
    if frame.lines:
        parts += _log_lines(frame, max(0, room - min(most, len(rows)) - 1))
    parts.append(_foot(screen))
    return Group(*parts)


def table(rows: list[Row], screen: Screen, width: int) -> Table:
    """The rows as a table; the sort column is marked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
    columns = _fitting(rows, width)
    for column in columns:
        mark = ("▲" if column.falling == screen.backwards else "▼") if column is COLUMNS[screen.sort] else ""
        made.add_column(column.head + mark, justify="left" if column in COLUMNS[:2] else "right", no_wrap=True)
    for row in rows:
        style = "reverse" if row.name == screen.selected else ""
        made.add_row(*(Text(column.cell(row), style=_colour(row, column)) for column in columns), style=style)
    return made


def _colour(row: Row, column: Column) -> str:
    if column.head == "state":
        bad = row.looping or row.state in ("BACKOFF", "FATAL", "EXITED")
        return "red" if bad else "green" if row.running == row.copies else "yellow"
    return "red" if column.head == "errors/s" and row.sample.errors > 0 else ""


def _head(screen: Screen, frame: Frame) -> RenderableType:
    from rich.text import Text

    rates = [row.sample.rate for row in frame.processes if row.group != "gateway"]
    http = sum(row.sample.rate for row in frame.processes if row.group == "gateway")
    memory = f"{size(frame.memory)} of {size(frame.memory_total)}" if frame.memory_total else "–"
    words = [
        f"mesh top · {frame.host}",
        f"cpu {frame.busy:.0%} of {frame.cores}",
        f"load {frame.load:.1f}",
        f"memory {memory}",
        f"calls {_rate(sum(rates))}/s",
        f"http {_rate(http)}/s",
    ]
    words += [f"hub {'up' if up else 'away'}" for _, up in frame.hubs]
    if screen.paused:
        words.append("PAUSED")
    return Text("   ".join(words), style="bold", no_wrap=True, overflow="ellipsis")


def _log_lines(frame: Frame, most: int) -> list[RenderableType]:
    from rich.rule import Rule
    from rich.text import Text

    from mesh.cli.commands.logs import shown

    width = max(len(line.process) for line in frame.lines)
    lines = frame.lines[-most:] if most else []
    made: list[RenderableType] = [Rule(style="dim")]
    for line in lines:
        text = Text.from_ansi(shown(line, width).split("\n")[0])
        text.no_wrap = True
        text.truncate(400)
        made.append(text)
    return made


def _foot(screen: Screen) -> RenderableType:
    from rich.text import Text

    if screen.typing is not None:
        return Text(f"/{screen.typing}▏", style="bold")
    words = screen.said or "? keys · q quit"
    shown_filter = f"   filter: {screen.filter}" if screen.filter else ""
    return Text(f"{words}{shown_filter}   logs: {screen.logs}", style="dim", no_wrap=True, overflow="ellipsis")
