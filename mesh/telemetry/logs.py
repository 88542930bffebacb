"""The logs of a process: one line per event, in the same form for mesh, services and libraries.

Owns: the set-up of structlog and of the standard library's logging, and the common fields of all lines.
Leaves to others: storing and rotating files (supervisor), the current trace (traces).

A JSON line has `ts` (UTC), `level`, `event`, `logger`, the fields bound to the process (`worker`, `service`, …),
`trace_id` and `span_id` inside a trace, `exception` when there is one, and the fields of the call. Before `configure`
is called, warnings and worse go to stderr in the console form, so that a script that imports mesh stays quiet.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final, Literal, TextIO, cast

import msgspec

from mesh.clock import Clock, LoopClock
from mesh.errors import ConfigError
from mesh.telemetry import recent_lines
from mesh.telemetry.traces import in_force

# structlog imports rich for tracebacks that mesh does not draw. This would cost 5 MB of private memory and 60 ms in
# each worker, of 45 MB and a second. Hide rich during this import, unless it has been imported already.
_hide_rich = "rich" not in sys.modules
if _hide_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger
finally:
    if _hide_rich:
        del sys.modules["rich"]

Format = Literal["auto", "console", "json"]

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
FORMATS: Final = ("auto", "console", "json")

#: Names of structlog and logging for a level that differ from its own name.
_LEVEL_NAMES: Final = {"exception": "error", "warn": "warning", "fatal": "critical", "msg": "info"}


def configure(
    level: str = "info",
    format: str = "auto",
    stream: TextIO | None = None,
    *,
    clock: Clock | None = None,
    muted: Collection[str] = (),
    **bound: str,
) -> None:
    """Set up all logging of this process: mesh's, structlog's and the standard library's, also warnings.

    May be called again; the last call applies, also to existing loggers.

    Args:
        level: "debug", "info", "warning", "error" or "critical": lower levels are not logged.
        format: "console" for people, "json" for machines, "auto" for console on a terminal and JSON elsewhere.
        stream: the output; stderr when None. Coloured on a terminal only, unless NO_COLOR is set.
        clock: provides the time of day.
        muted: names of mesh's own loggers that write warnings and worse only.
        bound: fields for every line, for example `worker="w-1f", service="greeting"`. Empty ones are left out.

    Raises:
        ConfigError: an unknown level or format.
    """
    if level not in LEVELS:
        raise ConfigError(f'log.level: "{level}" is not one of {", ".join(LEVELS)}')
    if format not in FORMATS:
        raise ConfigError(f'log.format: "{format}" is not one of {", ".join(FORMATS)}')
    terminal = _is_terminal(stream or sys.stderr)
    console = format == "console" or (format == "auto" and terminal)
    number = LEVELS[level]
    _apply(
        _Setup(
            level=number,
            stream=stream,
            wall=(clock or LoopClock()).wall,
            bound={name: value for name, value in bound.items() if value},
            render=_console(colours=terminal and not os.environ.get("NO_COLOR")) if console else _json,
            muted=frozenset(muted),
        )
    )
    structlog.configure(
        processors=[_process],
        wrapper_class=cast("type[Any]", _bind),
        context_class=dict,
        logger_factory=lambda *_: _SINK,
        cache_logger_on_first_use=False,
    )
    top = logging.getLogger()
    if _HANDLER not in top.handlers:
        top.addHandler(_HANDLER)
    top.setLevel(number)
    logging.captureWarnings(True)


def reset() -> None:
    """Undo `configure`: for tests, and for a program that stops using mesh."""
    top = logging.getLogger()
    if _HANDLER in top.handlers:
        top.removeHandler(_HANDLER)
        top.setLevel(logging.WARNING)
        logging.captureWarnings(False)
    structlog.reset_defaults()
    _apply(_unconfigured())


def get_logger(name: str, **bound: Any) -> FilteringBoundLogger:
    """A logger that adds `logger=name` and the bound fields to its lines; cheap; create it at import.

    ::

        log = get_logger(__name__)
        log.info("link.opened", peer=peer)      # the event is a constant name, its values are fields
    """
    return cast(
        FilteringBoundLogger,
        structlog.wrap_logger(
            _SINK,
            processors=[_process],
            wrapper_class=cast("type[Any]", _bind),
            context_class=dict,
            cache_logger_on_first_use=False,
            logger_name=name,
            **bound,
        ),
    )


_NUMBERS: Final = count(1)


class _Setup:
    """The settings of `configure`. Read for every line, so that existing loggers follow them."""

    __slots__ = ("_at_ms", "_stamp", "bound", "level", "logger_class", "muted", "number", "render", "stream", "wall")

    def __init__(
        self,
        *,
        level: int,
        stream: TextIO | None,
        wall: Callable[[], float],
        bound: dict[str, str],
        render: Callable[[EventDict], str],
        muted: frozenset[str] = frozenset(),
    ) -> None:
        self.muted = muted
        self.level = level
        self.stream = stream
        self.wall = wall
        self.bound = bound
        self.render = render
        self.logger_class: Callable[..., Any] = structlog.make_filtering_bound_logger(level)
        self._at_ms = -1
        self._stamp = ""
        #: Another one than that of all other objects of this class.
        self.number = next(_NUMBERS)

    def stamp(self) -> str:
        """The time of a line: "2026-11-30T09:15:02.417Z". Lines of the same millisecond share it."""
        at_ms = int(self.wall() * 1000)
        if at_ms != self._at_ms:
            when = datetime.fromtimestamp(at_ms / 1000, UTC)
            # Another thread may log, too: the text is there before the time that it is for.
            stamp = self._stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._at_ms = at_ms
            return stamp
        return self._stamp


class _Sink:
    """The last processor: writes rendered lines of any level, with one write per line."""

    def write(self, line: str) -> None:
        # Look it up each time: stderr may have been replaced (by a test, or by a terminal user interface).
        stream = _setup.stream or sys.stderr
        try:
            try:
                stream.write(line + "\n")
            except UnicodeEncodeError:
                # An ASCII locale, or half a character in a file name: escape it instead of losing the line.
                stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            stream.flush()
        except (OSError, ValueError):
            # The reader has closed the pipe, or the stream was closed at exit. The line is lost.
            pass

    debug = info = warning = warn = error = critical = fatal = exception = msg = log = write


class _Handler(logging.Handler):
    """Writes records of the standard library in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: EventDict = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            if record.stack_info:
                event["stack"] = record.stack_info
            _SINK.write(_process(None, record.levelname.lower(), event))
        except Exception:
            self.handleError(record)


def _bind(logger: Any, processors: Any, context: Any) -> Any:
    return _setup.logger_class(logger, processors, context)


def _process(logger: Any, method: str, event: EventDict) -> str:
    """Add the common fields to an event and render it as a line."""
    setup = _setup
    if setup.muted and event.get("logger_name") in setup.muted and LEVELS.get(method, logging.ERROR) < logging.WARNING:
        raise structlog.DropEvent
    line: EventDict = {
        "ts": setup.stamp(),
        "level": _LEVEL_NAMES.get(method, method),
        "event": event.pop("event", ""),
        **setup.bound,
    }
    trace = in_force()
    if trace:
        line["trace_id"] = trace[3:35]
        line["span_id"] = trace[36:52]
    line.update(structlog.contextvars.get_contextvars())
    name = event.pop("logger_name", None)
    if name:
        line["logger"] = name
    line.update(event)
    if setup.render is _json:
        text = _json(line)
        if recent_lines.recent is not None:
            recent_lines.recent.add(text)
        return text
    if recent_lines.recent is not None:
        # Before the console renderer, which changes it.
        recent_lines.recent.add(_json(dict(line)))
    return setup.render(line)


def line_of(name: str, level: str, event: str) -> Callable[[str], str] | None:
    """A function that renders lines of one logger, level and event as JSON, quickly.

    None when such lines are not logged, or not as JSON. It holds until the next `configure`: see `setup_number`.

    It takes the fields as the members of a JSON object: `"status":200,"path":"/"`. Values bound to a logger or to a
    context are not in the lines.
    """
    setup = _setup
    if setup.render is not _json or LEVELS[level] < setup.level or name in setup.muted:
        return None
    stamp = setup.stamp
    common = _json({"level": level, "event": event, **setup.bound})[1:-1]
    after = _json({"logger": name})[1:-1]

    def render(members: str) -> str:
        trace = in_force()
        if not trace:
            return f'{{"ts":"{stamp()}",{common},{after},{members}}}'
        ids = f'"trace_id":"{trace[3:35]}","span_id":"{trace[36:52]}"'
        return f'{{"ts":"{stamp()}",{common},{ids},{after},{members}}}'

    return render


def setup_number() -> int:
    """Changes with each `configure`."""
    return _setup.number


def json_text(text: str) -> str:
    """A string as JSON, with its quotation marks."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return _json_string(text)


def _json_string(text: str) -> str:
    try:
        return msgspec.json.encode(text).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_plain(text)).decode()


def write(lines: list[str]) -> None:
    """Write lines that `line_of` has rendered."""
    if recent_lines.recent is not None:
        for line in lines:
            recent_lines.recent.add(line)
    _SINK.write("\n".join(lines))


def _json(line: EventDict) -> str:
    if "exc_info" in line:
        line = structlog.processors.format_exc_info(None, "", line)
    try:
        return msgspec.json.encode(line, enc_hook=repr).decode()
    except Exception:
        # A value that cannot be encoded (a lone surrogate, a map with tuples as keys) is simplified; the line is kept.
        safe = {_plain(name): _plain(value) for name, value in line.items()}
        return msgspec.json.encode(safe).decode()


def _plain(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as broken:
        text = f"<{type(value).__name__}: repr raised {type(broken).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()


def _console(*, colours: bool) -> Callable[[EventDict], str]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours,
        timestamp_key="ts",
        # The plain formatter: structlog's default draws boxes, and shows local variables, including secrets.
        exception_formatter=structlog.dev.plain_traceback,
    )

    def render(line: EventDict) -> str:
        # "2026-01-02T03:04:05.678Z": on a console, show the time without the date.
        line["ts"] = line["ts"][11:23]
        try:
            return str(renderer(None, "", dict(line)))
        except Exception:
            # As for JSON: a value that cannot be printed is simplified; the line is kept.
            return str(renderer(None, "", {name: _plain(value) for name, value in line.items()}))

    return render


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def _unconfigured() -> _Setup:
    return _Setup(level=logging.WARNING, stream=None, wall=LoopClock().wall, bound={}, render=_console(colours=False))


def _apply(setup: _Setup) -> None:
    global _setup
    _setup = setup


_SINK: Final = _Sink()
_HANDLER: Final = _Handler()
_setup = _unconfigured()
