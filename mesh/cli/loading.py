"""Finds the service classes that the words of a command line name.

Owns: module names and files, and the name that a section of mesh.toml gives to a class.
Leaves to others: importing a file (calls.importing), running the services (worker.worker).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mesh.errors import SetupError

if TYPE_CHECKING:
    from mesh.config import Settings
    from mesh.service.service import Service


class NoSuchService(SetupError):
    """A word of the command line names no service class; the message shows which part was not found."""

    code = "no_such_service"


def load(words: Sequence[str]) -> list[type[Service]]:
    """The classes that the words name, each once, in order.

    Raises:
        NoSuchService: a module cannot be found, or has no such class, or no service at all.
    """
    # As `python -m` does; sys.path of the console script begins with the script's own directory instead.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: list[type[Service]] = []
    for word in words:
        found += [each for each in _load(word) if each not in found]
    return found


def named(classes: list[type[Service]], name: str, settings: Settings) -> list[type[Service]]:
    """The classes as the section [services.NAME] runs them: a single class gets the name of the section.

    Raises:
        SetupError: the section has values for a service, but runs several services and none with its name.
    """
    if not name:
        return classes
    section = settings.services.get(name)
    if len(classes) == 1:
        return [_routed(classes[0], section.route if section is not None else []).named(name)]
    if section is not None and name not in [cls.name for cls in classes]:
        calls = settings.calls
        given = [
            key
            for key, value in (
                ("config", bool(section.config)),
                ("concurrency", section.concurrency != calls.concurrency),
                ("queue", section.queue != calls.queue),
            )
            if value
        ]
        if given:
            runs = ", ".join(cls.name for cls in classes)
            raise SetupError(
                f"[services.{name}] runs {runs}, and {given[0]} belongs to none of them: write it in "
                f"[services.{classes[0].name}]",
                details={"key": given[0]},
            )
    return classes


def _routed(cls: type[Service], prefixes: Sequence[str]) -> type[Service]:
    """An application below the paths of its section."""
    from mesh.apps.asgi import AsgiApplication
    from mesh.apps.loading import below

    return below(cls, prefixes) if prefixes and issubclass(cls, AsgiApplication) else cls


def _load(word: str) -> list[type[Service]]:
    from mesh.apps import loading as applications
    from mesh.service.service import Service

    if applications.is_application(word):
        return [applications.load(word, Path.cwd())]

    path, _, name = word.rpartition(":") if ":" in word else (word, "", "")
    module = _module(path, word)
    services = {
        attribute: each
        for attribute, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, Service) and each is not Service
    }
    if name:
        if name not in services:
            known = ", ".join(services) or "none"
            raise NoSuchService(f"{word}: {path} has no service {name!r}; it has {known}")
        return [services[name]]
    own = [each for each in services.values() if f"{each.__module__}.".startswith(f"{module.__name__}.")]
    if not own:
        raise NoSuchService(f"{word}: {path} defines no subclass of mesh.Service")
    return own


def _module(path: str, word: str) -> ModuleType:
    """The module of a dotted name or of a file.

    A file below the current directory is imported by its dotted name, so that its relative imports work. When that name
    belongs to another module, or the file is elsewhere, it is loaded by its path.
    """
    from mesh.calls.importing import load_file

    here = Path.cwd()
    is_file = path.endswith(".py")
    file = Path(path) if is_file else here / f"{path.replace('.', '/')}.py"
    file = (file if file.is_absolute() else here / file).resolve()
    if is_file and not file.is_file():
        raise NoSuchService(f"{word}: there is no file {file}")
    dotted = path
    if is_file:
        if not file.is_relative_to(here.resolve()):
            return load_file(file)
        dotted = ".".join(file.relative_to(here.resolve()).with_suffix("").parts)
        if not all(part.isidentifier() for part in dotted.split(".")):
            return load_file(file)
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as exc:
        # Show a failed import inside the module in full: its author needs the traceback.
        if exc.name and not (dotted == exc.name or dotted.startswith(exc.name + ".")):
            raise
        if file.is_file():
            return load_file(file)  # its directory has the name of another package
        raise NoSuchService(f"{word}: there is no module {exc.name} in {here} or among the installed packages") from exc
    found = getattr(module, "__file__", None)
    if file.is_file() and (found is None or Path(found).resolve() != file):
        return load_file(file)
    return module
