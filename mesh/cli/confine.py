"""What supervisor cannot give a process: an environment file, and limits to what it may take.

Owns: the options for both, reading such a file, and setting the limits on this process.
Leaves to others: which there are to be ([services.NAME] in mesh.toml, supervision.programs).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mesh.errors import ConfigError, SetupError

F = TypeVar("F", bound=Callable[..., Any])

_LINE: Final = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")


def confine_options(command: F) -> F:
    """Add --env-file and --limit; both have taken effect before the command begins."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value:
            os.environ.update(read_env_file(Path(value)))

    def limit(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
        for each in value:
            name, equals, number = each.partition("=")
            if name not in LIMITS or not equals or not number.isdigit():
                raise click.BadParameter(f"{each!r} is not {' or '.join(f'{known}=N' for known in LIMITS)}")
            LIMITS[name](int(number))

    command = click.option(
        "--limit",
        metavar="WHAT=N",
        multiple=True,
        expose_value=False,
        is_eager=True,
        callback=limit,
        help="Take no more than memory=BYTES or files=N, or stand back by nice=N.",
    )(command)
    return click.option(
        "--env-file",
        metavar="FILE",
        expose_value=False,
        is_eager=True,
        callback=read,
        help="Put the NAME=value lines of this file into the environment.",
    )(command)


def read_env_file(path: Path) -> dict[str, str]:
    """The variables in a file: NAME=value, one on each line, perhaps in quotes or after `export`; # begins a comment.

    Raises:
        ConfigError: it cannot be read, or a line is of another form; the line is named, not shown: it may be secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path}: the environment file cannot be read: {why}") from exc
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}:{number}: not NAME=value")
        found[match[1]] = _unquoted(match[2], f"{path}:{number}")
    return found


def _unquoted(value: str, where: str) -> str:
    quote = value[:1]
    if quote in ("'", '"'):
        end = value.find(quote, 1)
        rest = value[end + 1 :].strip()
        if end < 0 or (rest and not rest.startswith("#")):
            raise ConfigError(f"{where}: the quote at its beginning is not closed at its end")
        return value[1:end]
    return re.split(r"\s#", value, maxsplit=1)[0].rstrip()


def _set(what: str, limit: str, number: int) -> None:
    try:
        import resource

        resource.setrlimit(getattr(resource, limit), (number, number))
    except (ImportError, ValueError, OSError) as exc:
        raise SetupError(f"--limit {what}={number}: the operating system refuses: {exc}") from exc


def _memory(number: int) -> None:
    # Data, not address space: ZeroMQ and glibc reserve far more addresses than they ever use.
    _set("memory", "RLIMIT_DATA", number)


def _files(number: int) -> None:
    _set("files", "RLIMIT_NOFILE", number)


def _nice(number: int) -> None:
    os.nice(number)


LIMITS: Final[Mapping[str, Callable[[int], None]]] = {"memory": _memory, "files": _files, "nice": _nice}
