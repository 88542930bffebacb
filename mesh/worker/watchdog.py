"""A thread that watches the event loop of its worker.

Owns: measuring (beats of the loop, memory), the log lines and metrics, the heartbeat file, and ending the process.
Leaves to others: the limits (policy.liveness), starting a new worker (supervisor), a worker in which no thread runs
any more (supervisord.watch).
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from mesh.calls.exhaustion import exhausted
from mesh.config import Settings
from mesh.policy.liveness import BEAT_S, EXITS, HEARTBEAT_S, SOFT_SHARE, Limits, Liveness, Ruling, Stage
from mesh.telemetry import heartbeats
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.recent_maximum import RecentMaximum

log = get_logger("mesh.watchdog")

#: The process ends at most so many seconds after the decision, even when writing the log blocks.
LAST_WORDS_S: Final = 3.0
#: How many seconds a drain may take beyond the worker's stop timeout.
DRAIN_MARGIN_S: Final = 5.0
#: Frames of Python, of mesh and of installed packages: the line of the service that called them is more useful.
_OWN: Final = (
    os.path.dirname(os.__file__),
    os.path.dirname(os.path.dirname(__file__)),
    sysconfig.get_path("purelib"),
    "<",
)
#: Frames outside of these are the same in every worker.
_RUNNING: Final = ("run_services", "run_until_complete", "run_forever", "_run_once")

#: What it means that this worker writes no heartbeats.
_UNWATCHED: Final = "`mesh watch` cannot see whether this worker hangs"


def limits_of(settings: Settings, soft_bytes: int = 0) -> Limits:
    """The limits of this process, from its settings and from `mesh run --limit`."""
    hard_bytes = hard_limit()
    return Limits(
        liveness_s=settings.worker.liveness_s,
        start_s=settings.worker.start_timeout_s,
        lag_s=settings.worker.lag_warning_s,
        soft_bytes=soft_bytes or int(hard_bytes * SOFT_SHARE),
        hard_bytes=hard_bytes,
        drain_s=settings.worker.stop_timeout_s + DRAIN_MARGIN_S,
    )


def hard_limit() -> int:
    """The memory limit of this process in bytes; 0 when there is none."""
    try:
        import resource
    except ImportError:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _take_reserve() -> None:
    """Raise the memory limit as far as allowed: a drain itself needs memory."""
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    except (ImportError, ValueError, OSError):
        pass


class Watchdog:
    """Watches one loop. Create it in the thread that will run the loop.

    Args:
        ends: end the process when it must be replaced; False only logs this (for a debugger at a terminal).
        run_dir: the directory of heartbeat files; None writes none.
    """

    def __init__(self, limits: Limits, *, ends: bool = True, run_dir: Path | None = None) -> None:
        self._limits = limits
        self._ends = ends
        self._liveness = Liveness(limits, time.monotonic())
        self._thread_id = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._drain: Callable[[str], None] | None = None
        self._starting: asyncio.Task[Any] | None = None
        # A bare lock, held until `stop`: waiting for it costs a tenth of waiting for a threading.Event.
        self._stop = threading.Lock()
        self._stop.acquire()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="mesh-watchdog")
        self._memory = _Memory()
        self._leaves = ""
        self._blocks = 0
        self._blocked_s = 0.0
        self._longest = RecentMaximum()
        self._writer = _writer(run_dir)
        self._heartbeat_at = 0.0
        self._pid = os.getpid()
        self._started = heartbeats.started(self._pid) or 0
        self._process = _process_name()

    def start(self) -> None:
        """Begin to watch; the first stage is importing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching: the worker has ended normally."""
        if self._stop.locked():
            self._stop.release()
        if self._beat is not None:
            self._beat.cancel()
        if self._thread.is_alive():
            self._thread.join(LAST_WORDS_S)
        self._memory.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # --- on the loop --------------------------------------------------------------------------------------

    def attach(self, recorder: Recorder, drain: Callable[[str], None], starting: asyncio.Task[Any] | None) -> None:
        """Watch the loop, which runs now.

        Args:
            drain: called on the loop, with a reason, when the worker must drain.
            starting: the task that starts the worker, to report where it hangs.
        """
        self._loop = asyncio.get_running_loop()
        self._drain = drain
        self._starting = starting
        recorder.gauge(
            "loop_lag_seconds",
            lambda: self._longest.read(time.monotonic()),
            "The longest block of the event loop in the last 60 seconds.",
        )
        self._counters = (
            recorder.counter("loop_blocks", "Blocks of the event loop longer than [worker] lag_warning."),
            recorder.counter("loop_blocked_seconds", "How long the event loop was blocked in these blocks."),
        )
        recorder.gauge("memory_used_bytes", lambda: self._liveness.memory_bytes, "Memory as the limits count it.")
        for kind, limit in (("soft", self._limits.soft_bytes), ("hard", self._limits.hard_bytes)):
            if limit:
                recorder.gauge("memory_limit_bytes", partial(float, limit), "Limits of memory.", kind=kind)
        self._on_beat()

    def enter(self, stage: Stage) -> None:
        """Record that the worker has reached this stage."""
        self._liveness.memory_bytes = self._memory.read()
        self._liveness.enter(stage, time.monotonic())

    def _on_beat(self) -> None:
        now = time.monotonic()
        late_s = self._liveness.beat(now)
        if late_s > 0:
            self._longest.note(late_s, now)
        if self._limits.lag_s and late_s >= self._limits.lag_s and self._liveness.stage in ("ready", "draining"):
            blocks, seconds = self._counters
            blocks.add()
            seconds.add(late_s)
        assert self._loop is not None
        self._beat = self._loop.call_later(BEAT_S, self._on_beat)

    # --- in the thread ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        measured_at = 0.0
        while not self._stop.acquire(timeout=self._liveness.wait_s(time.monotonic())):
            now = time.monotonic()
            try:
                if now - measured_at >= HEARTBEAT_S:
                    measured_at = now
                    self._liveness.memory_bytes = self._memory.read()
                    self._write(now)
                ruling = self._liveness.judge(now, exhausted=exhausted.is_set())
                if ruling.action:
                    self._act(ruling)
            except MemoryError:
                self._exit("memory")
            except Exception:
                log.exception("watchdog.failed")

    def _act(self, ruling: Ruling) -> None:
        if ruling.action == "tell":
            self._tell(ruling)
        elif ruling.action == "drain":
            self._ask_to_drain()
        elif self._ends:
            self._end(ruling)
        else:
            # Log it once: disable the limits from now on.
            self._limits = self._limits._replace(liveness_s=0.0, start_s=0.0, drain_s=float("inf"))
            self._liveness.limits = self._limits
            log.error("worker.limit_exceeded", reason=ruling.reason, **self._place(ruling))

    def _tell(self, ruling: Ruling) -> None:
        about = self._place(ruling)
        if ruling.untold:
            about["not_logged"] = ruling.untold
        log.warning("loop.blocked", **about, remedy="use `await`, or write a plain `def`, which runs in a thread")

    def _ask_to_drain(self) -> None:
        used, soft, hard = self._liveness.memory_bytes, self._limits.soft_bytes, self._limits.hard_bytes
        why = "a MemoryError was raised" if exhausted.is_set() else f"{used / 2**20:.0f} MiB used"
        self._leaves = f"{why}, the limits are {soft / 2**20:.0f} MiB (soft) and {hard / 2**20:.0f} MiB (hard)"
        _take_reserve()
        log.error("worker.memory_low", used=used, soft=soft, hard=hard, why=why)
        if self._loop is not None and self._drain is not None:
            self._loop.call_soon_threadsafe(self._drain, "memory")

    def _end(self, ruling: Ruling) -> None:
        # A log that blocks (its pipe is full, its lock is held by the loop) must not keep the process alive.
        faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True)
        causes = {
            "blocked": "the event loop was blocked for longer than [worker] liveness",
            "start_timeout": "the worker did not start within [worker] start_timeout",
            "memory": "the worker was short of memory, and its drain did not end in time",
        }
        code, cause = EXITS[ruling.reason], causes[ruling.reason]
        log.error("worker.aborted", reason=ruling.reason, cause=cause, exit_code=code, **self._place(ruling))
        self._exit(ruling.reason)

    def _exit(self, reason: str) -> None:
        if self._ends:
            os._exit(EXITS[reason])  # type: ignore[index]

    def _place(self, ruling: Ruling) -> dict[str, Any]:
        frame = sys._current_frames().get(self._thread_id)
        blocked = ruling.blocked_s >= min(1.0, self._limits.lag_s or 1.0)
        if not blocked and self._starting is not None and not self._starting.done():
            stack = _awaited(self._starting.get_coro())
            return {"where": stack[-1].strip() if stack else "", "stack": "\n".join(stack)}
        return {
            "blocked_s": round(ruling.blocked_s, 3),
            "where": _where(frame),
            "stack": _stack(frame),
        }

    def _write(self, now: float) -> None:
        if self._writer is None:
            return
        liveness = self._liveness
        blocked_s = liveness.blocked_s(now)
        late = blocked_s >= HEARTBEAT_S
        heartbeat = heartbeats.Heartbeat(
            process=self._process,
            pid=self._pid,
            started=self._started,
            at=now,
            stage=liveness.stage,
            liveness_s=self._limits.liveness_s,
            blocked_s=round(blocked_s, 1) if late else 0.0,
            where=_where(sys._current_frames().get(self._thread_id))[:200] if late else "",
            memory_bytes=liveness.memory_bytes,
            soft_bytes=self._limits.soft_bytes,
            hard_bytes=self._limits.hard_bytes,
            leaves=self._leaves,
        )
        try:
            self._writer.write(heartbeat)
        except OSError as exc:
            log.warning("heartbeat.write_failed", error=str(exc), reason=_UNWATCHED)
            self._writer = None


class _Memory:
    """The memory of this process as RLIMIT_DATA counts it: the heap, and the stacks of threads."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def read(self) -> int:
        if self._file < 0:
            return 0
        return int(os.pread(self._file, 200, 0).split()[5]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _writer(run_dir: Path | None) -> heartbeats.Writer | None:
    if run_dir is None:
        return None
    try:
        return heartbeats.Writer(run_dir)
    except OSError as exc:
        log.warning("heartbeat.write_failed", error=str(exc), reason=_UNWATCHED)
        return None


def _process_name() -> str:
    group, process = os.environ.get("SUPERVISOR_GROUP_NAME", ""), os.environ.get("SUPERVISOR_PROCESS_NAME", "")
    return process if group in ("", process) else f"{group}:{process}"


def supervised() -> bool:
    """Whether supervisor started this process."""
    return bool(_process_name())


def _where(frame: FrameType | None) -> str:
    """The innermost line of the service's own code: `svc.py:12 in slow`."""
    found = frame
    while found is not None and found.f_code.co_filename.startswith(_OWN):
        found = found.f_back
    if found is None or found.f_code.co_filename.endswith(os.path.join("bin", "mesh")):
        found = frame
    return f"{found.f_code.co_filename}:{found.f_lineno} in {found.f_code.co_name}" if found is not None else ""


def _stack(frame: FrameType | None) -> str:
    """The stack from the loop to this frame."""
    if frame is None:
        return ""
    summary = traceback.extract_stack(frame)
    outer = max((number for number, line in enumerate(summary) if line.name in _RUNNING), default=-1)
    return "".join(traceback.format_list(summary[outer + 1 :]))


def _awaited(coroutine: Any) -> list[str]:
    """The lines where a coroutine and the coroutines that it awaits are suspended."""
    lines: list[str] = []
    while coroutine is not None and len(lines) < 50:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            break
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}')
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return lines
