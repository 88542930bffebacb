"""When a worker is blocked, late with its start, or short of memory, and what follows.

Owns: the rules and the exit codes. Time and memory are passed in.
Leaves to others: measuring and acting inside of the worker (service.watchdog), from outside (supervision.watch).

Two observers share these rules. A thread of the worker judges its event loop; it can say which line blocks it. A thread
needs the interpreter, so a worker that is stopped (SIGSTOP) or held up in C code writes no heartbeats: `mesh watch`
judges by those.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

#: How often the loop beats. A block is noticed when a beat is late, so this is how exactly its length is known.
BEAT_S: Final = 0.05
#: How often the thread writes a heartbeat for `mesh watch`, and measures memory.
HEARTBEAT_S: Final = 1.0
#: Heartbeats may be so late beyond `liveness` before `mesh watch` kills: it looks every five seconds, and the thread of
#: the worker, which knows more, is to be first.
SILENCE_MARGIN_S: Final = 3.0
#: Blocks are logged at most so often.
TELL_EVERY_S: Final = 5.0
#: A thread that wakes so much too late was not running itself: the process was paused, and its loop is not to blame.
PAUSE_S: Final = 1.0
#: Where `memory` is given and `memory_soft` is not, this share of it.
SOFT_SHARE: Final = 0.8

#: Exit codes of a worker that ends to be replaced.
EXIT_BLOCKED: Final = 81
EXIT_START: Final = 82
EXIT_MEMORY: Final = 83

Reason = Literal["", "blocked", "start_timeout", "memory"]
#: importing: before there is a loop. waiting: for hubs, and for services that it needs. starting: in `started` hooks.
Stage = Literal["importing", "waiting", "starting", "ready", "draining"]

EXITS: Final[dict[Reason, int]] = {"blocked": EXIT_BLOCKED, "start_timeout": EXIT_START, "memory": EXIT_MEMORY}
REASONS: Final[dict[int, Reason]] = {code: reason for reason, code in EXITS.items()}


class Limits(NamedTuple):
    """What a worker may do; 0 switches a limit off.

    Attributes:
        liveness_s: how long the loop may be blocked.
        start_s: how long importing, and the `started` hooks, may take.
        lag_s: a block that lasts longer is logged.
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
        action: "": nothing. "tell": log where the loop is blocked. "drain": leave in good order. "end": exit at once.
        blocked_s: how long the loop has been blocked, for "tell" and "end".
        untold: how many blocks were not logged since the last one that was.
    """

    action: Literal["", "tell", "drain", "end"] = ""
    reason: Reason = ""
    blocked_s: float = 0.0
    untold: int = 0


_NOTHING: Final = Ruling()


class Liveness:
    """The state of one worker.

    `beat` and `enter` are called on the loop, `judge` in the thread; each attribute has one writer at a time.

    Attributes:
        memory_bytes: as last measured.
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
        """The worker has come to this stage."""
        if stage == "ready":
            # What a worker takes when it has just started cannot be a leak: at least half of what is left is its own.
            start, hard = self.memory_bytes, self.limits.hard_bytes
            if self._soft_bytes and hard > start:
                self._soft_bytes = max(self._soft_bytes, start + (hard - start) // 2)
        self.stage = stage
        self._stage_at = now
        self._beat_at = now

    def beat(self, now: float) -> float:
        """The loop runs; how many seconds late this beat was."""
        late_s = max(0.0, now - self._beat_at - BEAT_S)
        self._beat_at = now
        return late_s

    def blocked_s(self, now: float) -> float:
        """How late the next beat is."""
        return max(0.0, now - self._beat_at - BEAT_S)

    def wait_s(self, now: float) -> float:
        """When to judge again: as soon as the next beat could be late enough to be told of."""
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
            # An import, or a hook that loads a model, may block for as long as a start may take.
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
    """Whether a worker whose last heartbeat is so old is to be killed by an observer outside of it."""
    return liveness_s > 0 and now - heartbeat_at > liveness_s + SILENCE_MARGIN_S
