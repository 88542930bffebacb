"""The copies of each role: declared in mesh.toml, chosen by `mesh scale`, present as program files.

Owns: the directory of program files, the chosen numbers in it, and that only one command changes it at a time.
Leaves to others: the text of a program file (programs), updating supervisord (processes, plugin).

A chosen number survives `mesh down`, a restart of supervisord and, if the run directory does, of the machine. It
applies until `mesh scale NAME=declared`, or until the number in mesh.toml changes: the later decision takes precedence.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from mesh.config import Settings
from mesh.errors import ConfigError, LockTaken, SetupError
from mesh.supervisord.layout import WANTED, Layout
from mesh.supervisord.programs import GATEWAY, SIGN, Role, owner, roles

CHOSEN: Final = "replicas.json"
LOCK: Final = ".lock"
PIN: Final = ".pin.conf"


class Choice(msgspec.Struct, frozen=True):
    """A number that was chosen by `mesh scale` or the autoscaler.

    Attributes:
        declared: the number in mesh.toml at that time.
    """

    chosen: int
    declared: int


class Roster:
    """The program files of one project.

    Attributes:
        roles: the roles that mesh.toml declares, by name, in the order in which they start.
        directory: of the files.
        fixed: the groups that supervisord.conf itself defines.
    """

    def __init__(self, layout: Layout, settings: Settings) -> None:
        """Raises:
        ConfigError: mesh.toml declares workers, and supervisord.conf has no place for them; or a role cannot be run.
        """
        named = [name for name, service in settings.services.items() if service.runs]
        if layout.directory is None or not layout.plugged:
            lacking = "[include]" if layout.directory is None else "[rpcinterface:mesh]"
            what = f"the workers of [services.{named[0]}]" if named else "changing the number of workers"
            raise ConfigError(f"{layout.conf}: {lacking} is missing, which {what} needs; add:\n{WANTED}")
        self.directory: Path = layout.directory
        self.fixed = layout.fixed
        # A project with a program for the gateways in supervisord.conf keeps using it.
        own_gateway = any(program.verb == GATEWAY and not program.included for program in layout.programs)
        self.roles: dict[str, Role] = roles(settings, layout.fixed, gateway=not own_gateway)

    # --- numbers ------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        """The wanted number of copies: the chosen number, or the declared one."""
        role = self.roles[name]
        choice = self._choices().get(name)
        return choice.chosen if choice is not None and choice.declared == role.declared else role.declared

    def choose(self, name: str, count: int) -> None:
        """Record a chosen number; the declared number is not recorded."""
        choices = self._choices()
        declared = self.roles[name].declared
        if count == declared:
            choices.pop(name, None)
        else:
            choices[name] = Choice(count, declared)
        self._write(CHOSEN, msgspec.json.encode(choices).decode() + "\n")

    def _choices(self) -> dict[str, Choice]:
        try:
            text = (self.directory / CHOSEN).read_bytes()
        except FileNotFoundError:
            return {}
        try:
            return msgspec.json.decode(text, type=dict[str, Choice])
        except msgspec.MsgspecError as exc:
            raise SetupError(
                f"{self.directory / CHOSEN} cannot be read ({exc}); delete it to use the numbers of mesh.toml"
            ) from exc

    # --- files --------------------------------------------------------------------------------------------

    def present(self, name: str) -> dict[int, str]:
        """The copies that have a program file, by number, with its text."""
        return self.roles[name].texts(self._files(name))

    def unknown(self) -> list[str]:
        """Names with program files that mesh.toml does not declare (any more)."""
        return sorted({owner(file) for file in self._all()} - set(self.roles))

    def wanted(self, name: str) -> dict[int, str]:
        """The wanted copies, with their texts from the current mesh.toml."""
        role = self.roles[name]
        return {number: role.text(number) for number in range(self.count(name))}

    def keep(self, name: str, texts: Mapping[int, str]) -> None:
        """Write program files for these copies, and remove all others of this name.

        supervisor can read the files even if this is interrupted: the file of a group is created after the files of its
        members, and removed before them.
        """
        role = self.roles[name]
        # supervisor rejects a program file if its log cannot be written.
        role.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = role.files(texts)
        there = self._files(name)
        for file, text in files.items():
            if there.get(file) != text:
                self._write(file, text)
        self._remove(set(there) - set(files))

    def forget(self, name: str) -> None:
        """Remove every program file of a name."""
        self._remove(self._files(name))

    def refresh(self) -> None:
        """Update all files to mesh.toml and the chosen numbers, for a supervisord that starts."""
        for name in self.pins():
            self.unpin(name)
        for name in self.unknown():
            self.forget(name)
        for name in self.roles:
            self.keep(name, self.wanted(name))

    def _files(self, name: str) -> dict[str, str]:
        return {file: text for file, text in self._all().items() if owner(file) == name}

    def _all(self) -> dict[str, str]:
        texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(self.directory.glob("*.conf"))}
        # Leave files of other authors alone; supervisor reads them, too.
        return {file: text for file, text in texts.items() if text.startswith(SIGN) and not file.endswith(PIN)}

    def _remove(self, files: Iterator[str] | set[str] | dict[str, str]) -> None:
        for file in sorted(files, key=lambda each: (not each.endswith(".group.conf"), each)):
            (self.directory / file).unlink(missing_ok=True)

    def _write(self, file: str, text: str) -> None:
        self._make()
        # Replace atomically: supervisord may read at any moment. Its [include] ignores names that begin with a dot.
        new = self.directory / f".{file}.new"
        new.touch(mode=0o600)
        new.write_text(text, encoding="utf-8")
        os.replace(new, self.directory / file)

    def _make(self) -> None:
        # Create each one separately: `parents=True` would make the parents accessible to others.
        for directory in (self.directory.parent, self.directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- pins ---------------------------------------------------------------------------------------------

    def pins(self) -> dict[str, str]:
        """The pins that keep programs of supervisord.conf itself on a release, by name (see standing)."""
        found = sorted(self.directory.glob(f"*{PIN}"))
        return {path.name.removesuffix(PIN): path.read_text(encoding="utf-8") for path in found}

    def pin(self, name: str, text: str) -> None:
        """Add these sections, which override those of supervisord.conf."""
        self._write(name + PIN, text)

    def unpin(self, name: str) -> None:
        """Remove a pin, so that supervisord.conf applies again."""
        (self.directory / (name + PIN)).unlink(missing_ok=True)

    # --- one at a time ------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Take the exclusive lock for changes.

        Raises:
            LockTaken: another command, named in the message, holds the lock.
        """
        self._make()
        with (self.directory / LOCK).open("a+", encoding="utf-8") as file:
            try:
                # The kernel releases the lock however its owner ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "another command"
                raise LockTaken(f"{who} is changing the processes; wait until it is done") from None
            file.truncate(0)
            file.write(f"{' '.join(['mesh', *sys.argv[1:2]])} (pid {os.getpid()})")
            file.flush()
            yield


def of(layout: Layout, settings: Settings) -> Roster | None:
    """The roster of a project; None when supervisord.conf itself defines all programs.

    Raises:
        ConfigError: as Roster.
    """
    asked = any(service.runs for service in settings.services.values())
    if layout.directory is None and not layout.plugged and not asked:
        return None
    return Roster(layout, settings)


__all__ = ["CHOSEN", "GATEWAY", "Choice", "Roster", "of"]
