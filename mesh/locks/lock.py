"""The user's API: a lock over the whole mesh, `async with self.lock("nightly", ttl="1m"):`.

Owns: waiting for the lock, renewing it while the body runs, stopping the body when it is lost, releasing it.
Leaves to others: which owner holds it (an engine, by mesh.locks.contract).

No lock over a network can prevent this: a process is frozen, its lock expires meanwhile, and the process continues
before it notices. A resource that must be protected even then checks the **token**: it grows with each grant, so a
resource that has seen a larger token rejects a smaller one.
"""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
from types import TracebackType
from typing import Any, Final

from mesh import ids
from mesh.calls.context import current, patience
from mesh.clock import Clock, Timer
from mesh.config.values import read_seconds, show_duration
from mesh.errors import BadRequest, LockLost, LockTaken, MeshError, SetupError
from mesh.locks.contract import Grant, Locks
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder

log = get_logger("mesh.locks")

#: Seconds, or text with a unit: 90, "90s", "1m".
Duration = float | int | str

#: A lock is renewed this often within its time: two renewals may fail before it is lost.
RENEWALS: Final = 3
#: A shorter one would be lost in the pauses of a loaded process; a longer one blocks the others when its owner dies.
LEAST_TTL_S: Final = 1.0
MOST_TTL_S: Final = 86_400.0
#: The longest wait of one request; a longer wait sends another request, which joins the end of the queue. A day is
#: longer than any practical deadline, and shorter than the longest one that the protocol can carry.
ONE_WAIT_S: Final = 86_400.0
ASK_AGAIN_S: Final = 0.05
#: The release is optional, since the lock expires by itself: it must not delay the end of a process.
RELEASE_S: Final = 3.0
#: Running releases, referenced so that they are not garbage-collected.
_GIVING: Final[set[asyncio.Task[None]]] = set()
UNCONFIRMED: Final = "no renewal was confirmed in time"
#: Bytes of a name, in UTF-8.
MOST_NAME: Final = 255


class Held:
    """A lock while it is held: `async with n.lock("nightly", ttl="1m") as held`. See docs/durable.md.

    Attributes:
        name: of the lock.
        owner: the holder, for people.
        token: the fencing token: larger than that of every earlier holder.
        lost: set when the lock is lost while the body still runs; the body is being cancelled.
    """

    __slots__ = ("lost", "name", "owner", "token")

    def __init__(self, grant: Grant) -> None:
        self.name = grant.name
        self.owner = grant.owner
        self.token = grant.token
        self.lost = asyncio.Event()

    def __repr__(self) -> str:
        return f"<lock {self.name} held, token {self.token}>"


class Lock:
    """A lock by name. An async context manager, for one body at a time; it may be used again.

    ::

        async with self.lock("nightly", ttl="1m", wait="10s") as held:
            await archive.write(rows, token=held.token)

    The lock is renewed while the body runs, so `ttl` does not limit the work: it is how long others wait after this
    process has died. When a renewal is rejected, or none was confirmed for `ttl`, the body is cancelled and LockLost
    is raised in place of the cancellation.
    """

    def __init__(
        self,
        name: str,
        locks: Locks,
        *,
        owner: str,
        clock: Clock,
        timeout_s: float,
        rng: random.Random,
        recorder: Recorder,
        ttl: Duration = 60.0,
        wait: Duration | None = None,
    ) -> None:
        """Args:
        owner: names this process; each acquisition appends a unique part.
        timeout_s: how long an acquisition waits for an unreachable engine.
        ttl: how long the lock outlives a process that dies while holding it.
        wait: how long to wait while another owner holds the lock; 0 tries once. None: until the deadline of the
            current call or task, or without limit where there is none.

        Raises:
            BadRequest: the name or one of the durations is invalid.
        """
        self.name = _check_name(name)
        self._ttl_s = _read(self.name, "ttl", ttl)
        if not LEAST_TTL_S <= self._ttl_s <= MOST_TTL_S:
            raise BadRequest(
                f'lock "{self.name}": ttl={ttl!r} is not between {show_duration(LEAST_TTL_S)} and '
                f"{show_duration(MOST_TTL_S)}; it is renewed while it is held, so it need not cover the work"
            )
        self._wait_s = None if wait is None else _read(self.name, "wait", wait)
        if self._wait_s is not None and self._wait_s < 0:
            raise BadRequest(f'lock "{self.name}": wait={wait!r} is negative; use 0 to try once')
        self._locks = locks
        self._owner = owner
        self._clock = clock
        self._timeout_s = timeout_s
        self._rng = rng
        self._lost = recorder.counter("locks_lost", "Locks that ended while they were held.")
        self._hold: _Hold | None = None

    def __repr__(self) -> str:
        return f"<lock {self.name}>"

    async def __aenter__(self) -> Held:
        """Raises:
        LockTaken: another owner held the lock during the whole wait.
        TryLater, Uncertain: the engine was unreachable.
        """
        if self._hold is not None:
            raise SetupError(
                f'lock "{self.name}": this object is already in use; create another one for each `async with`'
            )
        task = asyncio.current_task()
        assert task is not None, "async with runs in a task"
        hold = self._hold = _Hold(self, task)
        try:
            await hold.acquire(f"{self._owner}/{ids.etag()}")
        except BaseException:
            self._hold = None
            raise
        return hold.held

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold, self._hold = self._hold, None
        assert hold is not None, "it was entered"
        await hold.end(value)


class _Hold:
    """One acquisition, from the request to the release."""

    held: Held

    def __init__(self, lock: Lock, task: asyncio.Task[Any]) -> None:
        self._lock = lock
        self._clock = lock._clock
        self._locks = lock._locks
        self._ttl_s = lock._ttl_s
        self._task = task
        # Cancellations that were requested before this acquisition; they must not be swallowed.
        self._cancelling = task.cancelling()
        self._why = ""
        # By the clock that also runs while this host sleeps: the engine's host may be awake.
        self._until_at = 0.0
        self._timer: Timer | None = None
        self._renewing: asyncio.Task[None] | None = None

    # --- asking -------------------------------------------------------------------------------------------

    async def acquire(self, owner: str) -> None:
        """Acquire the lock and start renewing it."""
        try:
            self.held = Held(await self._wait(owner))
        except LockTaken:
            raise
        except BaseException:
            # Cancelled, or no answer: the lock may have been granted, or may still be.
            await self._give_back(owner)
            raise
        self._arm()
        # Outside the context of the body: its deadline, trace and surrounding block do not apply to the renewal.
        self._renewing = asyncio.create_task(self._renew(), name=f"mesh.lock {self._lock.name}", context=Context())

    async def _wait(self, owner: str) -> Grant:
        lock, clock = self._lock, self._clock
        call = current()
        began_at = clock.now()
        if lock._wait_s is not None:
            ends_at = began_at + lock._wait_s
        else:
            ends_at = call.deadline_at if call is not None else float("inf")
        while True:
            asked_at, booted_at = clock.now(), clock.boot()
            wait_s = max(0.0, min(ends_at - asked_at, ONE_WAIT_S))
            timeout_s = patience(asked_at, lock._timeout_s)
            try:
                grant = await self._locks.acquire(
                    lock.name, owner, ttl_s=self._ttl_s, wait_s=wait_s, timeout_s=timeout_s
                )
                if clock.boot() - booted_at > self._ttl_s / RENEWALS:
                    # The instant of the grant is unknown; a renewal now gives a known lower bound of its end.
                    booted_at = clock.boot()
                    grant = await self._locks.renew(lock.name, owner, ttl_s=self._ttl_s, timeout_s=self._ttl_s)
                self._until_at = booted_at + self._ttl_s
                if clock.boot() < self._until_at:
                    return grant
            except LockLost:
                # The answer came after the grant had expired: continue as if it had not been granted.
                log.warning("lock.expired", lock=lock.name)
            except LockTaken as exc:
                if clock.now() >= ends_at:
                    waited = f" for {clock.now() - began_at:.3g} s" if ends_at > began_at else ""
                    raise LockTaken(
                        f'lock "{lock.name}" was held by {exc.details.get("owner", "another process")}{waited}',
                        details={**exc.details, "lock": lock.name},
                    ) from exc
                # One request waits for a limited time, or the engine's clock is slightly ahead of ours.
                await clock.sleep(min(ASK_AGAIN_S, ends_at - clock.now()))

    # --- holding ------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_s = self._until_at - self._clock.boot()
        self._timer = self._clock.call_at(self._clock.now() + left_s, self._over, UNCONFIRMED)

    async def _renew(self) -> None:
        """Renew until cancelled, or lost."""
        lock, clock = self._lock, self._clock
        period_s = self._ttl_s / RENEWALS
        # Retry sooner after a failure, so that several tries fit into the remaining time.
        next_s = period_s
        while True:
            await clock.sleep(next_s)
            asked_at = clock.boot()
            left_s = self._until_at - asked_at
            if left_s <= 0:
                # The timer has fired already, unless this host slept meanwhile: its clock stands still during sleep.
                self._over(UNCONFIRMED)
                return
            try:
                await self._locks.renew(lock.name, self.held.owner, ttl_s=self._ttl_s, timeout_s=left_s)
            except LockLost as exc:
                self._over(exc.message)
                return
            except MeshError as exc:
                log.warning("lock.renewal_failed", lock=lock.name, error=exc.message, left_s=round(left_s, 3))
            except Exception:
                # Whatever the error: the body continues for as long as the lock is certain to last.
                log.exception("lock.renewal_failed", lock=lock.name, left_s=round(left_s, 3))
            else:
                self._until_at = asked_at + self._ttl_s
                self._arm()
                next_s = period_s
                continue
            next_s = period_s / 4 * (1 - 0.5 * lock._rng.random())

    def _over(self, why: str) -> None:
        """The lock is lost: stop the body."""
        if self._why:
            return
        self._why = why
        self._lock._lost.add()
        log.error("lock.lost", lock=self._lock.name, owner=self.held.owner, token=self.held.token, why=why)
        self.held.lost.set()
        self._task.cancel()

    # --- giving back --------------------------------------------------------------------------------------

    async def end(self, error: BaseException | None) -> None:
        """End the acquisition after the body has ended, with `error` if it raised.

        Raises:
            LockLost: the lock was lost, and the body was cancelled for that or ended without an error.
        """
        if self._timer is not None:
            self._timer.cancel()
        renewing = self._renewing
        assert renewing is not None
        renewing.cancel()
        if not self._why:
            await self._give_back(self.held.owner)
        await asyncio.gather(renewing, return_exceptions=True)
        if not self._why:
            return
        ours = self._task.uncancel() <= self._cancelling
        lost = LockLost(
            f'lock "{self._lock.name}" (token {self.held.token}) was lost while it was held: {self._why}',
            details={"lock": self._lock.name, "token": self.held.token},
        )
        if error is None:
            raise lost
        if not isinstance(error, asyncio.CancelledError):
            error.add_note(lost.message)
        elif ours:
            raise lost from error

    async def _give_back(self, owner: str) -> None:
        """Release the lock even if the surrounding call or task has passed its deadline or is cancelled again. In the
        latter case the release continues in the background, for RELEASE_S at most.
        """
        giving = asyncio.create_task(self._release(owner), name=f"mesh.unlock {self._lock.name}", context=Context())
        _GIVING.add(giving)
        giving.add_done_callback(_GIVING.discard)
        await asyncio.shield(giving)

    async def _release(self, owner: str) -> None:
        try:
            await self._locks.release(self._lock.name, owner, timeout_s=min(RELEASE_S, self._ttl_s))
        except MeshError as exc:
            log.warning(
                "lock.release_failed",
                lock=self._lock.name,
                ttl_s=self._ttl_s,
                error=exc.message,
            )
        except Exception:
            log.exception("lock.release_failed", lock=self._lock.name, ttl_s=self._ttl_s)


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadRequest(f'lock {name!r} is not a name; use printable text, like lock("nightly")')
    if len(name.encode("utf-8", "replace")) > MOST_NAME:
        raise BadRequest(f'lock "{name[:60]}…": the name is longer than {MOST_NAME} bytes')
    return name


def _read(name: str, what: str, value: Duration) -> float:
    try:
        return read_seconds(value)
    except ValueError as exc:
        why = f": {exc}" if str(exc) else ""
        raise BadRequest(
            f'lock "{name}": {what}={value!r} is not a time like "1m" or a number of seconds{why}'
        ) from None
