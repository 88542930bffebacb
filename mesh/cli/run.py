"""`mesh run`. Owns: its options, finding service classes, the start-up note. Leaves to others: running (worker)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.confine import check_room, confine_options
from mesh.cli.output import json_option, note
from mesh.errors import SetupError

if TYPE_CHECKING:
    from mesh.service.service import Service


class NoSuchService(SetupError):
    """A word of the command line leads to no service class; the message says where the way ended."""

    code = "no_such_service"


@click.command("run")
@click.argument("services", nargs=-1, metavar="[MODULE:CLASS]...")
@click.option("--reload", is_flag=True, help="Start again whenever a source file changes.")
@click.option("--check", is_flag=True, help="Only import them, and see whether the limits leave room to begin.")
@confine_options
@json_option
def command(services: tuple[str, ...], reload: bool, check: bool) -> int:
    """Run services in this process, until SIGTERM or Ctrl-C; then finish what is in hand and leave.

    Without a CLASS every service of the module runs; a file's name serves as well. Without arguments, what
    [mesh] services in mesh.toml names.

    \b
      mesh run services.greeting:Greeting --reload
      mesh run greeting.py
    """
    if check and services:
        load(services)
        check_room()
        return exits.OK
    settings = setting.settings()
    words = services or tuple(settings.mesh.services)
    if not words:
        raise click.UsageError("name a service, like `mesh run services.greeting:Greeting`")
    if reload and not check:
        from mesh.cli.reload import watch

        return watch(words, settings)
    from mesh.service import worker

    classes = load(words)
    check_room()
    if check:
        return exits.OK
    process.prepare(settings, ",".join(each.name for each in classes))
    if sys.stderr.isatty():
        names = ", ".join(each.name for each in classes)
        note(f"{names} · pid {os.getpid()} · hub {', '.join(settings.mesh.hubs)} · Ctrl-C stops")
    return loop.run(worker.run(classes, settings))


def load(words: Sequence[str]) -> list[type[Service]]:
    """The classes that the words name, each once, in order.

    Raises:
        NoSuchService: a module cannot be found, or has no such class, or no service at all.
    """
    # `python -m` does the same; the console script starts with its own directory instead.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: list[type[Service]] = []
    for word in words:
        found += [each for each in _load(word) if each not in found]
    return found


def _load(word: str) -> list[type[Service]]:
    from mesh.service.service import Service

    path, _, name = word.partition(":")
    module_name = path.removesuffix(".py").strip("./").replace("/", ".") if path.endswith(".py") else path
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        # An import inside of the module that fails is its author's to see in full.
        if exc.name and not (module_name == exc.name or module_name.startswith(exc.name + ".")):
            raise
        raise NoSuchService(f"{word}: there is no module {exc.name} in {os.getcwd()} or among the installed") from exc
    services = {
        attribute: each
        for attribute, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, Service) and each is not Service
    }
    if name:
        if name not in services:
            known = ", ".join(services) or "none"
            raise NoSuchService(f"{word}: {module_name} has no service {name!r}; it has {known}")
        return [services[name]]
    own = [each for each in services.values() if f"{each.__module__}.".startswith(f"{module_name}.")]
    if not own:
        raise NoSuchService(f"{word}: {module_name} defines no subclass of mesh.Service")
    return own
