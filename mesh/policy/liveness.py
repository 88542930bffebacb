"""Liveness: when a worker is blocked, late with its start, or short of memory, and what follows.

Owns: the rules and the exit codes. Time and memory are passed in.
Leaves to others: measuring and acting inside the worker (worker.watchdog) and from outside (supervisord.watch).

Two observers share these rules. A thread of the worker checks its event loop, and can log the line that blocks it. A
thread needs the interpreter, so a worker that is stopped (SIGSTOP) or blocked in C code writes no heartbeats; `mesh
watch` checks these.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

#: Seconds between beats of the loop. A late beat shows a block, so its length is known with this precision.
BEAT_S: Final = 0.05
#: Seconds between heartbeats, which the thread writes for `mesh watch`, and between measurements of memory.
HEARTBEAT_S: Final = 1.0
#: Seconds beyond `liveness` after which `mesh watch` kills: it checks every five seconds, and the worker's own thread,
#: which can log the blocking line, should act first.
SILENCE_MARGIN_S: Final = 3.0
#: Blocks are logged at most once in this many seconds.
TELL_EVERY_S: Final = 5.0
#: When the thread itself wakes this many seconds late, the whole process was paused, and its loop was not blocked.
PAUSE_S: Final = 1.0
#: The default of `memory_soft`, as a share of `memory`.
SOFT_SHARE: Final = 0.8

#: Exit codes of a worker that exits in order to be replaced.
EXIT_BLOCKED: Final = 81
EXIT_START: Final = 82
EXIT_MEMORY: Final = 83
EXIT_UNHEALTHY: Final = 84

#: unhealthy: a program failed its health checks (worker.program); the others are about any worker.
Reason = Literal["", "blocked", "start_timeout", "memory", "unhealthy"]
#: importing: before there is a loop. waiting: for hubs, and for services that it needs. starting: in `started` hooks.
Stage = Literal["importing", "waiting", "starting", "ready", "draining"]

EXITS: Final[dict[Reason, int]] = {
    "blocked": EXIT_BLOCKED,
    "start_timeout": EXIT_START,
    "memory": EXIT_MEMORY,
    "unhealthy": EXIT_UNHEALTHY,
}
REASONS: Final[dict[int, Reason]] = {code: reason for reason, code in EXITS.items()}


class Limits(NamedTuple):
    """The limits of a worker; 0 disables a limit.

    Attributes:
        liveness_s: how long the loop may be blocked.
        start_s: how long the imports, and then the `started` hooks, may take.
        lag_s: longer blocks are logged.
        soft_bytes, hard_bytes: memory.
        drain_s: how long a worker that is short of memory may drain.
    """

    liveness_s: float
    start_s: float = 0.0
    lag_s: float = 0.1
    soft_bytes: int = 0
    hard_bytes: int = 0
    drain_s: float = 30.0


class Ruling(NamedTuple):
    """What to do now.

    Attributes:
        action: "": nothing. "tell": log where the loop is blocked. "drain": drain and exit. "end": exit at once.
        blocked_s: how long the loop has been blocked, for "tell" and "end".
        untold: how many blocks have not been logged since the last logged one.
    """

    action: Literal["", "tell", "drain", "end"] = ""
    reason: Reason = ""
    blocked_s: float = 0.0
    untold: int = 0


_NOTHING: Final = Ruling()


class Liveness:
    """The liveness state of one worker.

    `beat` and `enter` are called on the loop, `judge` in the thread; each attribute has one writer at a time.

    Attributes:
        memory_bytes: the last measurement.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.stage: Stage = "importing"
        self.memory_bytes = 0
        self._stage_at = now
        self._beat_at = now
        self._soft_bytes = limits.soft_bytes
        self._judged_at = now
        self._expected_s = 0.0
        self._told_beat = -1.0
        self._told_at = now - TELL_EVERY_S
        self._untold = 0
        self._drain_at: float | None = None

    def enter(self, stage: Stage, now: float) -> None:
        """The worker enters this stage."""
        if stage == "ready":
            # The memory of a worker that has just started is not a leak: raise the soft limit so that the worker may
            # use at least half of the rest.
            start, hard = self.memory_bytes, self.limits.hard_bytes
            if self._soft_bytes and hard > start:
                self._soft_bytes = max(self._soft_bytes, start + (hard - start) // 2)
        self.stage = stage
        self._stage_at = now
        self._beat_at = now

    def beat(self, now: float) -> float:
        """The loop runs. Returns how many seconds late this beat is."""
        late_s = max(0.0, now - self._beat_at - BEAT_S)
        self._beat_at = now
        return late_s

    def blocked_s(self, now: float) -> float:
        """How many seconds late the next beat is."""
        return max(0.0, now - self._beat_at - BEAT_S)

    def wait_s(self, now: float) -> float:
        """Seconds until the next `judge`: until the next beat could be late enough to be logged."""
        lag_s = self.limits.lag_s or HEARTBEAT_S
        age_s = now - self._beat_at
        wait_s = BEAT_S + lag_s - age_s
        self._expected_s = min(wait_s if wait_s > 0 else lag_s, HEARTBEAT_S)
        return max(0.02, self._expected_s)

    def judge(self, now: float, *, exhausted: bool = False) -> Ruling:
        """What to do now.

        Args:
            exhausted: a MemoryError was raised in this worker.
        """
        paused_s = now - self._judged_at - self._expected_s
        self._judged_at = now
        if paused_s > PAUSE_S:
            self._beat_at = min(now, self._beat_at + paused_s)
            self._stage_at = min(now, self._stage_at + paused_s)
        return self._too_late(now) or self._memory(now, exhausted) or self._lag(now) or _NOTHING

    def _too_late(self, now: float) -> Ruling | None:
        limits = self.limits
        if self.stage in ("importing", "starting"):
            # An import, or a hook that loads a model, may block the loop for the whole time that a start may take.
            if limits.start_s and now - self._stage_at > limits.start_s:
                return Ruling("end", "start_timeout", self.blocked_s(now))
            return None
        blocked_s = self.blocked_s(now)
        if limits.liveness_s and blocked_s > limits.liveness_s:
            return Ruling("end", "blocked", blocked_s)
        return None

    def _memory(self, now: float, exhausted: bool) -> Ruling | None:
        if self._drain_at is not None:
            if now - self._drain_at > self.limits.drain_s:
                return Ruling("end", "memory", self.blocked_s(now))
            return None
        limited = self.limits.soft_bytes or self.limits.hard_bytes
        above = self._soft_bytes and self.memory_bytes > self._soft_bytes
        if self.stage == "ready" and limited and (exhausted or above):
            self._drain_at = now
            return Ruling("drain", "memory")
        return None

    def _lag(self, now: float) -> Ruling | None:
        blocked_s = self.blocked_s(now)
        if self.stage not in ("ready", "draining") or not self.limits.lag_s or blocked_s < self.limits.lag_s:
            return None  # before it is ready, no call waits
        if self._beat_at == self._told_beat:
            return None  # the same block
        self._told_beat = self._beat_at
        if now - self._told_at < TELL_EVERY_S:
            self._untold += 1
            return None
        untold, self._untold = self._untold, 0
        self._told_at = now
        return Ruling("tell", "blocked", blocked_s, untold)


def is_silent(now: float, heartbeat_at: float, liveness_s: float) -> bool:
    """Whether `mesh watch` must kill a worker with this last heartbeat."""
    return liveness_s > 0 and now - heartbeat_at > liveness_s + SILENCE_MARGIN_S
