"""`mesh keys`. Owns: its output. Leaves to others: the files (transport.curve.key_files, transport.curve.key_store)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from mesh.cli import exits
from mesh.cli.output import json_option, note, wants_json, write_json, write_table

if TYPE_CHECKING:
    from mesh.transport.curve.key_files import KeyPair, PublicKey

#: The directory of keys, below the project, when keys.dir is not set.
DEFAULT: Final = "keys"

_dir_option = click.option("--dir", "directory", metavar="DIR", help="Use this directory instead of [keys] dir.")


@click.group("keys", context_settings={"help_option_names": ["-h", "--help"]})
@json_option
def command() -> None:
    """Make, list, rotate and revoke the keys that secure links between hosts.

    A key has a name that identifies its holder: a service, gateway, hub, operator (the command line) or client
    (`mesh.connect`); or one of these on a single host, as in orders@host-1. Copy NAME.secret to the hosts where NAME
    runs, and nowhere else; copy NAME.public and revoked.keys to every host. Running processes see both within a second.

    \b
      mesh keys make hub gateway operator orders
      mesh keys rotate orders; mesh roll orders; mesh keys revoke orders --retiring
    """


@command.command("make")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_dir_option
@json_option
def make(names: tuple[str, ...], directory: str | None) -> None:
    """Make a key for each NAME. Only this user can read the files."""
    from mesh.transport.curve import key_files, key_store

    where, configured = _where(directory)
    _tell(
        key_store.make_each(where, names),
        lambda pair: f"made {pair.name}  {key_files.shown(pair.public)}",
    )
    if wants_json():
        return
    note(f"NAME.public goes to {where} of every host, NAME.secret only where NAME runs")
    if not configured:
        note(f'to secure links with keys, add to mesh.toml:\n\n  [keys]\n  dir = "{_relative(where)}"\n')


@command.command("list")
@_dir_option
@json_option
def show(directory: str | None) -> int:
    """Show every key: its name, its age, and whether its secret half is here.

    A key is shown by its first digits; --json shows all digits. A file that cannot be used is shown as UNREADABLE, with
    the reason, and the exit code is 1: no process starts with such a directory.
    """
    from mesh.transport.curve import key_files, key_store

    where, _ = _where(directory)
    keys, broken = key_store.listed(where)
    rows = [_row(where, key) for key in keys]
    rows += [
        _Row(path.name.removesuffix(key_files.PUBLIC), "", "UNREADABLE", problem=exc.message) for path, exc in broken
    ]
    code = exits.FAILED if broken else exits.OK
    if wants_json():
        write_json([row._asdict() for row in rows])
        return code
    secret = {True: "here", False: "", None: "UNUSABLE"}
    write_table(
        ("name", "key", "state", "made", "secret", "revoked"),
        [
            (
                row.name,
                row.public[: key_files.SHOWN_DIGITS],
                row.state,
                row.made,
                secret[row.secret_here],
                row.revoked,
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.problem:
            note(row.problem)
    return code


@command.command("rotate")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_dir_option
@json_option
def rotate(names: tuple[str, ...], directory: str | None) -> None:
    """Give each NAME a new key. The old key stays valid, as retiring, so that no link is cut.

    A process keeps the key that it started with. So: copy NAME.public to every host, then NAME.secret to the hosts
    where NAME runs, restart the processes there (`mesh roll`), and revoke the old key: `mesh keys revoke NAME
    --retiring`.
    """
    from mesh.transport.curve import key_files, key_store

    where, _ = _where(directory)
    _tell(
        key_store.rotate_each(where, names),
        lambda pair: f"rotated {pair.name}  {key_files.shown(pair.public)}, the previous key is retiring",
    )
    if wants_json():
        return
    note("1. copy NAME.public to every host   2. copy NAME.secret to where NAME runs   3. restart NAME: mesh roll NAME")
    each = " ".join(dict.fromkeys(names))
    note(f"4. mesh keys revoke {each} --retiring   5. copy NAME.public and revoked.keys to every host")


@command.command("revoke")
@click.argument("names", nargs=-1, required=True, metavar="NAME|KEY...")
@click.option("--retiring", is_flag=True, help="Only the old key of a NAME that was rotated.")
@_dir_option
@json_option
def revoke(names: tuple[str, ...], retiring: bool, directory: str | None) -> None:
    """Revoke keys permanently: all keys of a NAME, or one KEY, given by its first digits (8 at least).

    When one of them is unknown, none is revoked. Processes that use this directory cut the links of a revoked key
    within a second. Copy revoked.keys to every other host: it overrides all other files there.
    """
    from mesh.transport.curve import key_files, key_store

    where, _ = _where(directory)
    ended = key_store.revoke(where, *names, retiring=retiring)
    if wants_json():
        write_json([{"name": key.name, "public": key.public.hex(), "revoked": key.revoked} for key in ended])
        return
    for key in ended:
        click.echo(f"revoked {key.name}  {key_files.shown(key.public)}")
    note(f"it takes effect here within a second; copy {where / key_files.REVOKED} to every other host")


def _tell(pairs: Iterable[KeyPair], line: Callable[[KeyPair], str]) -> None:
    """Make or rotate keys by iterating over `pairs`, and report each finished key, even when the next one fails."""
    done = []
    try:
        for pair in pairs:
            done.append({"name": pair.name, "public": pair.public.hex()})
            if not wants_json():
                click.echo(line(pair))
    finally:
        if done and wants_json():
            write_json(done)


def _where(directory: str | None) -> tuple[Path, bool]:
    """The directory to use, and whether the configuration names it."""
    from mesh.cli import setting

    if directory is not None:
        return Path(directory).expanduser().absolute(), True
    settings = setting.settings()
    if settings.keys.dir is not None:
        return settings.keys.dir, True
    return settings.root / DEFAULT, False


def _relative(where: Path) -> str:
    from mesh.cli import setting

    root = setting.settings().root
    return str(where.relative_to(root)) if where.is_relative_to(root) else str(where)


class _Row(NamedTuple):
    """One key as `list` shows it; `secret_here` is None, with the `problem`, when the secret file cannot be used, and
    `state` is UNREADABLE when a file of public keys cannot."""

    name: str
    public: str
    state: str
    made: str = ""
    revoked: str = ""
    secret_here: bool | None = False
    problem: str = ""


def _row(where: Path, key: PublicKey) -> _Row:
    from mesh.transport.curve import key_files, key_store

    state = "revoked" if key.revoked else "retiring" if key.retiring else "current"
    here: bool | None
    problem = ""
    try:
        here = not key.revoked and key_store.has_secret(where, key)
    except key_files.BadKeys as exc:
        here, problem = None, exc.message
    return _Row(key.name, key.public.hex(), state, key.made, key.revoked, here, problem)
