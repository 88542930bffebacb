"""Sending units to the store: the units of one loop tick are sent in one call.

Owns: batching, the number of concurrent calls, retrying until each unit's deadline, and the result of each unit.
Leaves to others: links and instances (calls.client), applying a unit (the store).

A unit may be sent any number of times: the store detects units that it has committed. So a broken link or a restart of
the store only costs time.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from mesh.calls.context import inherited
from mesh.calls.expiry import Expiries
from mesh.calls.options import CallOptions
from mesh.clock import Clock, Timer
from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.asking import NO_STORE, RETRY, Asker, answer_of, passing
from mesh.engines.sqlite.messages import APPLY, SERVICE, apply_body, encode
from mesh.errors import BadArguments, BadReply, LinkLost, Unavailable, Uncertain, from_wire
from mesh.tasks.contract import Settlement

#: Maximum number of units and bytes of one call. The store handles a call of this size in a few milliseconds.
MOST_UNITS: Final = 128
MOST_BYTES: Final = 256 * 1024
#: Concurrent calls: one that the store works on, one that is queued there, and two in transit.
MOST_CALLS: Final = 4
#: When an answer takes longer, its units are sent again.
PATIENCE_S: Final = 30.0

_read_outcomes: Final = answer_of(list[Outcome])


class Commit(asyncio.Future[Any]):
    """A unit that is being sent; await it for the outcome. A cancelled one may still be committed."""

    # No __init__, for speed: one is made for every commit.
    __slots__ = ("began_at", "body", "deadline_at", "doubtful", "pick", "settle", "slot", "under_way")

    began_at: float
    body: bytes
    deadline_at: float
    #: A call with it was lost: it may have been committed.
    doubtful: bool
    #: (outcome) -> the result of this future; None: the outcome itself.
    pick: Callable[[Outcome], Any] | None
    settle: Sequence[Settlement]
    slot: int
    under_way: bool

    def expire(self) -> None:
        """The deadline is over: fail with Uncertain or Unavailable."""
        if self.done():
            return
        if self.under_way or self.doubtful:
            after = self.deadline_at - self.began_at
            self.set_exception(
                Uncertain(
                    f"the store did not answer within {after:.3g} s; the request may have been applied: it is "
                    "safe to send it again"
                )
            )
        else:
            self.set_exception(Unavailable(NO_STORE))


class Batcher:
    """The units of one process. One event loop owns it."""

    def __init__(self, asker: Asker, clock: Clock, rng: random.Random) -> None:
        self._asker = asker
        self._clock = clock
        self._now = clock.now
        self._random = rng.random
        self._loop = asyncio.get_running_loop()
        self._expiries = Expiries(clock)
        self._waiting: deque[Commit] = deque()
        self._bytes = 0
        self._calls: dict[asyncio.Future[Any], list[Commit]] = {}
        # The context of one caller (a deadline, a trace) must not apply to a call for many callers.
        self._context = Context()
        self._scheduled = False
        self._failures = 0
        self._resume: Timer | None = None
        self._closed = False

    def commit(
        self, unit: Unit, timeout_s: float, *, pick: Callable[[Outcome], Any] | None = None, gathered: bool = False
    ) -> Commit:
        """Send a unit together with the others of this tick; return the awaitable for its outcome.

        Args:
            pick: (outcome) -> the result of the awaitable, when that is not the outcome itself.
            gathered: the unit already holds all items of a tick (tasks.gathering): send it now, not at the next tick,
                unless MOST_CALLS calls are running.

        Raises, when awaited: see mesh.engines.contract.Engine.commit.

        Raises:
            BadArguments: the unit contains a value that cannot be encoded.
        """
        try:
            body = encode(unit)
        except Exception as exc:
            raise BadArguments(f"this cannot be sent to the store: {exc}") from exc
        now = self._now()
        commit = Commit(loop=self._loop)
        commit.body = body
        commit.began_at = now
        commit.doubtful = commit.under_way = False
        commit.pick = pick
        commit.settle = unit.settle
        commit.slot = 0
        deadline_at = now + timeout_s
        if not unit.settle:
            # An acknowledgement is useful even after the attempt's own deadline.
            deadline_at = inherited(deadline_at)
        commit.deadline_at = deadline_at
        if self._closed:
            commit.set_exception(Unavailable("this engine is closed"))
            return commit
        self._expiries.watch(commit, deadline_at)
        self._waiting.append(commit)
        self._bytes += len(body)
        # Enough for a call: the store can start while the rest of this tick continues.
        full = len(self._waiting) >= MOST_UNITS or self._bytes >= MOST_BYTES
        if not gathered and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush, context=self._context)
        elif (gathered or full) and len(self._calls) < MOST_CALLS and self._resume is None:
            self._context.run(self._send)
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush, context=self._context)
        return commit

    def unsettled(self) -> list[tuple[str, int]]:
        """(id, attempt) of leases with an unconfirmed settlement: the store still counts them as held.

        Without settlements that were given up: they will not be sent again.
        """
        commits = [*self._waiting, *(commit for sent in self._calls.values() for commit in sent)]
        return [(each.id, each.attempt) for commit in commits if not commit.done() for each in commit.settle]

    def close(self) -> None:
        """End all waiting and running commits with an error."""
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._expiries.close()
        commits = [*self._waiting, *(commit for sent in self._calls.values() for commit in sent)]
        self._waiting.clear()
        for call in tuple(self._calls):
            call.cancel()
        for commit in commits:
            if not commit.done():
                kind = Uncertain if commit.under_way or commit.doubtful else Unavailable
                commit.set_exception(kind("this engine was closed before the store answered"))

    # --- there --------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._calls) < MOST_CALLS and self._resume is None and not self._closed:
            self._send()

    def _send(self) -> None:
        """Send one call with the units at the head of the queue."""
        waiting = self._waiting
        commits: list[Commit] = []
        size = 0
        latest_at = 0.0
        while waiting and len(commits) < MOST_UNITS:
            commit = waiting[0]
            length = len(commit.body)
            if commits and size + length > MOST_BYTES:
                break
            waiting.popleft()
            self._bytes -= length
            if commit.done():
                continue
            commits.append(commit)
            size += length
            if commit.deadline_at > latest_at:
                latest_at = commit.deadline_at
            commit.under_way = True
        if not commits:
            return
        body = apply_body([commit.body for commit in commits])
        timeout = min(PATIENCE_S, max(0.001, latest_at - self._now()))
        call = self._asker.call(APPLY, body, 0, CallOptions(timeout, idempotent=False), decode=_read_outcomes)
        self._calls[call] = commits
        call.add_done_callback(self._answered, context=self._context)

    # --- and back -----------------------------------------------------------------------------------------------

    def _answered(self, call: asyncio.Future[Any]) -> None:
        commits = self._calls.pop(call)
        if call.cancelled():
            return
        error = call.exception()
        if error is None:
            outcomes = call.result()
            if len(outcomes) == len(commits):
                self._failures = 0
                forget = self._expiries.forget
                for commit, outcome in zip(commits, outcomes, strict=True):
                    forget(commit)
                    if commit.done():
                        continue
                    if outcome.error is None:
                        commit.set_result(outcome if commit.pick is None else commit.pick(outcome))
                    else:
                        commit.set_exception(from_wire(outcome.error))
            else:
                self._fail(commits, BadReply(f"{SERVICE} answered {len(outcomes)} of {len(commits)} units"))
        elif passing(error) and not self._closed:
            self._again(commits, error)
        else:
            self._fail(commits, error)
        if self._waiting and not self._scheduled:
            # After the callers that these answers wake: their next units go along.
            self._scheduled = True
            self._loop.call_soon(self._flush, context=self._context)

    def _again(self, commits: list[Commit], error: BaseException) -> None:
        """Put units back at the head of the queue, in order, and pause."""
        doubtful = isinstance(error, Uncertain)
        for commit in reversed(commits):
            if commit.done():
                continue
            commit.under_way = False
            commit.doubtful = commit.doubtful or doubtful
            self._waiting.appendleft(commit)
            self._bytes += len(commit.body)
        self._failures += 1
        # A first broken link needs no pause: the next call itself waits for a new link.
        if self._resume is None and (self._failures > 1 or not isinstance(error, LinkLost)):
            pause_s = RETRY.delay(self._failures, self._random())
            self._resume = self._clock.call_at(self._now() + pause_s, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush, context=self._context)

    def _fail(self, commits: list[Commit], error: BaseException) -> None:
        for commit in commits:
            self._expiries.forget(commit)
            if not commit.done():
                commit.set_exception(error)
