"""The worker's side of its session with the store.

Owns: subscribing, also again after link, store or hub were lost; renewing; and detecting that the leases are lost.
Leaves to others: running leases (tasks.runner), granting them (mesh.store).

The promise: no other worker gets this worker's leases while it renews them in time. The worker counts silence from the
sending of the last confirmed renewal, so its leases end here before they end in the store. After its loop was blocked
for longer, it sends one more renewal before it gives up: for the store an open link is a sign of life.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

import msgspec

from mesh.calls.options import CallOptions
from mesh.clock import Clock, Timer
from mesh.engines.sqlite import liveness
from mesh.engines.sqlite.asking import Asker, answer_of, passing
from mesh.engines.sqlite.messages import DAY_S, SERVICE, WORK, Push, encode
from mesh.errors import MeshError
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import Offer, Receiver
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.engines.sqlite")

AGAIN: Final = Backoff(0.05, 1.0)
#: How long `attach` waits for the store before it returns and retries in the background.
FIRST_S: Final = 2.0
#: The share of the lease time after which the worker gives up its leases: a handler needs a moment to stop.
SAFE: Final = 0.9
#: A timer that fires later than this was delayed by a blocked loop.
LATE_S: Final = 0.05
#: Timeout of a request to the store while the lease runs.
ASK_S: Final = 2.0

_read_push: Final = answer_of(Push)

#: (id, attempt) of unconfirmed settlements.
Unsettled = Callable[[], Sequence[tuple[str, int]]]


class StoreSession:
    """See mesh.tasks.contract.Session.

    Attributes:
        attached: the store has confirmed this session.
    """

    def __init__(
        self,
        asker: Asker,
        clock: Clock,
        rng: random.Random,
        offer: Offer,
        receiver: Receiver,
        unsettled: Unsettled,
        ended: Callable[[StoreSession], None],
    ) -> None:
        """`ended` is called when the session is closed."""
        self._asker = asker
        self._clock = clock
        self._random = rng.random
        self._offer = placed(offer)
        self._receiver = receiver
        self._unsettled = unsettled
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self.attached = False
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._stopping = False
        self._closed = False
        self._complaint = ""
        self._lease_s = 0.0
        #: When the last confirmed renewal was sent.
        self._renewed_at = 0.0
        self._timer: Timer | None = None
        self._stream: Any = None
        self._renewing: asyncio.Task[None] | None = None
        self._trying: asyncio.Task[None] | None = None
        self._breaking: asyncio.Task[None] | None = None
        self._task = self._loop.create_task(self._run(), name=f"mesh.session {offer.session}", context=Context())

    # --- asked by the worker ------------------------------------------------------------------------------------

    async def first(self) -> None:
        """Wait until the session is confirmed, at most FIRST_S; retries continue in the background."""
        timer = self._clock.call_at(self._clock.now() + FIRST_S, _done, self._first)
        try:
            await asyncio.shield(self._first)
        finally:
            timer.cancel()

    async def stop(self) -> None:
        """Receive no new leases; those that are held stay and are renewed."""
        if self._stopping:
            return
        self._stopping = True
        if self.attached:
            try:
                await self._ask("stop")
            except MeshError as error:
                # When the session subscribes again, it does so without queues.
                log.debug("session.stop_unreported", reason=error.message)

    async def close(self) -> None:
        """End the session: leases that are still held are released at once."""
        if self._closed:
            return
        self._closed = self._stopping = True
        self._ended(self)
        self._stop_timer()
        # An unconfirmed session may be known to the store: end it too, but with a shorter timeout.
        timeout_s = ASK_S if self.attached else ASK_S / 4
        self.attached = False
        tasks = [task for task in (self._task, self._renewing, self._trying, self._breaking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._stream is not None:
            try:
                await self._ask("leave", timeout_s)
            except MeshError as error:
                log.info("session.close_unreported", reason=error.message)

    # --- attaching ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while True:
            began_at = self._clock.now()
            try:
                await self._attend()
                reason = "the store ended the stream"
            except MeshError as error:
                reason = error.message
                if not passing(error):
                    self._complain(reason)
            except Exception:
                # A receiver must not raise; if it does, the session must continue all the same.
                log.exception("session.failed", session=self._offer.session)
                reason = "it failed"
            if self.attached:
                self.attached = False
                log.info("session.lost", session=self._offer.session, reason=reason)
            failures = 1 if self._clock.now() - began_at > AGAIN.most_s else failures + 1
            await self._clock.sleep(AGAIN.delay(failures, self._random()))

    def _complain(self, reason: str) -> None:
        """Log why the store rejects this session; once, because it is tried again every second."""
        if reason != self._complaint:
            self._complaint = reason
            log.error("session.refused", session=self._offer.session, reason=reason)

    async def _attend(self) -> None:
        """Read one stream, from its opening to its end."""
        receiver = self._receiver
        held = {*receiver.held(), *self._unsettled()}
        offer = msgspec.structs.replace(self._offer, held=tuple(held))
        if self._stopping:
            # Without services: a task that no other worker declares must not become unknown because of this session.
            offer = msgspec.structs.replace(offer, queues=(), services=())
        sent_at = self._clock.now()
        self._stream = stream = self._asker.stream(WORK, encode((offer,)), 0, CallOptions(DAY_S), decode=_read_push)
        async with stream:
            async for push in stream:
                if push.lease_s and not self.attached:
                    self._welcomed(push.lease_s, sent_at)
                if push.leases:
                    receiver.leased(push.leases)
                if push.cancel:
                    receiver.cancel(push.cancel)

    def _welcomed(self, lease_s: float, sent_at: float) -> None:
        self.attached = True
        self._complaint = ""
        self._lease_s = lease_s
        self._renewed_at = sent_at
        self._watch()
        if self._renewing is None:
            self._renewing = self._loop.create_task(
                self._renew(), name=f"mesh.renewal {self._offer.session}", context=Context()
            )
        _done(self._first)

    # --- the lease ----------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Renew the session, three times per lease time."""
        while True:
            await self._clock.sleep(self._lease_s / 3)
            if self.attached:
                await self._renew_once()

    async def _renew_once(self) -> bool:
        """Send one renewal; return whether the store confirmed it."""
        sent_at = self._clock.now()
        try:
            known = await self._ask("renew", timeout_s=self._lease_s / 3)
        except MeshError:
            return False
        if not known:
            # The store has ended this session; subscribing again shows which leases are lost.
            self._break_off()
            return False
        self._renewed_at = max(self._renewed_at, sent_at)
        self._watch()
        return True

    def _watch(self) -> None:
        """Set the timer for the instant at which the leases would be lost."""
        self._stop_timer()
        due_at = self._renewed_at + self._lease_s * SAFE
        self._timer = self._clock.call_at(due_at, self._overdue, due_at)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self, due_at: float) -> None:
        self._timer = None
        if self.attached and self._clock.now() - due_at > LATE_S:
            # This loop was blocked, not the link: while the link is open, the store has not released the leases.
            self._trying = self._loop.create_task(self._last_try(), name="mesh.renewal last", context=Context())
        else:
            self._lost()

    async def _last_try(self) -> None:
        if not await self._renew_once():
            self._lost()

    def _lost(self) -> None:
        silent_s = self._clock.now() - self._renewed_at
        reason = f"the store did not confirm the lease for {silent_s:.3g} s"
        log.warning("session.leases_lost", session=self._offer.session, reason=reason)
        self._receiver.lost(reason)
        # The store may not know that the leases are lost: subscribing again without held leases reports it.
        self._break_off()

    def _break_off(self) -> None:
        """End the stream; `_run` opens another."""
        if self._stream is not None and not self._closed:
            self._breaking = self._loop.create_task(self._stream.aclose(), name="mesh.session break", context=Context())

    async def _ask(self, method: str, timeout_s: float = ASK_S) -> Any:
        body = encode((self._offer.session,))
        return await self._asker.call(f"{SERVICE}.{method}", body, 0, CallOptions(timeout_s, idempotent=True))


def placed(offer: Offer) -> Offer:
    """The offer with the host, pid and pid namespace of this process, unless it names others."""
    if offer.pid_space and offer.pid:
        return offer
    return msgspec.structs.replace(offer, pid=offer.pid or os.getpid(), pid_space=liveness.pid_space())


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
