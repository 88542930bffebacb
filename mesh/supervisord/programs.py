"""The text of program files: supervisor's configuration of each worker and gateway.

Owns: deriving the programs from the settings, and writing values so that supervisor reads them unchanged.
Leaves to others: the number of copies, and the files themselves (roster); adding and removing processes
(deploy.processes, plugin).

Each worker has its own file, `greeting_0.conf`, and the workers of one service a group, `greeting.group.conf`: so
`supervisorctl restart greeting:*` restarts them all, while each may run from another release: its file names that
release's directory and command, and a worker that dies in the middle of a roll restarts from its earlier release.
supervisor has no groups of [fcgi-program]s, so the gateways share one file, `gateway.conf`, with a numprocs.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mesh.config import ServiceSettings, Settings
from mesh.config.values import show_duration
from mesh.errors import ConfigError

GATEWAY: Final = "gateway"
#: Services start after hub (10) and store (15), in the order of mesh.toml, and before the gateways.
FIRST_PRIORITY: Final = 20
GATEWAY_PRIORITY: Final = 90
#: Runs when a service has a `maximum`; the first to stop, so that no worker is started while everything stops.
AUTOSCALE: Final = "autoscale"
AUTOSCALE_PRIORITY: Final = 95
#: More copies than any host needs; protects against typing errors.
MOST: Final = 1024
#: How long supervisor waits beyond a process' own limit before it kills: leaving hubs and `stopped` hooks take time.
STOP_MARGIN_S: Final = 10

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
# MODULE:CLASS, or an application (mesh.apps.loading).
_CLASS: Final = re.compile(r"[\w./-]+(:\w+)?|(asgi|wsgi):[\w./-]+:\w+(\(\))?(@/[^\s@]*)?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMAND: Final = re.compile(r"^(command=.*)$", re.MULTILINE)
# Where supervisor's parser starts a comment, even in quotes.
_COMMENT: Final = re.compile(r"\s[;#]|[\0\r\n]")

# startsecs, startretries, stopasgroup, killasgroup: see the comments in supervisord.conf.
_COMMON: Final = """\
autorestart=true
startsecs=1
startretries=100
stopsignal=TERM
stopwaitsecs={stop_s}
stopasgroup=false
killasgroup=true
redirect_stderr=true
stdout_logfile={log}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""

#: The first line of every program file of mesh begins with this.
SIGN: Final = "; Written by mesh from "
_HEAD: Final = SIGN + "{table} of mesh.toml. `mesh up`, `mesh scale` and `mesh roll` write it again.\n"


class Role(NamedTuple):
    """A program that supervisor runs in copies: a service's workers, or the gateways.

    Attributes:
        name: the group's name, and the first part of each process' name.
        table: where mesh.toml declares it.
        declared: the number of copies in mesh.toml.
        socket: "tcp://127.0.0.1:8080" or "unix:///path" when supervisord must hold a listening socket for them, else
            "".
        stop_s: how long supervisor waits for a copy to stop before it kills it.
        single: there is at most one copy, without a number and a group; it does not register.
        body: the lines of a program, with {log} in place of the log file.
    """

    name: str
    table: str
    declared: int
    priority: int
    socket: str
    stop_s: int
    body: str
    log_dir: Path
    single: bool = False

    @property
    def most(self) -> int:
        """The maximum number of copies."""
        return 1 if self.single else MOST

    def process(self, number: int) -> str:
        """The name of one copy, as supervisorctl writes it."""
        if self.single:
            return self.name
        return f"{self.name}:{self.name}_{number}"

    def number(self, process: str) -> int | None:
        """The number of a process of this role, from its full name; None for a process of another role."""
        if self.single:
            return 0 if process == self.name else None
        match = re.fullmatch(rf"{re.escape(self.name)}:{re.escape(self.name)}_(\d+)", process)
        return int(match[1]) if match else None

    def text(self, number: int) -> str:
        """The text of one copy's program file; the same for all gateways."""
        head = _HEAD.format(table=self.table)
        if self.socket:
            log = _plain(f"{self.log_dir}/{self.name}_", "[mesh] log_dir") + "%(process_num)d.log"
            return f"{head}[fcgi-program:{self.name}]\n{self.body.format(log=log)}"
        name = self.name if self.single else f"{self.name}_{number}"
        log = _plain(f"{self.log_dir}/{name}.log", "[mesh] log_dir")
        return f"{head}[program:{name}]\n{self.body.format(log=log)}"

    def canary_text(self, number: int) -> str:
        """The text of the program file of a canary, which gets no calls before it is given a share of them."""
        return _COMMAND.sub(r"\1 --canary", self.text(number), count=1)

    def is_canary(self, text: str) -> bool:
        """Whether it is the program text of a canary."""
        command = _COMMAND.search(text)
        return command is not None and command[1].endswith(" --canary")

    def renumbered(self, text: str, old: int, new: int) -> str:
        """The program text of one copy, changed for another copy."""
        if self.socket:
            return text
        name = re.escape(self.name)
        return re.sub(rf"(?<=^\[program:{name}_){old}(?=\]$)|(?<=/{name}_){old}(?=\.log$)", str(new), text, flags=re.M)

    def files(self, texts: Mapping[int, str]) -> dict[str, str]:
        """The files for these copies, by name, in an order in which they may appear one after the other."""
        if not texts:
            return {}
        if self.socket:
            # The copies are numbered from 0, without gaps.
            return {f"{self.name}.conf": _with_count(texts[max(texts)], len(texts))}
        if self.single:
            return {f"{self.name}.conf": texts[0]}
        members = ",".join(f"{self.name}_{number}" for number in sorted(texts))
        group = f"[group:{self.name}]\nprograms={members}\npriority={self.priority}\n"
        # The group comes last: supervisor rejects a group that names a missing program.
        return {
            **{f"{self.name}_{number}.conf": texts[number] for number in sorted(texts)},
            f"{self.name}.group.conf": _HEAD.format(table=self.table) + group,
        }

    def texts(self, files: Mapping[str, str]) -> dict[int, str]:
        """The texts of the copies in these files: the inverse of `files`."""
        if self.socket:
            text = files.get(f"{self.name}.conf", "")
            match = re.search(r"^numprocs=(\d+)\n", text, re.MULTILINE)
            return dict.fromkeys(range(int(match[1])), text.replace(match[0], "")) if match else {}
        if self.single:
            return dict(enumerate(files.values()))
        pattern = re.compile(rf"{re.escape(self.name)}_(\d+)\.conf")
        return {int(match[1]): text for name, text in files.items() if (match := pattern.fullmatch(name))}


def _with_count(text: str, count: int) -> str:
    return re.sub(r"^(process_name=)", rf"numprocs={count}\n\1", text, count=1, flags=re.MULTILINE)


def owner(file: str) -> str:
    """The role that a program file belongs to, by the file's name: "greeting" of "greeting_0.conf"."""
    return re.sub(r"(_\d+|\.group)?\.conf$", "", file)


def roles(settings: Settings, fixed: frozenset[str] = frozenset(), *, gateway: bool = True) -> dict[str, Role]:
    """The roles that mesh.toml declares, by name, in the order in which they start.

    Args:
        fixed: groups that supervisord.conf itself defines.
        gateway: whether to include gateways; not when supervisord.conf has a program for them.

    Raises:
        ConfigError: a role cannot be run as declared, or is also in `fixed`.
    """
    found: dict[str, Role] = {}
    for name, service in settings.services.items():
        if service.runs:
            priority = min(FIRST_PRIORITY + len(found), GATEWAY_PRIORITY - 1)
            found[name] = _service(name, service, settings, priority)
    if gateway:
        if GATEWAY in found:
            raise ConfigError(f"services.{GATEWAY}: the name is reserved for the HTTP gateway; choose another one")
        found[GATEWAY] = _gateway(settings)
    if any(service.runs and service.maximum for service in settings.services.values()):
        if AUTOSCALE in found:
            raise ConfigError(f"services.{AUTOSCALE}: the name is reserved for autoscaling; choose another one")
        found[AUTOSCALE] = _autoscale(settings)
    for name in found:
        if name in fixed:
            raise ConfigError(
                f"{found[name].table} in mesh.toml and [program:{name}] in supervisord.conf both run {name}; keep one"
            )
    return found


def _service(name: str, service: ServiceSettings, settings: Settings, priority: int) -> Role:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"services.{name}: a service name has lower-case letters, digits, _ and -, at most 63")
    for each in service.classes:
        if not _CLASS.fullmatch(each):
            raise ConfigError(
                f'services.{name}.class: "{each}" is neither MODULE:CLASS, like "services.greeting:Greeting", nor an '
                'application, like "asgi:shop.app:app"'
            )
    if service.user and os.geteuid() != 0:
        raise ConfigError(f"services.{name}.user: only root can run a worker as {service.user}; remove the key")
    words = [_mesh(settings), "program", name] if service.command else [_mesh(settings), "run", "--as", name]
    words += service.classes
    if service.env_file:
        # The worker reads it when it starts: secrets are not copied anywhere, and a restart applies changes.
        words += ["--env-file", str(settings.root.resolve() / service.env_file)]
    limits = (
        ("memory", service.memory_bytes),
        ("memory_soft", service.memory_soft_bytes),
        ("files", service.files),
        ("nice", service.nice),
    )
    for option, value in limits:
        if value:
            words += ["--limit", f"{option}={value}"]
    if service.command:
        # All that it runs is in its file: a changed command is a change that `mesh roll` applies, and can undo.
        words += ["--http", service.http, *(["--health", service.health] if service.health else [])]
        words += ["--", *service.command]
    environment = dict(service.environment)
    limit_s = service.stop_timeout_s or settings.worker.stop_timeout_s
    stop_s = math.ceil(limit_s) + STOP_MARGIN_S
    if service.stop_timeout_s:
        environment["MESH_WORKER_STOP_TIMEOUT"] = show_duration(service.stop_timeout_s)
    for variable, span_s in (("LIVENESS", service.liveness_s), ("START_TIMEOUT", service.start_timeout_s)):
        if span_s:
            environment[f"MESH_WORKER_{variable}"] = show_duration(span_s)
    return Role(
        name=name,
        table=f"[services.{name}]",
        declared=service.replicas,
        priority=priority,
        socket="",
        stop_s=stop_s,
        body=_body(f"services.{name}", words, settings, environment, service.user, priority, stop_s),
        log_dir=settings.mesh.log_dir,
    )


def _gateway(settings: Settings) -> Role:
    gateway = settings.gateway
    if gateway.unix is None and ":" in gateway.host:
        raise ConfigError(
            f"gateway.host: supervisor listens on IPv4 only, not on {gateway.host}; use an IPv4 address, and a proxy "
            "in front for IPv6"
        )
    mode = ""
    if gateway.unix is not None:
        socket = _plain(f"unix://{settings.root.resolve() / gateway.unix}", "gateway.unix")
        mode = f"socket_mode={gateway.unix_mode:04o}\n"
    else:
        socket = f"tcp://{gateway.host}:{gateway.port}"
    words = [_mesh(settings), "gateway", "--fd", "0"]
    stop_s = math.ceil(gateway.drain_s) + STOP_MARGIN_S
    body = _body("gateway", words, settings, {}, "", GATEWAY_PRIORITY, stop_s)
    # The backlog holds connections while every gateway is busy or restarting; the kernel lowers it to somaxconn.
    own = f"socket={socket}\n{mode}socket_backlog=4096\nprocess_name=%(program_name)s_%(process_num)d\n"
    return Role(
        name=GATEWAY,
        table="[gateway]",
        declared=gateway.replicas,
        priority=GATEWAY_PRIORITY,
        socket=socket,
        stop_s=stop_s,
        body=own + body,
        log_dir=settings.mesh.log_dir,
    )


def _autoscale(settings: Settings) -> Role:
    stop_s = STOP_MARGIN_S
    words = [_mesh(settings), "autoscale"]
    return Role(
        name=AUTOSCALE,
        table="[autoscale]",
        declared=1,
        priority=AUTOSCALE_PRIORITY,
        socket="",
        stop_s=stop_s,
        body=_body("autoscale", words, settings, {}, "", AUTOSCALE_PRIORITY, stop_s),
        log_dir=settings.mesh.log_dir,
        single=True,
    )


def _body(
    where: str,
    words: list[str],
    settings: Settings,
    environment: Mapping[str, str],
    user: str,
    priority: int,
    stop_s: int,
) -> str:
    root = str(settings.root.resolve())
    lines = [f"command={_plain(shlex.join(words), where)}", f"directory={_plain(root, where)}"]
    if environment:
        pairs = ",".join(f"{name}={_quoted(name, value, where)}" for name, value in environment.items())
        lines.append(f"environment={pairs}")
    if user:
        lines.append(f"user={_plain(user, where)}")
    lines.append(f"priority={priority}")
    # {log} is replaced later; all other braces are literal.
    text = "\n".join(lines).replace("{", "{{").replace("}", "}}")
    return f"{text}\n{_COMMON.format(stop_s=stop_s, log='{log}')}"


def _mesh(settings: Settings) -> str:
    """The `mesh` command: the path in the project's own .venv, so that a worker stays with its release; else the one
    that supervisord finds."""
    own = settings.root.resolve() / ".venv" / "bin" / "mesh"
    return str(own) if own.exists() else "mesh"


def _plain(value: str, where: str) -> str:
    """`value`, written so that supervisor reads it unchanged."""
    if _COMMENT.search(value):
        raise ConfigError(
            f'{where}: supervisor cannot read "{value}": " ;" and " #" begin a comment, and a line break ends '
            "the value; rename it"
        )
    return value.replace("%", "%%")


def _quoted(name: str, value: str, where: str) -> str:
    where = f"{where}.environment"
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(f'{where}: "{name}" is not a valid name of a variable')
    quote = "'" if '"' in value else '"'
    # supervisor strips both kinds of quotes from both ends, and has no escapes.
    if quote in value or value.strip("'\"") != value:
        raise ConfigError(f"{where}.{name}: supervisor cannot pass on these quotes; put the variable into the env_file")
    return quote + _plain(value, f"{where}.{name}") + quote
