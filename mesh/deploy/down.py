"""Stops everything, and verifies it.

Owns: the orderly shutdown, the processes that a dead supervisord left behind, stale pid files and sockets.
Leaves to others: the drain of each process (service, gateway), printing (cli.down).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from mesh.clock import LoopClock
from mesh.deploy import deployment_lock
from mesh.deploy.processes import Tell
from mesh.errors import Unavailable
from mesh.supervisord import process_tree
from mesh.supervisord.control import Control, ShuttingDown, Silent
from mesh.supervisord.layout import Layout
from mesh.telemetry import heartbeats

now = LoopClock.now

#: pid -> its start time, from `telemetry.heartbeats.started`.
Processes = dict[int, int | None]

LOOK_EVERY_S = 0.05
# After the last stopwaitsecs supervisor kills; this is additional time for reaping.
GRACE_S = 5.0


class Down(NamedTuple):
    """What was done.

    Attributes:
        processes: how many processes were stopped, supervisord included; 0 when nothing ran.
        seconds: how long it took.
        removed: stale files that were deleted.
        left: sockets in the run directory on which a process still listens that supervisord did not start.
    """

    processes: int
    seconds: float
    removed: list[Path]
    left: list[Path]


def take_down(layout: Layout, run_dir: Path, *, tell: Tell = lambda text: None) -> Down:
    """Stop every supervised process and supervisord, and delete what dead processes left in `run_dir`.

    Raises:
        Unavailable: something still runs after every stopwaitsecs is over, and after a SIGKILL; it is named.
        LockTaken: a deployment is under way.
    """
    with deployment_lock.enter_patiently(layout):
        return _take_down(layout, run_dir, tell)


def _take_down(layout: Layout, run_dir: Path, tell: Tell) -> Down:
    began = now()
    pids = _members(layout)
    supervisord = _ask_to_stop(layout)
    if supervisord:
        pids[supervisord] = heartbeats.started(supervisord)
        # One group is stopped after the other.
        limit_s = sum(program.stop_s for program in layout.programs)
    else:
        # supervisord has ended, perhaps killed: its children still run.
        limit_s = max(program.stop_s for program in layout.programs)
        for pid in _eldest(set(pids)):
            _signal(pid, signal.SIGTERM)
    _wait(layout, pids, began + limit_s + GRACE_S, tell)
    removed, left = _sweep(layout, run_dir)
    return Down(len(pids), now() - began, removed, left)


def _ask_to_stop(layout: Layout) -> int:
    """Ask supervisord to stop everything; returns its pid, or 0 when none runs."""
    control = Control(layout.socket)
    try:
        pid = control.pid()
        control.shutdown()
    except ShuttingDown:
        return _supervisord(layout)
    except Unavailable:
        pid = _supervisord(layout)
        if pid:
            # It runs but does not answer: use a signal, which also reaches a stopped process.
            _signal(pid, signal.SIGTERM)
            _signal(pid, signal.SIGCONT)
    finally:
        control.close()
    return pid


def _supervisord(layout: Layout) -> int:
    """The pid of supervisord from its pid file or, if the run directory was deleted, from the processes it started."""
    return process_tree.recorded(layout.pidfile) or process_tree.supervisord_of(layout.server_url, layout.root)


def _members(layout: Layout) -> Processes:
    return {member.pid: heartbeats.started(member.pid) for member in process_tree.members(layout.server_url)}


def _wait(layout: Layout, pids: Processes, until: float, tell: Tell) -> None:
    control = Control(layout.socket)
    try:
        _wait_for(layout, pids, until, tell, control)
    finally:
        control.close()


def _wait_for(layout: Layout, pids: Processes, until: float, tell: Tell, control: Control) -> None:
    told = 0
    killed = False
    while True:
        # The request wakes supervisord: its loop otherwise takes up to a second to notice that a child has ended.
        try:
            control.alive()
        except Silent:
            pass
        # Include processes that were started while supervisord was stopping.
        left = _members(layout)
        # The pid of an ended process may belong to another process by now, which must not be killed.
        left |= {
            pid: begun for pid, begun in pids.items() if process_tree.alive(pid) and heartbeats.started(pid) == begun
        }
        if not left:
            return
        pids |= left
        if len(left) != told:
            tell(f"{len(left)} processes finish their work")
            told = len(left)
        if now() >= until and not killed:
            # The process that should have ended these has itself ended, or hangs.
            killed = True
            until = now() + GRACE_S
            for pid, begun in left.items():
                process_tree.kill(pid, begun)
        elif now() >= until:
            names = ", ".join(f"{pid} ({process_tree.command(pid)})" for pid in sorted(left))
            raise Unavailable(f"still running: {names}", details={"pids": sorted(left)})
        time.sleep(LOOK_EVERY_S)


def _eldest(pids: set[int]) -> list[int]:
    """The processes without a parent among them: an offload process is stopped by its own worker."""
    return [pid for pid in sorted(pids) if process_tree.parent(pid) not in pids]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _sweep(layout: Layout, run_dir: Path) -> tuple[list[Path], list[Path]]:
    removed: list[Path] = []
    left: list[Path] = []
    for directory in sorted({run_dir, layout.socket.parent}):
        dead, live = process_tree.dead_sockets(directory)
        left += live
        for path in dead:
            path.unlink(missing_ok=True)
            removed.append(path)
    if layout.pidfile.exists() and not process_tree.recorded(layout.pidfile):
        layout.pidfile.unlink(missing_ok=True)
        removed.append(layout.pidfile)
    return removed, left
