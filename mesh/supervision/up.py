"""Bringing the whole set up: from nothing, or from half of it, to everything answering.

Owns: starting supervisord, and what "up" means: every process runs, the gateways are ready, and every worker is
known to them.
Leaves to others: keeping it up (supervisord), printing (cli.up), taking it down (down).
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mesh.clock import LoopClock
from mesh.errors import AddressInUse, SetupError, Unavailable
from mesh.supervision import family
from mesh.supervision.control import IDLE, RUNNING, Control, Process
from mesh.supervision.layout import Layout

now = LoopClock.now

# Each look also wakes supervisord, whose own loop otherwise turns once a second.
LOOK_EVERY_S = 0.1
ANSWER_S = 2.0
#: A process that supervisord had to start so often during one `mesh up` does not start.
STARTS = 3

Tell = Callable[[str], None]


class StartFailed(SetupError):
    """A supervised process ends as soon as it starts; `details` hold its name, its log, and the log's tail."""

    code = "start_failed"


class Up(NamedTuple):
    """What runs now.

    Attributes:
        already: everything ran before, nothing was done.
        seconds: how long it took.
        processes: in the order of the file.
        instances: what the registry says of each pid: {"service": …, "id": …}.
        path: a path that the gateways answer a GET of, to try them with.
    """

    already: bool
    seconds: float
    processes: list[Process]
    instances: dict[int, list[dict[str, Any]]]
    path: str


def bring_up(layout: Layout, *, patience_s: float = 20.0, tell: Tell = lambda text: None) -> Up:
    """Start what does not run, and wait until everything answers.

    Args:
        tell: called with a few words whenever what is waited for changes.

    Raises:
        AddressInUse: another program holds the HTTP port.
        StartFailed: a process ends at its start.
        SetupError: supervisord itself does not start.
        Unavailable: not everything answers within `patience_s`; what is missing is named.
    """
    began = now()
    control = Control(layout.socket)
    try:
        already = control.alive()
        if already:
            already = _start_idle(control)
        else:
            tell("starting supervisord")
            _start_supervisord(layout, control)
        processes, page, waited = _wait(layout, control, began + patience_s, tell)
    finally:
        control.close()
    return Up(already and not waited, now() - began, processes, _by_pid(page), _path_to_try(page))


def _start_idle(control: Control) -> bool:
    """Start what does not run; whether there was nothing to do."""
    found = False
    for process in control.processes():
        found = found or process.state in IDLE or process.state == "BACKOFF"
        try:
            if process.state == "BACKOFF":
                # It waits for its next try; whatever kept it from starting may be mended by now.
                control.stop(process.name)
            if process.state in IDLE or process.state == "BACKOFF":
                control.start(process.name)
        except SetupError:
            pass  # it changed in between; the looks that follow judge by what they see
    return not found


def _start_supervisord(layout: Layout, control: Control) -> None:
    if orphans := family.members(layout.server_url):
        raise SetupError(
            f"supervisord is gone, but {len(orphans)} of its processes still run (pid {orphans[0].pid}: "
            f"{orphans[0].command}); `mesh down` stops them"
        )
    _check_port(layout)
    for directory in {layout.socket.parent, layout.pidfile.parent, layout.logfile.parent}:
        # 0700: whoever can open a socket in here is obeyed.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("run", "logs"):
        (layout.root / name).mkdir(mode=0o700, exist_ok=True)
    environment = dict(os.environ)
    # The commands in the file find the `mesh` of this interpreter, also outside an activated environment.
    path = environment.get("PATH", os.defpath)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    started = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(layout.conf)],
        env=environment,
        cwd=layout.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    # A second `mesh up` at the same moment: the first one's supervisord is as good.
    if started.returncode != 0 and not control.alive():
        words = [line for line in (started.stdout + started.stderr).splitlines() if line.startswith("Error")]
        why = words[0] if words else (started.stderr or started.stdout).strip()[-400:]
        raise SetupError(f"supervisord did not start: {why}", details={"log": str(layout.logfile)})


def _check_port(layout: Layout) -> None:
    # supervisord itself ends with no word to anybody when it cannot bind, so it is tried beforehand.
    host, _, port = layout.listens.rpartition(":")
    if not port:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as exc:
            where = f"{layout.conf.name}, [fcgi-program:…] socket"
            if exc.errno == errno.EADDRINUSE:
                message = f"{layout.listens} is taken by another program; stop that, or change {where}"
                raise AddressInUse(message) from exc
            raise SetupError(f"{layout.listens} cannot be listened on ({exc.strerror}); change {where}") from exc


def _wait(layout: Layout, control: Control, until: float, tell: Tell) -> tuple[list[Process], dict[str, Any], bool]:
    """Look until everything answers; also tells whether that took more than one look."""
    pids: dict[str, set[int]] = {}
    waited, told = False, ""
    while True:
        try:
            processes = _in_order(layout, control.processes())
        except Unavailable as exc:
            raise SetupError(
                f"supervisord ended; its last words are in {layout.logfile}",
                details={"log": str(layout.logfile), "tail": _tail(layout.logfile)},
            ) from exc
        for process in processes:
            pids.setdefault(process.name, set()).add(process.pid)
            _check(process, pids[process.name], control)
        page: dict[str, Any] = {}
        missing = [f"{process.name} ({process.state})" for process in processes if process.state != RUNNING]
        if not missing and layout.http:
            missing, page = _ask_gateway(layout, processes)
        if not missing:
            return processes, page, waited
        words = f"waiting for {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        if words != told:
            tell(words)
            told = words
        if now() >= until:
            raise _too_late(missing, processes, control)
        waited = True
        time.sleep(LOOK_EVERY_S)


def _check(process: Process, pids: set[int], control: Control) -> None:
    if process.state in ("BACKOFF", "FATAL") or len(pids - {0}) >= STARTS:
        try:
            tail = control.tail(process.name)
        except (SetupError, Unavailable):
            tail = []
        why = process.trouble.removesuffix(" (process log may have details)") or "it ends again and again"
        raise StartFailed(
            f"{process.name} does not start: {why}",
            details={"process": process.name, "log": process.log, "tail": tail},
        )


def _ask_gateway(layout: Layout, processes: list[Process]) -> tuple[list[str], dict[str, Any]]:
    """(what is missing, the /mesh page), as the gateways see it."""
    ready, _ = get(layout.http + "/readyz")
    if ready != 200:
        return [f"{layout.http}/readyz ({ready or 'no answer'})"], {}
    status, body = get(layout.http + "/mesh")
    if status != 200:
        return [f"{layout.http}/mesh ({status or 'no answer'})"], {}
    page: dict[str, Any] = json.loads(body)
    known = _by_pid(page)
    registers = {program.name for program in layout.programs if _verb(program.command) in ("run", "gateway")}
    missing = [
        f"{process.name} (not yet in the registry)"
        for process in processes
        if process.program in registers and process.pid not in known
    ]
    return missing, page


def _verb(command: str) -> str:
    """The sub-command of a `mesh …` command line, "" for any other program."""
    words = command.split()
    return words[1] if len(words) > 1 and Path(words[0]).name == "mesh" else ""


def _by_pid(page: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """This host's instances in the /mesh page, by process; each with the name of its service."""
    found: dict[int, list[dict[str, Any]]] = {}
    for service in page.get("services", ()):
        for instance in service["instances"]:
            if instance["host"] == page["gateway"]["host"]:
                found.setdefault(instance["pid"], []).append({"service": service["name"], **instance})
    return found


def _path_to_try(page: dict[str, Any]) -> str:
    """A GET route that takes no more than a name, which is now "you"; /mesh when there is none."""
    for service in page.get("services", ()):
        for route in service.get("routes", ()):
            if route["verb"] == "GET" and route["path"].count("{") == 1 and "{name}" in route["path"]:
                return str(route["path"]).replace("{name}", "you")
    return "/mesh"


def get(url: str) -> tuple[int, bytes]:
    """(status, body) of a GET; (0, b"") when nobody answers in time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request("GET", parts.path, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _too_late(missing: list[str], processes: list[Process], control: Control) -> Unavailable:
    by_name = {process.name: process for process in processes}
    late = by_name.get(missing[0].split(" ")[0])
    details: dict[str, Any] = {"missing": missing}
    if late is not None:
        details |= {"process": late.name, "log": late.log}
        try:
            details["tail"] = control.tail(late.name)
        except (SetupError, Unavailable):
            pass
    return Unavailable("not everything answers yet: " + ", ".join(missing), details=details)


def _in_order(layout: Layout, processes: list[Process]) -> list[Process]:
    order = {program.name: place for place, program in enumerate(layout.programs)}
    return sorted(processes, key=lambda process: (order.get(process.program, len(order)), process.name))


def _tail(path: Path, lines: int = 20) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []
