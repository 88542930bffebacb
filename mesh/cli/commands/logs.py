"""`mesh logs`. Owns: its options, and the form of a line. Leaves to others: reading the logs (supervisord.journal)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.commands import completion
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from mesh.supervisord.journal import Line

#: How often a followed file is checked: faster than a person reads, at negligible cost.
EVERY_S: Final = 0.2
#: How often to look for new files: a service may have been scaled up.
FILES_EVERY_S: Final = 2.0
#: How often to ask processes without a log file.
RECENT_EVERY_S: Final = 0.5
#: How long to wait for a hub, which knows these processes.
FIRST_WORD_S: Final = 1.0

_COLOURS: Final = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "bright_blue")
_LEVELS: Final = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
#: The number of a copy, at the end of the name of its log.
_COPY: Final = re.compile(r"_\d+$")
#: Fields that are not shown: other columns contain them, or they are rarely needed.
_LEFT_OUT: Final = frozenset({"ts", "level", "event", "process", "role", "exception", "pid"})


@click.command("logs")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completion.services)
@click.option("-f", "--follow", is_flag=True, help="Follow the logs until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="N",
    help="Start with the last N lines.",
)
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="debug",
    help="Only lines of at least this level.",
)
@click.option("--trace", metavar="ID", default="", help="Only lines of this trace (32 hexadecimal digits).")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@json_option
def command(names: tuple[str, ...], follow: bool, lines: int, level: str, trace: str, conf: str | None) -> int:
    """Show the logs of the processes of this host, merged in order; or only of those named.

    A NAME is a service, or one of its processes: greeting, greeting:greeting_0, gateway, hub, supervisord. Errors in
    mesh.toml are reported; the logs are shown anyway.

    Where no supervisor keeps log files, the processes in the registry are asked for their last lines; a hub that was
    started by hand writes to its terminal only.
    """
    from mesh.supervisord.journal import Journal, chosen, keep

    for complaint in setting.usable().complaints:
        note(complaint)
    found_here = paths(conf)
    wanted = chosen(names, found_here)
    if not wanted:
        services = loop.run(_recent(names, follow, lines, level, trace))
        if services is None:
            return exits.OK
        there = ", ".join(sorted({*(_COPY.sub("", name) for name in found_here), *services})) or "none"
        raise click.UsageError(f"there is no log of {' or '.join(names) or 'any process'}; there are: {there}")
    shown = {name: found_here[name] for name in wanted}
    width = max(len(name) for name in shown)
    journal = Journal(shown)
    # Lines of a level or a trace may be rare: read more, to find some of them.
    reach = lines if not lines or (level == "debug" and not trace) else max(lines, 10_000)
    found = list(keep(journal.last(reach), level, trace))
    write(found[-lines:] if lines else (), width)
    looked_at = time.monotonic()
    while follow:
        time.sleep(EVERY_S)
        fresh: dict[str, Path] = {}
        if time.monotonic() - looked_at >= FILES_EVERY_S:
            looked_at = time.monotonic()
            now = paths(conf)
            fresh = {name: now[name] for name in chosen(names, now)}
        write(keep(journal.new(fresh), level, trace), width)
    return exits.OK


async def _recent(names: tuple[str, ...], follow: bool, lines: int, level: str, trace: str) -> set[str] | None:
    """Show the lines of processes without a log file; None when there were any, else the known services."""
    from mesh.observe.recent_journal import RecentJournal
    from mesh.supervisord.journal import keep

    process.quiet()
    try:
        async with loop.connected(FIRST_WORD_S) as node:
            journal = RecentJournal(node, names)
            width = max((len(each.id) for each in journal.chosen()), default=0)
            if not width:
                return {each.service for each in RecentJournal(node, ()).chosen()}
            found = list(keep(await journal.new(), level, trace))
            write(found[-lines:] if lines else (), width)
            while follow:
                await asyncio.sleep(RECENT_EVERY_S)
                write(keep(await journal.new(), level, trace), width)
            return None
    except (Unavailable, ConfigError):
        return set()


def paths(conf: str | None, *, quiet: bool = False) -> dict[str, Path]:
    """The log files of this host's processes, by process; `quiet`: do not report a missing supervisord."""
    from mesh.supervisord.control import Control
    from mesh.supervisord.journal import files

    log_dir = setting.usable().settings.mesh.log_dir
    more: list[str] = []
    try:
        layout = setting.layout(conf)
    except ConfigError:
        if conf:
            raise
    else:
        more.append(str(layout.logfile))
        control = Control(layout.socket)
        try:
            more += [process.log for process in control.processes()]
        except Unavailable:
            if not wants_json() and not quiet:
                note("no supervisord runs here; showing the existing log files")
        finally:
            control.close()
    return {name: path for name, path in files(log_dir, more).items() if path.exists()}


def write(lines: Iterable[Line], width: int) -> None:
    for line in lines:
        if wants_json():
            write_json({**(line.fields or {"level": line.level, "event": line.text}), "process": line.process})
        else:
            click.echo(shown(line, width))


def shown(line: Line, width: int) -> str:
    """A line as readable text: time, process, event, and the other fields as name=value."""
    who = click.style(f"{line.process:<{width}}", fg=_COLOURS[sum(line.process.encode()) % len(_COLOURS)])
    colour = _LEVELS.get(line.level)
    if not line.fields:
        when = " " * 12 if not line.at else click.style(_clock(line.at), dim=True)
        return f"{when} {who}  {click.style(line.text, fg=colour) if colour else line.text}"
    event = str(line.fields.get("event", ""))
    rest = "".join(f" {click.style(name, dim=True)}={_plain(value)}" for name, value in _rest(line))
    text = f"{click.style(_clock(line.at), dim=True)} {who}  {click.style(event, fg=colour) if colour else event}{rest}"
    if exception := line.fields.get("exception"):
        text += "".join(f"\n{' ' * (15 + width)}{each}" for each in str(exception).splitlines())
    return text


def _rest(line: Line) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in line.fields.items() if name not in _LEFT_OUT]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value if value and " " not in value else repr(value)
    import msgspec

    return msgspec.json.encode(value, enc_hook=str).decode()


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]
