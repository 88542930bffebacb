"""`mesh store`, and `mesh store backup`, `check` and `info`.

Owns: their options and output.
Leaves to others: the store (store.service), running it (worker.worker), its client (engines.sqlite.client).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from mesh.cli import backup_file, exits, loop, process, report, setting
from mesh.cli.output import for_people, json_option, note, progress, wants_json, write_json, write_table
from mesh.errors import MeshError, SetupError

if TYPE_CHECKING:
    from mesh.engines.sqlite.client import StoreAdmin

T = TypeVar("T")

#: A store that is being restarted is back within so many seconds.
WAIT_S = 5.0


@click.group("store", invoke_without_command=True)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a directory that another store uses: `mesh roll` starts the next store early.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, wait: float) -> int | None:
    """Run the store, which keeps durable data, until SIGTERM or Ctrl-C.

    It owns the files in [store] dir: tasks, durable events, state, schedules and locks. Only one store runs for a
    directory; a second one refuses to start. Sub-commands query the running store.

    It ends with exit code 5, and supervisor does not start it again, when an operator must act: the data is damaged,
    another program has changed its files, or they are not those of the store that was there before.
    """
    if ctx.invoked_subcommand is not None:
        return None
    from mesh.store import running

    settings = setting.settings()
    process.prepare(settings, "store")
    if sys.stderr.isatty():
        note(f"store · {settings.store.dir} · pid {os.getpid()} · Ctrl-C stops")
    try:
        return loop.run(running.run(settings, wait))
    except MeshError as error:
        from mesh.engines.sqlite.disk import Damaged

        if not isinstance(error, Damaged):
            raise
        report.tell(error, as_json=wants_json())
        running.outlast_start()
        return exits.UNSOUND


@command.command("init", short_help="Create an empty store, or accept the existing one.")
@click.option("--replace", is_flag=True, help="Also if another store was recorded here, or the recorded one is gone.")
@json_option
def init(replace: bool) -> int:
    """Make an empty store in [store] dir, or accept the existing one as the store of this project.

    The id of a store is recorded beside its directory (for `data` in `data.id`). When an id is recorded, a store does
    not start in an empty directory, or with the files of another store: its disk may simply not be mounted. This
    command refuses that, too, unless --replace confirms it. Existing files are not removed. The store must not run.
    """
    from mesh.engines.sqlite.core import Core
    from mesh.engines.sqlite.disk import Damaged

    core = Core(setting.settings().store.dir)
    try:
        core.open(replace=replace)
    except Damaged as error:
        report.tell(error, as_json=wants_json())
        return exits.UNSOUND
    try:
        made = {"path": str(core.path), "id": core.id, "tasks": core.info().tasks, "events": core.info().events}
    finally:
        core.close()
    if wants_json():
        write_json(made)
    else:
        note(f"store {made['id']} in {made['path']}: {made['tasks']:,} tasks, {made['events']:,} events")
    return exits.OK


@command.command("backup", short_help="Copy all data to PATH while the store runs.")
@click.argument("path", metavar="[PATH]", required=False)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@json_option
def backup(path: str | None, overwrite: bool) -> int:
    """Copy all data to PATH while the store runs: one file, a snapshot of one instant.

    The store writes the copy to its directory of backups ([store] backups), and to no other place. From there this
    command moves it to PATH, as your own user. Without PATH the copy stays there.

    The copy is checked before it gets its final name. To restore it: stop the store, and replace the file that
    `mesh store info` shows.
    """
    target = Path(os.path.abspath(path)) if path is not None else None
    if target is not None:
        backup_file.check_target(target, overwrite=overwrite)
    settings = setting.settings()
    with progress(f"copying to {target or settings.store.backups_dir}"):
        made = loop.run(_ask(lambda admin: admin.backup()))
        if target is not None:
            if made.host != settings.mesh.host:
                raise SetupError(
                    f"the backup is {made.path} on host {made.host}: this command moves files of its own host only"
                )
            # Take the directory from this configuration, not from the answer: this file of this host is removed.
            source = settings.store.backups_dir / os.path.basename(made.path)
            backup_file.move(source, target, size_bytes=made.size_bytes, overwrite=overwrite)
            made = msgspec.structs.replace(made, path=str(target))
    if wants_json():
        write_json(made)
    else:
        note(f"{made.path}: {_size(made.size_bytes)}, checked, in {made.seconds:.1f} s")
    return exits.OK


@command.command("check", short_help="Read all data and report damage.")
@json_option
def check() -> int:
    """Read all data and report damage. When no store runs, the file itself is read."""
    from mesh.errors import Unavailable

    with progress("reading all data"):
        try:
            faults = loop.run(_ask(lambda admin: admin.check(), wait_s=1.0))
        except Unavailable:
            faults = _check_file()
    if wants_json():
        write_json({"sound": not faults, "faults": faults})
    elif faults:
        note("\n".join(faults))
    else:
        note("no damage found")
    return exits.FAILED if faults else exits.OK


def _check_file() -> list[str]:
    from mesh.engines.sqlite.core import Core

    return Core(setting.settings().store.dir).check()


@command.command("info", short_help="Where the data is, its size, and whether it can be written.")
@json_option
def info() -> int:
    """Show where the data is, how large it is, and whether it can be written."""
    found = loop.run(_ask(lambda admin: admin.info(timeout_s=WAIT_S)))
    if wants_json():
        write_json(found)
        return exits.OK
    rows = [
        ("id", found.id),
        ("file", f"{found.path} on {found.host}, schema {found.schema}"),
        ("size", f"{_size(found.file_bytes)}, {_size(found.free_bytes)} of it free; log {_size(found.log_bytes)}"),
        ("rows", f"{found.tasks:,} tasks, {found.events:,} events"),
        ("process", f"pid {found.pid}, for {for_people(found.uptime_s)}"),
        ("commits", f"{found.turns:,}, of {found.units:,} units; {found.waiting_units:,} wait"),
        ("workers", f"{found.sessions:,}"),
        ("writable", "yes" if found.writable else f"NO: {found.trouble}"),
    ]
    write_table(("store", ""), rows)
    return exits.OK


async def _ask(question: Callable[[StoreAdmin], Awaitable[T]], wait_s: float = WAIT_S) -> T:
    """The answer of the store; waits up to `wait_s` seconds for a store to run.

    Raises:
        Unavailable: no store runs.
    """
    from mesh.engines.sqlite.client import StoreEngine
    from mesh.engines.sqlite.messages import SERVICE

    async with loop.connected() as node:
        await node.wait_for(SERVICE, wait_s)
        engine = StoreEngine(node.client, node.clock)
        try:
            return await question(engine.admin)
        finally:
            await engine.close()


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
