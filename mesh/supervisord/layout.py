"""The contents of a supervisord.conf: sockets, files, programs, and the HTTP address.

Owns: reading these keys as supervisor does, in the file and in included files.
Leaves to others: everything else in the files (supervisord itself), writing the included files (roster), and the state
of processes (control).
"""

from __future__ import annotations

import configparser
import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mesh.errors import ConfigError

#: sun_path holds 107 bytes and a zero; supervisord first binds "<file>.<its pid>" (a pid has up to 7 digits).
LONGEST_SOCKET = 107 - len(".4194304")

#: The placeholder for the directory of the file, in its values.
_HERE = "%(here)s"

#: The scheme of a Unix socket, as supervisor writes it.
UNIX = "unix://"

#: The commands that register their processes when they are ready.
REGISTERED = ("run", "program", "gateway", "store")

#: The default supervisord.conf, for a project that has none.
DEFAULT = Path(__file__).with_name("supervisord.conf")

#: The sections that a project's supervisord.conf needs, so that single workers can be added and removed.
WANTED = """\
[include]
files=run/programs/*.conf

[rpcinterface:mesh]
supervisor.rpcinterface_factory=mesh.supervisord.plugin:make"""


class Program(NamedTuple):
    """One [program:x], [fcgi-program:x] or [eventlistener:x].

    Attributes:
        group: the name before the colon in supervisorctl: that of its [group:…], or its own.
        copies: numprocs, the number of its processes.
        stop_s: stopwaitsecs, after which supervisor kills a process that does not stop.
        listens: "127.0.0.1:8080" if supervisord holds a listening TCP socket for the program, else "".
        included: it is defined in a file of [include].
        kind: of its section: "program", "fcgi-program" or "eventlistener".
        processes: their names as supervisorctl writes them.
        keys: its section in the file itself, without overrides in included files.
    """

    name: str
    group: str
    command: str
    copies: int
    stop_s: float
    listens: str
    included: bool
    kind: str
    processes: tuple[str, ...]
    keys: Mapping[str, str]

    @property
    def verb(self) -> str:
        """The sub-command of a `mesh …` command line, "" for any other program."""
        words = self.command.split()
        return words[1] if len(words) > 1 and Path(words[0]).name == "mesh" else ""


class Layout(NamedTuple):
    """One supervisord.conf, with what it includes.

    Attributes:
        conf: the file, absolute.
        socket: supervisord's own control socket.
        programs: in order of priority, the order in which they start.
        directory: where mesh may write program files, because [include] covers every `*.conf` in it; else None.
        plugged: it has [rpcinterface:mesh], which adds and removes single processes.
    """

    conf: Path
    socket: Path
    pidfile: Path
    logfile: Path
    programs: tuple[Program, ...]
    directory: Path | None
    plugged: bool

    @property
    def root(self) -> Path:
        """The directory of the file, `%(here)s` in it."""
        return self.conf.parent

    @property
    def server_url(self) -> str:
        """The value of SUPERVISOR_SERVER_URL that supervisord sets for its children."""
        return f"unix://{self.socket}"

    @property
    def listens(self) -> str:
        """The TCP address of the gateways: "127.0.0.1:8080", or "" when no program listens."""
        return next((program.listens for program in self.programs if program.listens), "")

    @property
    def unix(self) -> str:
        """The path of the Unix socket that supervisord holds for the gateways, or ""."""
        sockets = (program.keys.get("socket", "").strip() for program in self.programs)
        found = next((each for each in sockets if each.startswith(UNIX)), "")
        return found.removeprefix(UNIX).replace(_HERE, str(self.root))

    @property
    def serves(self) -> bool:
        """Whether supervisord holds a listening socket: gateways run."""
        return bool(self.listens or self.unix)

    @property
    def fixed(self) -> frozenset[str]:
        """The groups that are defined in the file itself, not in an included file."""
        return frozenset(program.group for program in self.programs if not program.included)


def write_default(conf: Path) -> None:
    """Write the default supervisord.conf of a project: the one that mesh itself uses.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        # A file that another process creates at the same moment is kept.
        with conf.open("x", encoding="utf-8") as file:
            file.write(DEFAULT.read_text(encoding="utf-8"))
    except FileExistsError:
        pass
    except OSError as exc:
        raise ConfigError(f"{conf}: cannot be written: {exc.strerror}") from exc


def read(conf: Path) -> Layout:
    """Read `conf` and what it includes.

    Raises:
        ConfigError: it is missing, not in supervisor's format, or lacks the control socket; or the socket's path is
            longer than the operating system allows.
    """
    return _Reading(Path(os.path.abspath(conf))).layout()


def planned(conf: Path) -> Layout:
    """The layout of the file that `write_default` would write. Errors as `read`."""
    return _Reading(Path(os.path.abspath(conf)), DEFAULT).layout()


class _Reading:
    """Reads one file and the files that it includes."""

    def __init__(self, conf: Path, text: Path | None = None) -> None:
        """Args:
        text: the file to read in its place.
        """
        self.conf = conf
        self._parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
        self._take(text or conf)
        self._own = {section: dict(self._parser[section]) for section in self._parser.sections()}
        self._directory: Path | None = None
        for pattern in self._parser.get("include", "files", fallback="").split():
            self._include(pattern)
        self._check_here()

    def _take(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8") as file:
                self._parser.read_file(file)
        except FileNotFoundError:
            if path != self.conf:
                return  # the file of a program that has just been removed
            raise ConfigError(
                f"{path}: there is no such file; run this in a project with a mesh.toml that has "
                "[services.NAME] with a class, or name one with --conf"
            ) from None
        except (OSError, UnicodeDecodeError, configparser.Error) as exc:
            raise ConfigError(f"{path}: cannot be read: {str(exc).splitlines()[0]}") from exc

    def _include(self, files: str) -> None:
        here = str(self.conf.parent)
        if Path(files).name == "*.conf" and self._directory is None:
            self._directory = Path(os.path.abspath(Path(here, files.replace(_HERE, here)))).parent
        # Only the value in the file is a pattern; the project's path may contain pattern characters, too.
        for path in sorted(glob.glob(os.path.join(glob.escape(here), files.replace(_HERE, glob.escape(here))))):
            self._take(Path(path))

    def _check_here(self) -> None:
        here = str(self.conf.parent)
        uses = any(_HERE in value for section in self._own.values() for value in section.values())
        if "%" in here and uses:
            raise ConfigError(
                f"{self.conf}: supervisor cannot run a project in {here}: it reads the % in this path as a format; "
                "rename the directory",
                details={"path": here},
            )

    def _value(self, section: str, key: str, default: str) -> str:
        return self._parser.get(section, key, fallback=default).strip().replace(_HERE, str(self.conf.parent))

    def _path(self, section: str, key: str, default: str) -> Path:
        return Path(os.path.abspath(self.conf.parent / self._value(section, key, default)))

    def _socket(self) -> Path:
        if not self._value("unix_http_server", "file", ""):
            raise ConfigError(f"{self.conf}: [unix_http_server] file is missing: mesh controls supervisord through it")
        socket = self._path("unix_http_server", "file", "")
        if len(os.fsencode(socket)) > LONGEST_SOCKET:
            raise ConfigError(
                f"{self.conf}: [unix_http_server] file: {socket} has {len(os.fsencode(socket))} bytes, at most "
                f"{LONGEST_SOCKET} are possible; put the project in a directory with a shorter path"
            )
        return socket

    def _programs(self) -> tuple[Program, ...]:
        groups: dict[str, tuple[int, str]] = {}
        for section in self._parser.sections():
            kind, _, name = section.partition(":")
            if kind == "group":
                priority = self._number(section, "priority", 999)
                for member in self._value(section, "programs", "").split(","):
                    groups[member.strip()] = (priority, name.strip())
        found: list[tuple[int, int, Program]] = []
        for section in self._parser.sections():
            kind, _, name = section.partition(":")
            if kind not in ("program", "fcgi-program", "eventlistener"):
                continue
            name = name.strip()
            own = self._number(section, "priority", -1 if kind == "eventlistener" else 999)
            priority, group = groups.get(name, (own, name))
            address = self._value(section, "socket", "")
            copies = self._number(section, "numprocs", 1)
            program = Program(
                name=name,
                group=group,
                command=self._value(section, "command", ""),
                copies=copies,
                stop_s=float(self._number(section, "stopwaitsecs", 10)),
                listens=address.removeprefix("tcp://") if address.startswith("tcp://") else "",
                included=section not in self._own,
                kind=kind,
                processes=tuple(self._processes(section, name, group, copies)),
                keys=self._own.get(section) or dict(self._parser[section]),
            )
            found.append((priority, own, program))
        found.sort(key=lambda entry: entry[:2])
        return tuple(program for *_, program in found)

    def _processes(self, section: str, name: str, group: str, copies: int) -> Iterator[str]:
        pattern = self._value(section, "process_name", "%(program_name)s")
        first = self._number(section, "numprocs_start", 0)
        for number in range(first, first + copies):
            try:
                process = pattern % {"program_name": name, "group_name": group, "process_num": number}
            except (KeyError, ValueError, TypeError):
                process = pattern  # supervisor knows more placeholders; such a process is not found by its name
            yield process if process == group else f"{group}:{process}"

    def _number(self, section: str, key: str, default: int) -> int:
        try:
            return int(self._value(section, key, str(default)))
        except ValueError as exc:
            raise ConfigError(f"{self.conf}: [{section}]: {exc}") from exc

    def layout(self) -> Layout:
        socket = self._socket()
        programs = self._programs()
        if not programs:
            raise ConfigError(f"{self.conf}: it has no [program:…] to run")
        return Layout(
            conf=self.conf,
            socket=socket,
            pidfile=self._path("supervisord", "pidfile", "supervisord.pid"),
            logfile=self._path("supervisord", "logfile", "supervisord.log"),
            programs=programs,
            directory=self._directory,
            plugged=self._parser.has_section("rpcinterface:mesh"),
        )
