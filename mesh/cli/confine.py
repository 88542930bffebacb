"""Process settings that supervisor does not support: an environment file and resource limits.

Owns: the options for both, setting the limits on this process, and describing a limit to users.
Leaves to others: reading such a file (config.env_file), the values of the limits ([services.NAME] in mesh.toml,
supervisord.programs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mesh.config.env_file import read_env_file
from mesh.errors import ConfigError, SetupError

F = TypeVar("F", bound=Callable[..., Any])

#: Memory that a worker needs besides its own code until it is ready: measured 28 MiB, 24 of them the stacks of two
#: threads of libzmq and one of Python. Without this memory libzmq aborts the process, with no mention of memory.
ROOM_BYTES: Final = 32 * 2**20


#: Memory that a worker at its memory limit may use beyond it to finish or return its work: a few threads.
RESERVE_BYTES: Final = 32 * 2**20
_soft_bytes = [0]
#: The limit that was reached before `use_reserve` raised it.
_reached_bytes: list[int] = []


class TooLittleMemory(SetupError):
    """A memory limit is lower than what every worker needs."""

    code = "too_little_memory"


def env_file_option(command: F) -> F:
    """Add --env-file; it takes effect before the command begins."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value:
            try:
                os.environ.update(read_env_file(Path(value)))
            except ConfigError as exc:
                raise ConfigError(exc.message, details={"key": "env_file"}) from exc

    return click.option(
        "--env-file",
        metavar="FILE",
        expose_value=False,
        is_eager=True,
        callback=read,
        help="Put the NAME=value lines of this file to the environment.",
    )(command)


def confine_options(command: F) -> F:
    """Add --env-file and --limit; both take effect before the command begins."""

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
        help="Limit memory=BYTES or files=N, drain above memory_soft=BYTES, or lower the priority with nice=N.",
    )(command)
    return env_file_option(command)


def _set(what: str, limit: str, number: int, reserve: int = 0) -> None:
    try:
        import resource

        _, most = resource.getrlimit(getattr(resource, limit))
        above = number + reserve if most == resource.RLIM_INFINITY else max(number, min(number + reserve, most))
        resource.setrlimit(getattr(resource, limit), (number, above))
    except (ImportError, ValueError, OSError) as exc:
        message = f"--limit {what}={number}: the operating system rejects it: {exc}"
        raise SetupError(message, details={"key": what}) from exc


def _memory(number: int) -> None:
    # Limit data, not address space: ZeroMQ and glibc reserve far more addresses than they ever use.
    # The reserve above the limit is for the drain of a worker that has reached it (worker.watchdog).
    _set("memory", "RLIMIT_DATA", number, RESERVE_BYTES)


def _files(number: int) -> None:
    _set("files", "RLIMIT_NOFILE", number)


def _nice(number: int) -> None:
    os.nice(number)


def _memory_soft(number: int) -> None:
    _soft_bytes[0] = number


def soft_memory() -> int:
    """The memory in bytes above which this worker must be replaced; 0 when --limit does not set it."""
    return _soft_bytes[0]


LIMITS: Final[Mapping[str, Callable[[int], None]]] = {
    "memory": _memory,
    "memory_soft": _memory_soft,
    "files": _files,
    "nice": _nice,
}


def use_reserve() -> None:
    """Use the reserve above the memory limit, so that a process that has reached the limit can still report it."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != hard:
            _reached_bytes.append(soft)
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    except (ImportError, ValueError, OSError):
        pass


def memory_limit() -> str:
    """The memory limit of this process, as readable text with its source; "" when there is none."""
    try:
        import resource

        soft = _reached_bytes[0] if _reached_bytes else resource.getrlimit(resource.RLIMIT_DATA)[0]
    except ImportError:
        return ""
    if soft == resource.RLIM_INFINITY:
        return ""
    group = os.environ.get("SUPERVISOR_GROUP_NAME", "")
    where = f"[services.{group}] memory in mesh.toml" if group else "--limit memory"
    return f"the {soft / 2**20:.0f} MiB of {where}"


def has_room() -> bool:
    """Whether this process has enough memory left for what every worker needs besides its own code."""
    try:
        bytearray(ROOM_BYTES)
    except MemoryError:
        return False
    return True


def check_room() -> None:
    """Check, after a worker's code has been imported, that the memory limit leaves enough for the worker itself.

    Raises:
        TooLittleMemory: it does not.
    """
    limit = memory_limit()
    if limit and not has_room():
        need = f"a worker needs {ROOM_BYTES // 2**20} MiB beside its own code"
        raise TooLittleMemory(f"{limit} are not enough: {need}", details={"key": "memory"})
