"""Client of a running supervisord, over its Unix socket.

Owns: the XML-RPC calls that mesh makes, and translating their errors.
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

#: How many bytes from the end of a log to request.
TAIL_BYTES = 16_384

#: plugin.VERSION and SIGNALLED, repeated here because importing plugin would import supervisord's modules.
PLUGIN_VERSION = 1
SIGNALLED = -100

RUNNING = "RUNNING"
#: An operator stopped the process, or it was never started.
STOPPED = "STOPPED"
#: States in which a process does not run, and is not started automatically.
IDLE = (STOPPED, "EXITED", "FATAL", "UNKNOWN")


class ShuttingDown(Unavailable):
    """This supervisord is shutting down; it accepts no more commands."""

    code = "shutting_down"


class Silent(Unavailable):
    """The control socket accepts connections but never answers: supervisord was stopped (SIGSTOP), or cannot run."""

    code = "silent"
    advice = "`kill -CONT PID` resumes a stopped supervisord; `mesh down` ends it and its processes"


class _UnknownMethod(SetupError):
    """This supervisord has no such method."""


class Process(NamedTuple):
    """One supervised process at this moment.

    Attributes:
        name: as supervisorctl writes it: "greeting:greeting_0", or "hub" if it is alone in its group.
        program: the group's name.
        state: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN.
        pid: 0 when it does not run.
        up_s: seconds since its start; 0.0 when it does not run.
        trouble: supervisor's message on why it does not run; "" when it does.
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
    """One supervisord, reached through its control socket. Each method raises Unavailable when it does not run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        transport = SupervisorTransport(serverurl=f"unix://{path}")
        transport._get_connection = lambda: _Connection(str(path))
        self._transport = transport
        # The host in this URL is required by the client and never used.
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def alive(self) -> bool:
        """Whether a supervisord runs.

        Raises:
            Silent: it runs but does not answer.
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
        """Start one process (or "group:*"), without waiting.

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
        """Update a group to its current program files; no other group is touched (plugin.sync).

        Raises:
            SetupError: the files cannot be read, or a process without a file still runs.
        """
        self._call(self._proxy.mesh.sync, group)

    def hold(self, name: str, seconds: float, why: str) -> None:
        """Delay each next start of a process by `seconds`; 0 ends the delay (plugin.hold)."""
        self._call(self._proxy.mesh.hold, name, float(seconds), why)

    def status(self, name: str) -> int | None:
        """How a process last ended unexpectedly: its exit status, or a negative signal number; None: unknown."""
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
        """Make supervisord stop all processes and then itself, without waiting."""
        self._call(self._proxy.supervisor.shutdown)

    def tail(self, name: str, lines: int = 20) -> list[str]:
        """The last lines of the log of a process since it was last started on request, at most `lines`."""
        try:
            text = self._call(self._proxy.mesh.words, name, TAIL_BYTES)
        except _UnknownMethod:
            # A supervisord of an earlier release, or without the plugin: its answer includes earlier starts.
            try:
                text = self._call(self._proxy.supervisor.tailProcessStdoutLog, name, 0, TAIL_BYTES)[0]
            except SetupError:
                # The standard output of an event listener is not a log.
                text = self._call(self._proxy.supervisor.tailProcessStderrLog, name, 0, TAIL_BYTES)[0]
        return str(text).splitlines()[-lines:]

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except xmlrpc.client.Fault as exc:
            # "NAME" or "NAME: details"; a program's name is not changed.
            fault, _, about = exc.faultString.partition(": ")
            if fault == "SHUTDOWN_STATE":
                raise ShuttingDown(f"supervisord at {self.path} is shutting down") from exc
            words = fault.lower().replace("_", " ") + (f": {about}" if about else "")
            raise (_UnknownMethod if fault == "UNKNOWN_METHOD" else SetupError)(
                f"supervisord rejected the request: {words}"
            ) from exc
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as exc:
            # The next call makes a new connection.
            self._transport.close()
            if isinstance(exc, TimeoutError):
                told = f"supervisord at {self.path} accepts connections but has not answered for {ANSWER_S:g} s"
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
    """HTTP over a Unix socket, with a timeout (supervisor's own class has none)."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)
