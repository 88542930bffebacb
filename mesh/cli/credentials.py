"""What `mesh apikeys` and `mesh users` share: their file, and the options that say what a caller may do.

Owns: these options, and finding the file. Leaves to others: the files themselves (gateway.edge.auth).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from mesh.cli.output import note

F = TypeVar("F", bound=Callable[..., Any])
_SEPARATORS: Final = re.compile(r"[,\s]+")
_USUAL: Final = {"apikeys": "apikeys.json", "basic": "users.json"}
_NAME: Final = re.compile(r"[!-~]{1,128}")


class Where(NamedTuple):
    """A file of credentials.

    Attributes:
        advice: what to add to mesh.toml so that gateways use it; "" when they do.
    """

    path: Path
    advice: str


def file_of(table: str, given: str | None) -> Where:
    """The file of --file, of [auth.TABLE], or the usual one of the project.

    Raises:
        ConfigError: the settings are invalid.
    """
    from mesh.cli import setting

    if given is not None:
        return Where(Path(given).expanduser().absolute(), "")
    settings = setting.settings()
    name = _USUAL[table]
    configured = getattr(settings.auth, table).file
    if configured is not None:
        return Where(settings.root / configured, "")
    return Where(
        settings.root / name, f'for gateways to use it, add to mesh.toml:\n\n  [auth.{table}]\n  file = "{name}"\n'
    )


def file_option(table: str) -> Callable[[F], F]:
    """The option --file."""
    return click.option("--file", "file", metavar="FILE", help=f"Use this file instead of [auth.{table}] file.")


def rights_options(command: F) -> F:
    """The options --scopes, --roles and --tenant."""
    for option in (
        click.option("--tenant", default="", metavar="NAME", callback=_printable, help="The tenant of its requests."),
        click.option("--roles", multiple=True, metavar="LIST", callback=_names, help="Roles, separated by commas."),
        click.option("--scopes", multiple=True, metavar="LIST", callback=_names, help="Scopes, separated by commas."),
    ):
        command = option(command)
    return command


def _names(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    names = [name for each in value for name in _SEPARATORS.split(each) if name]
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise click.BadParameter(f"{name!r:.80} is not a name; use printable ASCII without spaces")
    return names


def _printable(ctx: click.Context, param: click.Parameter, value: str) -> str:
    check_name(value)
    return value


def check_name(value: str) -> str:
    """A principal or tenant.

    Raises:
        click.BadParameter: services could not receive it.
    """
    from mesh.calls.propagation import accept_name

    if accept_name(value) != value:
        raise click.BadParameter(f"{value!r:.80} is not printable text of at most 256 characters")
    return value


def moment(at: float) -> str:
    """An instant for people; "" for none."""
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="minutes") if at else ""


def advise(where: Where) -> None:
    """Say what is left to do, if anything."""
    if where.advice:
        note(where.advice)
