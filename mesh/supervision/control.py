"""Talking to a running supervisord over its unix socket.

Owns: the XML-RPC calls that mesh makes, and translating what goes wrong with them.
Leaves to others: when to make them (up, down), and which supervisord (layout).
"""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from supervisor.xmlrpc import SupervisorTransport

from mesh.errors import SetupError, Unavailable

# A stopped or swapped-out supervisord accepts connections and never answers.
ANSWER_S = 5.0

#: How much of the end of a log is asked for.
TAIL_BYTES = 16_384

#: plugin.VERSION and SIGNALLED, here without what supervisord needs.
PLUGIN_VERSION = 1
SIGNALLED = -100

RUNNING = "RUNNING"
#: Somebody stopped it, or it was never started.
STOPPED = "STOPPED"
#: States in which a process does not run and will not by itself.
IDLE = (STOPPED, "EXITED", "FATAL", "UNKNOWN")


class ShuttingDown(Unavailable):
    """This supervisord is stopping everything and itself; it takes no more orders."""

    code = "shutting_down"


class Silent(Unavailable):
    """Somebody listens at this socket and says nothing: supervisord was stopped (SIGSTOP), or is kept from running."""

    code = "silent"
    advice = "`kill -CONT PID` lets one go on that was stopped; `mesh down` ends it and all that it runs"


class _UnknownMethod(SetupError):
    """This supervisord has no such method."""


class Process(NamedTuple):
    """One supervised process at this moment.

    Attributes:
        name: as supervisorctl writes it: "greeting:greeting_0", or "hub" alone in its group.
        program: the group's name.
        state: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN.
        pid: 0 when it does not run.
        up_s: seconds since its start; 0.0 when it does not run.
        trouble: supervisor's own words on why it does not run; "" when it does.
        log: the file that its output goes to.
    """

    name: str
    program: str
    state: str
    pid: int
    up_s: float
    trouble: str
    log: str


class Control:
    """One supervisord, reached through its control socket. Each method raises Unavailable when it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        transport = SupervisorTransport(serverurl=f"unix://{path}")
        transport._get_connection = lambda: _Connection(str(path))
        self._transport = transport
        # The host in this URL is required by the client and never used.
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def alive(self) -> bool:
        """Whether a supervisord runs.

        Raises:
            Silent: one does, and does not answer.
        """
        try:
            self._call(self._proxy.supervisor.getState)
        except ShuttingDown:
            return True
        except Silent:
            raise
        except Unavailable:
            return False
        return True

    def pid(self) -> int:
        """Its process id."""
        return int(self._call(self._proxy.supervisor.getPID))

    def processes(self) -> list[Process]:
        """Every process that it knows, in the order in which they start."""
        return [_process(info) for info in self._call(self._proxy.supervisor.getAllProcessInfo)]

    def start(self, name: str) -> None:
        """Ask for one process (or "group:*") to be started, without waiting.

        Raises:
            SetupError: supervisor refuses, for example because the command does not exist.
        """
        method = (
            self._proxy.supervisor.startProcessGroup if name.endswith(":*") else self._proxy.supervisor.startProcess
        )
        self._call(method, name.removesuffix(":*"), False)

    def stop(self, name: str, wait: bool = True) -> None:
        """Stop one process or "group:*".

        Raises:
            SetupError: supervisor refuses, for example because it does not run.
        """
        method = self._proxy.supervisor.stopProcessGroup if name.endswith(":*") else self._proxy.supervisor.stopProcess
        self._call(method, name.removesuffix(":*"), wait)

    def sync(self, group: str) -> None:
        """Make a group what its program files now say; nothing else is touched (plugin.sync).

        Raises:
            SetupError: the files cannot be read, or a process whose file is gone still runs.
        """
        self._call(self._proxy.mesh.sync, group)

    def hold(self, name: str, seconds: float, why: str) -> None:
        """Let a process wait before each next start; 0 seconds: no longer (plugin.hold)."""
        self._call(self._proxy.mesh.hold, name, float(seconds), why)

    def status(self, name: str) -> int | None:
        """How a process last ended unasked: its exit status, or a signal's number below zero; None: nobody knows."""
        status = int(self._call(self._proxy.mesh.status, name))
        # -1: a supervisord of an earlier release, which does not know which signal it was.
        return None if status in (-1, -2) else status - SIGNALLED if status < SIGNALLED else status

    def check_plugin(self) -> None:
        """Raises:
        SetupError: this supervisord lacks the methods that adding and removing single processes needs.
        """
        try:
            version = int(self._call(self._proxy.mesh.version))
        except _UnknownMethod:
            version = 0
        if version < PLUGIN_VERSION:
            raise SetupError(
                f"the supervisord at {self.path} was started {'by an earlier release' if version else 'without'} "
                "[rpcinterface:mesh]; `mesh down && mesh up` starts one that has it"
            )

    def shutdown(self) -> None:
        """Ask supervisord to stop everything and itself, without waiting."""
        self._call(self._proxy.supervisor.shutdown)

    def tail(self, name: str, lines: int = 20) -> list[str]:
        """The last lines of what a process wrote since somebody started it, at most `lines`."""
        try:
            text = self._call(self._proxy.mesh.words, name, TAIL_BYTES)
        except _UnknownMethod:
            # A supervisord of an earlier release, or without our plugin: of earlier starts as well.
            try:
                text = self._call(self._proxy.supervisor.tailProcessStdoutLog, name, 0, TAIL_BYTES)[0]
            except SetupError:
                # An event listener's standard output is no log.
                text = self._call(self._proxy.supervisor.tailProcessStderrLog, name, 0, TAIL_BYTES)[0]
        return str(text).splitlines()[-lines:]

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except xmlrpc.client.Fault as exc:
            # "NAME" or "NAME: what it is about"; a program's name stays as it is.
            fault, _, about = exc.faultString.partition(": ")
            if fault == "SHUTDOWN_STATE":
                raise ShuttingDown(f"supervisord at {self.path} is shutting down") from exc
            words = fault.lower().replace("_", " ") + (f": {about}" if about else "")
            raise (_UnknownMethod if fault == "UNKNOWN_METHOD" else SetupError)(
                f"supervisord refused: {words}"
            ) from exc
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as exc:
            # The next call makes a new connection.
            self._transport.close()
            if isinstance(exc, TimeoutError):
                told = f"supervisord at {self.path} takes connections and has not answered for {ANSWER_S:g} s"
                raise Silent(told) from exc
            raise Unavailable(f"no supervisord answers at {self.path}") from exc


def _process(info: dict[str, Any]) -> Process:
    group, name, state = info["group"], info["name"], info["statename"]
    runs = bool(info["pid"])
    return Process(
        name=name if group == name else f"{group}:{name}",
        program=group,
        state=state,
        pid=info["pid"],
        up_s=max(0.0, float(info["now"] - info["start"])) if runs else 0.0,
        trouble=info["spawnerr"] if not runs else "",
        log=info["stdout_logfile"] or info["stderr_logfile"],
    )


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket, with a limit to waiting (supervisor's own has none)."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)
