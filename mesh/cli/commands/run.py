"""`mesh run`. Owns: its options, the start-up note. Leaves to others: finding classes (loading), running (worker)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.confine import check_room, confine_options, soft_memory
from mesh.cli.loading import load, named
from mesh.cli.output import json_option, note, wants_json, write_json

if TYPE_CHECKING:
    from mesh.config import Settings


@click.command("run")
@click.argument("services", nargs=-1, metavar="[MODULE:CLASS]...")
@click.option("--reload", is_flag=True, help="Start again whenever a source file changes.")
@click.option("--as", "name", default="", metavar="NAME", help="Run a single class as the service of this name.")
@click.option("--asgi", is_flag=True, help="Run an ASGI application: `mesh run shop.app:app --asgi`.")
@click.option("--wsgi", is_flag=True, help="Run a WSGI application.")
@click.option("--factory", is_flag=True, help="With --asgi or --wsgi: the word names a function that makes it.")
@click.option("--route", multiple=True, metavar="PATH", help="With --asgi or --wsgi: its paths; / unless given.")
@click.option(
    "--canary",
    is_flag=True,
    help="Take no calls before `mesh roll --canary` gives a share of them, and no tasks; used by that command.",
)
@click.option("--check", is_flag=True, help="Only import them, and check that the limits leave enough memory to start.")
@confine_options
@json_option
def command(
    services: tuple[str, ...],
    reload: bool,
    name: str,
    asgi: bool,
    wsgi: bool,
    factory: bool,
    route: tuple[str, ...],
    canary: bool,
    check: bool,
) -> int:
    """Run services in this process, until SIGTERM or Ctrl-C; then finish running work and exit.

    Without a CLASS every service of the module runs; the module may be given as a file name. Without arguments, the
    services in [mesh] services of mesh.toml run. With --as NAME the settings of [services.NAME] apply.

    \b
      mesh run services.greeting:Greeting --reload
      mesh run greeting.py
      mesh run shop.app:app --asgi --route /shop
    """
    if asgi or wsgi:
        services = _applications(services, "asgi" if asgi else "wsgi", factory, route)
    elif factory or route:
        raise click.UsageError("--factory and --route belong to --asgi and --wsgi")
    if check and services:
        # Ignore other errors in mesh.toml: this checks the classes only.
        settings = setting.usable().settings
        found = named(load(services), name, settings)
        _check_interceptors(settings)
        check_room()
        if wants_json():
            write_json({"services": [{"name": each.name, "needs": list(each.needs)} for each in found]})
        return exits.OK
    settings = setting.settings()
    words = services or tuple(settings.mesh.services)
    if not words:
        raise click.UsageError("name a service, like `mesh run services.greeting:Greeting`")
    if reload and not check:
        from mesh.cli.reload import watch

        return watch(("--as", name, *words) if name else words, settings)
    if check:
        named(load(words), name, settings)
        _check_interceptors(settings)
        check_room()
        return exits.OK
    from mesh.worker import worker
    from mesh.worker.watchdog import Watchdog, limits_of, supervised

    # At a terminal, the process may be stopped in a debugger.
    ends = sys.stdin is None or not sys.stdin.isatty()
    run_dir = settings.mesh.run_dir if supervised() else None
    process.prepare(settings, ",".join(words))
    watchdog = Watchdog(limits_of(settings, soft_memory()), ends=ends, run_dir=run_dir)
    watchdog.start()
    classes = named(load(words), name, settings)
    check_room()
    process.prepare(settings, ",".join(each.name for each in classes))
    if sys.stderr.isatty():
        names = ", ".join(each.name for each in classes)
        note(f"{names} · pid {os.getpid()} · hub {', '.join(settings.mesh.hubs)} · Ctrl-C stops")
    return loop.run_services(worker.run(classes, settings, watchdog=watchdog, canary=canary))


def _check_interceptors(settings: Settings) -> None:
    """Raise SetupError when an interceptor of mesh.toml cannot be used: no worker could start."""
    from mesh.service.interceptors import Interceptors

    Interceptors(settings)


def _applications(words: tuple[str, ...], kind: str, factory: bool, routes: tuple[str, ...]) -> tuple[str, ...]:
    """The words for applications, as `class` in mesh.toml has them: `asgi:shop.app:app()@/shop,/old`."""
    for word in words:
        if ":" not in word:
            raise click.UsageError(f"{word}: write MODULE:ATTRIBUTE, like shop.app:app")
    for path in routes:
        if not path.startswith("/"):
            raise click.UsageError(f"--route {path}: it must begin with /")
    below = f"@{','.join(routes)}" if routes else ""
    return tuple(f"{kind}:{word}{'()' if factory else ''}{below}" for word in words)
