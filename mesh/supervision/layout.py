"""What a supervisord.conf says about the set: sockets, files, programs, and where HTTP is answered.

Owns: reading those few keys the way supervisor reads them.
Leaves to others: everything else in the file (supervisord itself), and what runs at this moment (control).
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import NamedTuple

from mesh.errors import ConfigError

#: sun_path holds 107 bytes and a zero; supervisord first binds "<file>.<its pid>" (a pid has up to 7 digits).
LONGEST_SOCKET = 107 - len(".4194304")


class Program(NamedTuple):
    """One [program:x] or [fcgi-program:x].

    Attributes:
        copies: numprocs, how many processes of it run.
        stop_s: stopwaitsecs, after which supervisor kills what was asked to stop.
        listens: "127.0.0.1:8080" for a program whose listening TCP socket supervisord holds, else "".
    """

    name: str
    command: str
    copies: int
    stop_s: float
    listens: str


class Layout(NamedTuple):
    """One supervisord.conf.

    Attributes:
        conf: the file, absolute.
        socket: supervisord's own control socket.
        programs: in order of priority, the order in which they start.
    """

    conf: Path
    socket: Path
    pidfile: Path
    logfile: Path
    programs: tuple[Program, ...]

    @property
    def root(self) -> Path:
        """The directory of the file, `%(here)s` in it."""
        return self.conf.parent

    @property
    def server_url(self) -> str:
        """How supervisord tells its children of itself, in SUPERVISOR_SERVER_URL."""
        return f"unix://{self.socket}"

    @property
    def listens(self) -> str:
        """Where HTTP is answered: "127.0.0.1:8080", or "" when no program listens."""
        return next((program.listens for program in self.programs if program.listens), "")

    @property
    def http(self) -> str:
        """The base URL of the gateways as this host reaches it, or ""."""
        host, _, port = self.listens.rpartition(":")
        if not port:
            return ""
        return f"http://{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{port}"


def read(conf: Path) -> Layout:
    """Read `conf`.

    Raises:
        ConfigError: it is missing, not in supervisor's format, or lacks the control socket; or the socket's path is
            longer than the operating system allows.
    """
    conf = Path(os.path.abspath(conf))
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        with conf.open(encoding="utf-8") as file:
            parser.read_file(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{conf}: there is no such file; run this in a project's directory, or name one with --conf"
        ) from None
    except (OSError, UnicodeDecodeError, configparser.Error) as exc:
        raise ConfigError(f"{conf}: cannot be read: {str(exc).splitlines()[0]}") from exc

    def value(section: str, key: str, default: str) -> str:
        return parser.get(section, key, fallback=default).strip().replace("%(here)s", str(conf.parent))

    def path(section: str, key: str, default: str) -> Path:
        return Path(os.path.abspath(conf.parent / value(section, key, default)))

    if not value("unix_http_server", "file", ""):
        raise ConfigError(f"{conf}: [unix_http_server] file is missing: mesh speaks to supervisord through it")
    socket = path("unix_http_server", "file", "")
    if len(os.fsencode(socket)) > LONGEST_SOCKET:
        raise ConfigError(
            f"{conf}: [unix_http_server] file: {socket} has {len(os.fsencode(socket))} bytes, at most "
            f"{LONGEST_SOCKET} are possible; put the project in a directory with a shorter path"
        )
    programs: list[tuple[int, Program]] = []
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind not in ("program", "fcgi-program"):
            continue
        address = value(section, "socket", "")
        try:
            program = Program(
                name=name.strip(),
                command=value(section, "command", ""),
                copies=int(value(section, "numprocs", "1")),
                stop_s=float(value(section, "stopwaitsecs", "10")),
                listens=address.removeprefix("tcp://") if address.startswith("tcp://") else "",
            )
            priority = int(value(section, "priority", "999"))
        except ValueError as exc:
            raise ConfigError(f"{conf}: [{section}]: {exc}") from exc
        programs.append((priority, program))
    if not programs:
        raise ConfigError(f"{conf}: it names no [program:…] to run")
    programs.sort(key=lambda entry: entry[0])
    return Layout(
        conf=conf,
        socket=socket,
        pidfile=path("supervisord", "pidfile", "supervisord.pid"),
        logfile=path("supervisord", "logfile", "supervisord.log"),
        programs=tuple(program for _, program in programs),
    )
