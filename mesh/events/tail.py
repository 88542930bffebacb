"""The end of the event log, followed by one reader for all that wait for new events in this process.

Owns: catching up from an offset, new events in order and each once, and followers that are too slow.
Leaves to others: the log (the engine), authorization (the engine's guard).

One poll of the log serves all followers: a thousand browsers that follow a thousand orders cost as much as one. A
follower first reads the log by itself, and then takes what the poll finds; offsets tell what it has already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from typing import Final, TypeVar

from mesh.clock import Clock
from mesh.errors import Forbidden, MeshError, TryLater, Uncertain
from mesh.events.log import EventLog, LoggedEvent
from mesh.events.topics import check_pattern, matches
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.events")

T = TypeVar("T")

#: How often the log is read while there are followers: half of this is the mean delay of an event.
POLL_S: Final = 0.1
#: Events of one page.
PAGE: Final = 500
#: New events that may wait for one follower; beyond that it reads the log by itself again.
BACKLOG: Final = 1000


class _Follower:
    """One reader."""

    __slots__ = ("behind", "pattern", "queue", "woken")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.queue: deque[LoggedEvent] = deque()
        #: It must read the log before it takes from the queue.
        self.behind = True
        self.woken = asyncio.Event()


class Tail:
    """The followers of one process.

    Args:
        engine: gives the log of events.
        timeout_s: how long one read may take.
    """

    def __init__(self, engine: Callable[[], EventLog], clock: Clock, timeout_s: float) -> None:
        self._engine = engine
        self._clock = clock
        self._timeout_s = timeout_s
        self._followers: set[_Follower] = set()
        self._offset = -1
        self._task: asyncio.Task[None] | None = None
        #: Patterns that the poll reads: one for all, unless [access] does not allow it.
        self._single = True

    async def follow(self, pattern: str, after: int | None) -> AsyncIterator[LoggedEvent]:
        """The events of a topic pattern after an offset, in order, each once; then new ones as they come, without end.

        Raises:
            BadTopic: the pattern is malformed.
            Forbidden: `[access]` does not allow all topics of the pattern.
        """
        check_pattern(pattern)
        follower = _Follower(pattern)
        if after is None:
            after = await self._retried(lambda: self._engine().last(timeout_s=self._timeout_s))
        self._followers.add(follower)
        self._start()
        try:
            while True:
                if follower.behind:
                    # In this order: what is appended from now on is in the queue, too.
                    follower.behind = False
                    follower.queue.clear()
                    while page := await self._read(pattern, after, PAGE):
                        for logged in page:
                            after = logged.offset
                            yield logged
                while not follower.behind and follower.queue:
                    logged = follower.queue.popleft()
                    if logged.offset > after:
                        after = logged.offset
                        yield logged
                if not follower.behind and not follower.queue:
                    follower.woken.clear()
                    await follower.woken.wait()
        finally:
            self._followers.discard(follower)

    def _start(self) -> None:
        if self._task is None:
            # In a context of its own: the deadline of the request that follows first is not that of the poll.
            self._task = asyncio.get_running_loop().create_task(
                self._poll(), name="mesh.events tail", context=Context()
            )

    async def _poll(self) -> None:
        self._offset = await self._retried(lambda: self._engine().last(timeout_s=self._timeout_s))
        # What was appended before is for the followers' own reads: those that began before now must read again.
        for follower in self._followers:
            self._set_behind(follower)
        while self._followers:
            await self._clock.sleep(POLL_S)
            try:
                while await self._turn():
                    pass
            except MeshError as exc:
                # The store restarts: the followers wait for it.
                log.debug("events.tail_interrupted", error=exc.message)
        self._task = None

    async def _turn(self) -> bool:
        """Read one page and hand it out; returns whether there may be more."""
        served = set(self._followers)
        patterns = {follower.pattern for follower in served}
        if not patterns:
            return False
        events = self._engine()
        if self._single or len(patterns) == 1:
            try:
                page = await events.read(_common(patterns), after=self._offset, limit=PAGE, timeout_s=self._timeout_s)
            except Forbidden:
                if len(patterns) == 1:
                    raise
                self._single = False
                return True
            full = len(page) == PAGE
            until = page[-1].offset if page else self._offset
        else:
            # The patterns are read one after the other: an event that comes meanwhile is for the next turn.
            until = await events.last(timeout_s=self._timeout_s)
            pages = [
                await events.read(pattern, after=self._offset, limit=PAGE, timeout_s=self._timeout_s)
                for pattern in sorted(patterns)
            ]
            full = any(len(page) == PAGE for page in pages)
            until = min([until, *(page[-1].offset for page in pages if len(page) == PAGE)])
            found = {logged.offset: logged for page in pages for logged in page if logged.offset <= until}
            page = [found[offset] for offset in sorted(found)]
        for logged in page:
            self._hand_out(logged, served)
        self._offset = max(self._offset, until)
        for follower in self._followers - served:
            # It came while the log was read, possibly for other topics.
            self._set_behind(follower)
        return full

    def _hand_out(self, logged: LoggedEvent, served: set[_Follower]) -> None:
        topic = logged.event.topic
        for follower in served:
            if follower.behind or not matches(follower.pattern, topic):
                continue
            if len(follower.queue) >= BACKLOG:
                self._set_behind(follower)
            else:
                follower.queue.append(logged)
                follower.woken.set()

    def _set_behind(self, follower: _Follower) -> None:
        follower.queue.clear()
        follower.behind = True
        follower.woken.set()

    async def _read(self, pattern: str, after: int, limit: int) -> list[LoggedEvent]:
        return await self._retried(
            lambda: self._engine().read(pattern, after=after, limit=limit, timeout_s=self._timeout_s)
        )

    async def _retried(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the engine, again and again while it is away."""
        while True:
            try:
                return await ask()
            except (TryLater, Uncertain):
                await self._clock.sleep(POLL_S)

    async def close(self) -> None:
        """End the poll."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _common(patterns: set[str]) -> str:
    """A pattern for all of these: that of their first word when it is the same."""
    if len(patterns) == 1:
        return next(iter(patterns))
    firsts = {pattern.partition(".")[0] for pattern in patterns}
    first = firsts.pop() if len(firsts) == 1 else "#"
    return "#" if first in ("*", "#") else f"{first}.#"
