"""`mesh dev`: hub, store, gateway and workers in one process, which is restarted when a source file changes.

Owns: the options, the listening socket, which stays open while the process restarts, and the directory of the data.
Leaves to others: the process (dev_process), watching and restarting (reload), answers while nothing runs (dev_apology).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mesh.cli import exits, loop, process, report, setting
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.errors import SetupError

if TYPE_CHECKING:
    from mesh.cli.dev_process import Running
    from mesh.config import Settings

#: In run_dir: the store's files, and the lock of the `mesh dev` that uses them.
DATA: Final = "dev"
LOCK: Final = "dev.lock"
#: The exit code of the child when another mesh runs in the project: no change of a file would help. (EX_TEMPFAIL)
TAKEN: Final = 75
#: Loggers of lines that say what the start-up note says, or what a restart always does; shown with log.level = "debug".
MUTED: Final = ("mesh.worker", "mesh.store", "mesh.gateway.app", "mesh.discovery", "mesh.engines")
#: Routes that the start-up note lists.
MOST_ROUTES: Final = 12


@click.command("dev")
@click.argument("services", nargs=-1, metavar="[MODULE:CLASS]...")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Serve HTTP on this port.")
@click.option("--keep", is_flag=True, help="Keep tasks, state and events for the next `mesh dev`.")
@click.option("--no-reload", is_flag=True, help="Do not restart when a file changes.")
@click.option("--fd", type=int, hidden=True, help="Run in this process, on this listening socket (internal).")
@click.option("--life", type=int, hidden=True, help="A pipe that closes when the parent process ends (internal).")
@json_option
def command(
    services: tuple[str, ...], port: int | None, keep: bool, no_reload: bool, fd: int | None, life: int | None
) -> int:
    """Run a whole mesh in one process, until Ctrl-C: for development, not for production.

    Hub, store, gateway and workers share one process, which is restarted whenever a source file or mesh.toml is saved.
    Meanwhile, new HTTP requests wait. Without arguments, everything runs that mesh.toml declares, one worker of each.

    Tasks, state and durable events survive a restart; they are in run/dev, and removed at the end, unless --keep is
    given.
    Other commands find this mesh as usual: `mesh call`, `mesh ps`, `mesh shell`.

    \b
      mesh dev hello.py
      mesh dev services.greeting:Greeting --port 8081
    """
    if fd is not None and life is not None:
        return _run_here(services, fd, life)
    settings = setting.settings(gateway__port=port)
    _check_words(services, settings)
    return _watch(services, settings, keep=keep, reloads=not no_reload)


def _check_words(words: tuple[str, ...], settings: Settings) -> None:
    """Report at once what no change of a source file would repair.

    Raises:
        UsageError: nothing is named. NoSuchService: there is no such file.
    """
    from mesh.apps.loading import path_of
    from mesh.cli.loading import NoSuchService

    if not words and not settings.mesh.services and not any(each.runs for each in settings.services.values()):
        raise click.UsageError("name a service, like `mesh dev hello.py`; without one, mesh.toml must declare some")
    for word in words:
        path = path_of(word)
        if path.endswith(".py") and not Path(path).is_file():
            raise NoSuchService(f"{word}: there is no file {Path(path).absolute()}")


# --- the parent ---------------------------------------------------------------------------------------


def _watch(words: tuple[str, ...], settings: Settings, *, keep: bool, reloads: bool) -> int:
    from mesh.cli import reload
    from mesh.cli.dev_apology import Apology
    from mesh.cli.dev_process import PARENT_DRAIN_S
    from mesh.gateway.app import bind

    if reloads and not reload.can_watch():
        note("changed files are not detected: install watchfiles (pip install 'zeromesh[reload]')")
        reloads = False
    listener = bind(settings.gateway.host, settings.gateway.port)
    alive, life = os.pipe()
    child_words = ["dev", *words, "--fd", str(listener.fileno()), "--life", str(alive)]
    if wants_json():
        child_words.append("--json")
    apology = Apology(listener)
    taken = False

    def start() -> reload.Child:
        apology.stop()
        return reload.spawn(*child_words, pass_fds=(listener.fileno(), alive))

    def ended(code: int) -> bool:
        nonlocal taken
        taken = code == TAKEN
        if not taken and reloads:
            apology.start()
        return taken

    try:
        with _data(settings.mesh.run_dir, keep=keep):
            try:
                code = reload.keep_running(
                    _roots(words, settings) if reloads else None, start, drain_s=PARENT_DRAIN_S, ended=ended
                )
            finally:
                apology.stop()
        return exits.FAILED if taken else code
    finally:
        apology.close()
        listener.close()
        os.close(life)
        os.close(alive)


def _roots(words: tuple[str, ...], settings: Settings) -> list[Path]:
    """The project, and the directories of files elsewhere."""
    from mesh.apps.loading import path_of

    found = [settings.root]
    for word in words:
        path = Path(path_of(word))
        if path.suffix == ".py" and not path.resolve().is_relative_to(settings.root.resolve()):
            found.append(path.resolve().parent)
    return found


@contextmanager
def _data(run_dir: Path, *, keep: bool) -> Iterator[None]:
    """The directory of the store's files, for this process alone; empty at the start and removed at the end, unless
    it is kept.

    Raises:
        SetupError: another `mesh dev` has it.
    """
    from mesh.transport.endpoints import ensure_run_dir

    is_new = not run_dir.exists()
    ensure_run_dir(run_dir)
    with (run_dir / LOCK).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"another `mesh dev` runs in this project: it has {run_dir / LOCK}") from None
        try:
            if not keep:
                shutil.rmtree(run_dir / DATA, ignore_errors=True)
            yield
        finally:
            if not keep:
                shutil.rmtree(run_dir / DATA, ignore_errors=True)
            (run_dir / LOCK).unlink(missing_ok=True)
            if is_new:
                try:
                    run_dir.rmdir()
                except OSError:
                    pass  # another process of this project uses it


# --- the child ----------------------------------------------------------------------------------------


def _run_here(words: tuple[str, ...], fd: int, life: int) -> int:
    from mesh.cli import dev_process
    from mesh.cli.dev_process import DRAIN_S
    from mesh.cli.dev_programs import declared
    from mesh.config.exposure import withheld
    from mesh.worker.watchdog import Watchdog, limits_of

    dev_process.own(fd, life)
    read = setting.settings()
    settings = setting.settings(
        store__dir=read.mesh.run_dir / DATA / "data",
        store__backups=read.mesh.run_dir / DATA / "backups",
        gateway__drain=DRAIN_S,
        worker__stop_timeout=DRAIN_S,
    )
    process.prepare(settings, "dev", muted=() if settings.log.level == "debug" else MUTED)
    watchdog = Watchdog(limits_of(settings), ends=False)
    watchdog.start()
    workers = dev_process.chosen(words, settings)
    try:
        return loop.run_services(
            dev_process.run(
                workers,
                settings,
                fd=fd,
                life=life,
                started=partial(_tell, has_docs="/docs" not in withheld(settings)),
                watchdog=watchdog,
                programs=() if words else declared(settings),
            )
        )
    except dev_process.Taken as exc:
        report.tell(exc, as_json=wants_json())
        return TAKEN


def _tell(running: Running, has_docs: bool) -> None:
    """Say what runs, and where."""
    docs = f"{running.http}/docs" if has_docs else None
    if wants_json():
        write_json(_as_data(running, docs))
        return
    names = ", ".join(each.service for each in running.instances)
    note(f"mesh dev · {names} · one process, for development only · Ctrl-C stops")
    routes = [(route, each) for each in running.instances for route in each.routes]
    for route, each in routes[:MOST_ROUTES]:
        note(f"  {route.verb:<6} {running.http}{route.path}   {each.service}.{route.method}")
    if len(routes) > MOST_ROUTES:
        note(f"  … and {len(routes) - MOST_ROUTES} more")
    note(f"  docs   {docs or 'not served on a network address: see gateway.public'}")


def _as_data(running: Running, docs: str | None) -> dict[str, Any]:
    return {
        "http": running.http,
        "docs": docs,
        "pid": os.getpid(),
        "services": [each.service for each in running.instances],
        "routes": [
            {"verb": route.verb, "path": route.path, "method": f"{each.service}.{route.method}"}
            for each in running.instances
            for route in each.routes
        ],
    }
