"""`mesh program`. Owns: its options, and how they change the service's settings.

Leaves to others: running the program (worker.program_runner), an environment file (confine).
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Final

import click
import msgspec

from mesh.cli import exits, loop, process, setting
from mesh.cli.confine import env_file_option
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from mesh.config import ServiceSettings, Settings

#: What --limit sets for the processes of the program.
LIMITS: Final = ("memory", "memory_soft", "files", "nice")


@click.command("program")
@click.argument("name")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--http", default=None, metavar="ADDRESS", help='Where it listens: "127.0.0.1:{port}", "unix:{socket}".')
@click.option("--health", default=None, metavar="PATH", help="Healthy while this path answers below 400.")
@click.option(
    "--limit", metavar="WHAT=N", multiple=True, help="Limit memory=BYTES, memory_soft=BYTES or files=N, or set nice=N."
)
@click.option("--check", is_flag=True, help="Only check that it could be started.")
@env_file_option
@json_option
def command(
    name: str, words: tuple[str, ...], http: str | None, health: str | None, limit: tuple[str, ...], check: bool
) -> int:
    """Run a program that speaks HTTP as an instance of the service NAME, until SIGTERM or Ctrl-C.

    The program gets a free port, in {port} and in the environment variable PORT. It is registered while it is healthy;
    the gateways send it the requests for the paths in `route` of [services.NAME]. Without a COMMAND, that of
    [services.NAME] runs.

    \b
      mesh program shop -- node server.js
      mesh program files --health / -- busybox httpd -f -p 127.0.0.1:{port} -h public
    """
    settings = (setting.usable().settings if check and words else None) or setting.settings()
    service = _given(settings, name, words, http, health)
    limits = _limits(limit, service)
    if check:
        _find(service)
        if wants_json():
            write_json({"program": name, "command": service.command})
        return exits.OK
    from mesh.worker import program_runner
    from mesh.worker.watchdog import Watchdog, limits_of, supervised

    ends = sys.stdin is None or not sys.stdin.isatty()
    process.prepare(settings, name)
    watchdog = Watchdog(limits_of(settings), ends=ends, run_dir=settings.mesh.run_dir if supervised() else None)
    watchdog.start()
    watchdog.enter("waiting")
    if sys.stderr.isatty():
        note(f"{name} · {service.command[0]} · hub {', '.join(settings.mesh.hubs)} · Ctrl-C stops")
    return loop.run(program_runner.run(name, service, settings, limits=limits, watchdog=watchdog))


def _given(
    settings: Settings, name: str, words: tuple[str, ...], http: str | None, health: str | None
) -> ServiceSettings:
    """The settings of the service, with those of the command line in their place."""
    from mesh.config.edge_programs import HEALTH, HTTP

    service = settings.service(name)
    changes: dict[str, object] = {"command": list(words)} if words else {}
    for key, kind, text in (("http", HTTP, http), ("health", HEALTH, health)):
        if text is not None:
            try:
                changes[key] = kind.read(text)
            except ValueError as exc:
                why = f": {exc}" if str(exc).startswith("it ") else ""
                raise click.UsageError(f"--{key}: {text!r} is not {kind.wanted}{why}") from exc
    service = msgspec.structs.replace(service, **changes)
    if not service.command:
        raise ConfigError(f"there is no [services.{name}] with a command; write `mesh program {name} -- COMMAND`")
    return service


def _limits(given: tuple[str, ...], service: ServiceSettings) -> dict[str, int]:
    found = {
        "memory": service.memory_bytes,
        "memory_soft": service.memory_soft_bytes,
        "files": service.files,
        "nice": service.nice,
    }
    for each in given:
        what, equals, number = each.partition("=")
        if what not in LIMITS or not equals or not number.isdigit():
            raise click.UsageError(f"--limit: {each!r} is not {' or '.join(f'{known}=N' for known in LIMITS)}")
        found[what] = int(number)
    # As for workers: replaced in good time before allocations fail.
    found["memory_soft"] = found["memory_soft"] or found["memory"] * 4 // 5
    return found


def _find(service: ServiceSettings) -> None:
    """Raises:
    SetupError: the program is not on PATH.
    """
    if shutil.which(service.command[0]) is None:
        raise SetupError(
            f"{service.command[0]}: there is no such program on PATH, or it is not executable",
            details={"key": "command"},
        )
