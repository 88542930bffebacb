"""The log files of all processes as one journal, in the order of time.

Owns: finding the files, reading their last and their new lines (across rotation), and merging lines in order.
Leaves to others: the form of a line (cli.logs, cli.top), writing and rotating (telemetry.logs, supervisor).
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

#: How many bytes to read first from the end of a file; more are read while they contain too few lines.
CHUNK: Final = 64 * 1024
#: How many bytes to read at once from a file that grows.
MOST: Final = 1024 * 1024

_decode = msgspec.json.Decoder().decode


class Line(NamedTuple):
    """One line that a process wrote.

    Attributes:
        at: seconds since 1970; a line without a time, such as one of a traceback, has the time of the previous line.
        process: the name of its file: "greeting_0", "hub".
        level: "debug", "info", "warning", "error" or "critical"; a line without a level has that of the previous line;
            lines in which `mesh` reports why a process ended have "error".
        fields: its fields by name, when it is JSON; else {}.
        text: the line itself.
    """

    at: float
    process: str
    level: str
    fields: dict[str, Any]
    text: str


def files(log_dir: Path, more: Iterable[str] = ()) -> dict[str, Path]:
    """The log files of a host, by the process that writes them.

    Args:
        more: paths that supervisor names besides those in `log_dir`.
    """
    found = {path.stem: path for path in sorted(log_dir.glob("*.log"))}
    known = set(found.values())
    for path in sorted({Path(each) for each in more if each} - known):
        found.setdefault(path.stem, path)
    return found


def chosen(names: Sequence[str], found: Iterable[str]) -> list[str]:
    """The processes that names select: "greeting" all its workers, "greeting:greeting_0" one; no name selects all."""
    wanted = []
    for process in found:
        for name in names:
            group, _, one = name.partition(":")
            exact = process == (one if one and one != "*" else group)
            if exact or (one in ("", "*") and re.fullmatch(rf"{re.escape(group)}_\d+", process)):
                wanted.append(process)
                break
    return wanted if names else list(found)


# supervisord's own log: "2026-11-22 02:35:04,123 INFO …", in local time.
_OWN: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (CRIT|ERRO|WARN|INFO|DEBG|TRAC|BLAT) ")
_LEVELS: Final = {
    "CRIT": "critical",
    "ERRO": "error",
    "WARN": "warning",
    "INFO": "info",
    "DEBG": "debug",
    "TRAC": "debug",
    "BLAT": "debug",
}
#: How a process of mesh reports why it ended: `mesh: …`, after a traceback, or before indented advice.
_END: Final = "mesh: "
_BESIDE_END: Final = " " * 6


class _File:
    """One log file that may grow, be rotated away, or not be there yet."""

    def __init__(self, process: str, path: Path) -> None:
        self.process = process
        self.path = path
        self._inode = 0
        self._read_to = 0
        self._part = b""
        self._at = 0.0
        self._level = "info"

    def last(self, count: int) -> list[Line]:
        """The last lines, at most `count`; later lines are returned by `new`."""
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                self._inode, end = stat.st_ino, stat.st_size
                begin, data = end, b""
                while begin > 0 and data.count(b"\n") <= count:
                    size = min(CHUNK, begin)
                    begin -= size
                    file.seek(begin)
                    data = file.read(size) + data
        except OSError:
            return []
        whole, newline, part = data.rpartition(b"\n")
        self._read_to, self._part = end, part
        lines = whole.split(b"\n") if newline else []
        if begin > 0 and lines:
            del lines[0]  # it is incomplete: it began before the chunk
        return self._lines(lines)[-count:] if count else []

    def new(self) -> list[Line]:
        """The lines written since the last call."""
        try:
            stat = self.path.stat()
            if stat.st_ino != self._inode or stat.st_size < self._read_to:
                # Rotated, or truncated: read from the beginning.
                self._inode, self._read_to, self._part = stat.st_ino, 0, b""
            if stat.st_size == self._read_to:
                return []
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                data = file.read(MOST)
        except OSError:
            return []
        self._read_to += len(data)
        *lines, self._part = (self._part + data).split(b"\n")
        return self._lines(lines)

    def _lines(self, lines: list[bytes]) -> list[Line]:
        read = [self._line(line.decode("utf-8", "replace").rstrip("\r")) for line in lines if line.strip()]
        return _with_ends(read)

    def _line(self, text: str) -> Line:
        fields: dict[str, Any] = {}
        if text.startswith("{"):
            try:
                found = _decode(text.encode())
            except msgspec.DecodeError:
                found = None
            if isinstance(found, dict):
                fields = found
        elif match := _OWN.match(text):
            fields = {"ts": _in_utc(f"{match[1]}.{match[2]}"), "level": _LEVELS[match[3]], "event": text[match.end() :]}
        self._at = _time_of(fields) or self._at
        self._level = str(fields.get("level", self._level if not fields else "info"))
        return Line(self._at, self.process, self._level, fields, text)


def _with_ends(lines: list[Line]) -> list[Line]:
    """The lines, with level "error" for those that report the end of a process. They were written and read together."""
    ends = {at for at, line in enumerate(lines) if not line.fields and line.text.startswith(_END)}
    for step in (-1, 1):
        for end in tuple(ends):
            at = end + step
            while 0 <= at < len(lines) and not lines[at].fields and lines[at].text.startswith(_BESIDE_END):
                ends.add(at)
                at += step
    return [line._replace(level="error") if at in ends else line for at, line in enumerate(lines)]


def _in_utc(local: str) -> str:
    """A local time in the form of mesh's log lines: RFC 3339, in UTC."""
    try:
        return datetime.fromisoformat(local).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except ValueError:
        return local


def _time_of(fields: dict[str, Any]) -> float:
    told = fields.get("ts")
    try:
        return datetime.fromisoformat(told).timestamp() if isinstance(told, str) else 0.0
    except ValueError:
        return 0.0


def read_line(process: str, text: str) -> Line:
    """One line that a process wrote, by itself."""
    return _File(process, Path())._line(text)


def brief(text: str) -> str:
    """A short form of a line: for JSON, the event with the last line of its exception, or with its reason."""
    line = read_line("", text)
    event = str(line.fields.get("event", "")) or text.strip()
    exception = str(line.fields.get("exception", "")).strip().splitlines()
    causes = (line.fields.get(name) for name in ("cause", "reason", "error"))
    why = exception[-1] if exception else next((cause for cause in causes if cause), "")
    return f"{event}: {why}" if why else event


class Journal:
    """Several log files as one."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._files = {process: _File(process, path) for process, path in paths.items()}

    def last(self, count: int) -> list[Line]:
        """The last `count` lines of all files together."""
        # Keep the order within each file, so that a traceback stays with its line.
        merged = heapq.merge(*(file.last(count) for file in self._files.values()), key=lambda line: line.at)
        return list(merged)[-count:] if count else []

    def new(self, paths: dict[str, Path] | None = None) -> list[Line]:
        """The lines written since the last call, in order; `paths` adds new files."""
        for process, path in (paths or {}).items():
            if process not in self._files:
                self._files[process] = _File(process, path)
        return list(heapq.merge(*(file.new() for file in self._files.values()), key=lambda line: line.at))


def keep(lines: Iterable[Line], least: str = "debug", trace: str = "") -> Iterator[Line]:
    """The lines of at least this level, and of this trace."""
    order = ("debug", "info", "warning", "error", "critical")
    for line in lines:
        level = order.index(line.level) if line.level in order else 1
        if level >= order.index(least) and (not trace or line.fields.get("trace_id") == trace):
            yield line
