"""The event listener: detects when a process ends, logs it, and slows down crash loops.

Owns: supervisor's event protocol, the state of each process, and killing workers that write no heartbeats.
Leaves to others: when it is a loop and how long to wait (policy.crashloop), how old a heartbeat may be
(policy.liveness), waiting (plugin), showing it (telemetry.crashes, telemetry.restarts).

supervisord starts it by [eventlistener:watch], and restarts it if it dies: its state is then lost, and a crash loop is
detected again after five more short runs.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO, Final

from mesh.errors import MeshError
from mesh.policy.crashloop import GROUND_S, LOOPING, STEADY_S, Lives
from mesh.policy.liveness import REASONS, is_silent
from mesh.supervisord import process_tree
from mesh.supervisord.control import RUNNING, Control
from mesh.supervisord.journal import brief
from mesh.supervisord.watch_metrics import WatchMetrics
from mesh.telemetry import crashes, heartbeats, restarts
from mesh.telemetry.crashes import Crash
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.watch")

#: How many characters of a process's last output to repeat.
WORDS: Final = 300

#: Supervisor ticks every five seconds. A longer interval means that this process was paused.
LATE_TICK_S: Final = 15.0

_ENDED: Final = ("PROCESS_STATE_EXITED", "PROCESS_STATE_BACKOFF")


class _Watched:
    """The state of one process, from the events; times by the wall clock."""

    def __init__(self, lives: Lives) -> None:
        self.lives = lives
        self.started_at = 0.0
        self.runs = False
        self.last_at = 0.0
        self.next_at = 0.0
        self.how = ""
        self.words = ""


class Watch:
    """The state of all processes.

    Args:
        control: used to read the last output of processes, and to delay their restarts.
        run_dir: where crashes are published for other processes.
        ground: the processes that others depend on.
        wall: returns seconds since 1970.
        metrics: counts starts and ends, and is updated at each tick; None counts nothing.
    """

    def __init__(
        self,
        control: Control,
        run_dir: Path,
        ground: Collection[str] = (),
        wall: Callable[[], float] = time.time,
        metrics: WatchMetrics | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._control = control
        self._run_dir = run_dir
        self._ground = ground
        self._wall = wall
        self._now = now
        self._ticked_at = now()
        #: Why this watch killed a process, by its name.
        self._killed: dict[str, str] = {}
        self._known: dict[str, _Watched] = {}
        crashes.write(run_dir, [])
        self._let_all_go()

    def event(self, name: str, payload: dict[str, str]) -> None:
        """Process one event."""
        if name.startswith("TICK"):
            self._tick()
            return
        if "processname" not in payload:
            return
        group, process = payload.get("groupname", ""), payload["processname"]
        full = process if group == process else f"{group}:{process}"
        watched = self._known.get(full)
        if watched is None:
            watched = self._known[full] = _Watched(Lives(GROUND_S) if full in self._ground else Lives())
        if name == "PROCESS_STATE_STARTING":
            watched.started_at = self._wall()
            watched.runs = True
            watched.next_at = 0.0
            if self._metrics is not None:
                self._metrics.started(full)
        elif name in _ENDED:
            self._ended(full, watched)
        elif name in ("PROCESS_STATE_STOPPED", "PROCESS_STATE_FATAL"):
            watched.runs = False
            if name == "PROCESS_STATE_STOPPED":
                self._calm(full, watched, watched.lives.asked)
        self._write()

    def _ended(self, full: str, watched: _Watched) -> None:
        now = self._wall()
        lived_s = now - watched.started_at if watched.started_at else STEADY_S
        lives = watched.lives
        was, waits_s = lives.state, lives.wait_s
        status = self._status(full)
        lives.ended(lived_s, now, killed=status == -signal.SIGKILL)
        watched.runs = False
        watched.last_at = now
        watched.next_at = now + waits_s if waits_s else 0.0
        watched.how = _how(status)
        if self._metrics is not None:
            self._metrics.ended(full, watched.how)
        watched.words = self._words(full)
        reason = self._killed.pop(full, "") or _reason(status)
        restarts.add(self._run_dir, full.partition(":")[0], reason)
        about = {
            "reason": reason,
            "process": full,
            "lived_s": round(lived_s, 1),
            "how": watched.how,
            "last_words": watched.words,
        }
        if lives.state == LOOPING:
            log.error(
                "crash_loop.entered", **about, short_lives=lives.short, waits_s=waits_s, waits_next_s=lives.wait_s
            )
            self._hold(full, lives.wait_s, f"ended {lives.short} times in a row; next start in {lives.wait_s:g} s")
        else:
            log.warning("process.ended", **about, short_lives=lives.short)
            if was == LOOPING:
                self._hold(full, 0.0, "")

    def _tick(self) -> None:
        self._kill_silent()
        for full, watched in self._known.items():
            if watched.lives.short and watched.runs and self._wall() - watched.started_at >= STEADY_S:
                if watched.lives.state == LOOPING:
                    log.info("crash_loop.left", process=full)
                self._calm(full, watched, watched.lives.steady)
        self._write()
        if self._metrics is not None:
            self._metrics.look([full for full, watched in self._known.items() if watched.lives.state == LOOPING])

    def _kill_silent(self) -> None:
        """Kill workers that cannot even report that they are blocked: stopped by a signal, or blocked in C code."""
        now, before = self._now(), self._ticked_at
        self._ticked_at = now
        if now - before > LATE_TICK_S:
            return  # this process was paused as well, and perhaps all of them were
        silent = [each for each in heartbeats.read(self._run_dir) if is_silent(now, each.at, each.liveness_s)]
        if not silent:
            return
        try:
            pids = {process.name: process.pid for process in self._control.processes() if process.state == RUNNING}
        except MeshError:
            return
        for each in silent:
            if pids.get(each.process) == each.pid and process_tree.kill(each.pid, each.started):
                self._killed[each.process] = "silent"
                log.error(
                    "process.killed",
                    reason="no heartbeat for longer than [worker] liveness: stopped by a signal, or blocked in C code "
                    "that holds the interpreter lock",
                    process=each.process,
                    pid=each.pid,
                    silent_s=round(now - each.at, 1),
                    liveness_s=each.liveness_s,
                    where=each.where,
                )

    def _calm(self, full: str, watched: _Watched, step: Callable[[], None]) -> None:
        if watched.lives.state == LOOPING:
            self._hold(full, 0.0, "")
        watched.next_at = 0.0
        step()

    def _write(self) -> None:
        crashes.write(
            self._run_dir,
            [
                Crash(
                    process=full,
                    crashes=watched.lives.crashes,
                    short=watched.lives.short,
                    looping=watched.lives.state == LOOPING,
                    since=watched.lives.since,
                    last_at=watched.last_at,
                    next_at=watched.next_at,
                    how=watched.how,
                    words=watched.words,
                )
                for full, watched in self._known.items()
                if watched.lives.crashes
            ],
        )

    def _hold(self, full: str, seconds: float, why: str) -> None:
        try:
            self._control.hold(full, seconds, why)
        except MeshError as exc:
            log.warning("restart.delay_failed", process=full, error=exc.message)

    def _let_all_go(self) -> None:
        """End the delays of an earlier watch, which can no longer end them itself."""
        try:
            for process in self._control.processes():
                self._control.hold(process.name, 0.0, "")
        except MeshError as exc:
            log.warning("restart.reset_failed", error=exc.message)

    def _status(self, full: str) -> int | None:
        try:
            return self._control.status(full)
        except MeshError:
            return None

    def _words(self, full: str) -> str:
        try:
            lines = [line for line in self._control.tail(full) if line.strip()]
        except MeshError:
            return ""
        return brief(lines[-1])[:WORDS] if lines else ""


def _reason(status: int | None) -> str:
    """Why a process ended, as a label for metrics."""
    if status is None:
        return "unknown"
    if status < 0:
        return "killed" if status == -signal.SIGKILL else "crash"
    return REASONS.get(status) or "exit"


def _how(status: int | None) -> str:
    if status is None:
        return ""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def listen(watch: Watch, taken: BinaryIO, given: BinaryIO) -> None:
    """Run supervisor's event protocol until supervisor closes it.

    Args:
        taken: the source of events (stdin).
        given: the output for READY and RESULT (stdout, which nothing else may use).

    Source: supervisord.org, "Event Listener Notification Protocol".
    """
    while True:
        given.write(b"READY\n")
        given.flush()
        head = taken.readline()
        if not head:
            return
        headers = _pairs(head.decode())
        payload = taken.read(int(headers["len"])).decode("utf-8", "replace")
        try:
            watch.event(headers["eventname"], _pairs(payload))
        except Exception:
            # Continue with the next event; after FAIL, supervisor would only repeat this one.
            log.exception("watch.event_failed", name=headers["eventname"])
        given.write(b"RESULT 2\nOK")
        given.flush()


def _pairs(line: str) -> dict[str, str]:
    """`a:1 b:2` as a dict."""
    return dict(word.split(":", 1) for word in line.split() if ":" in word)
