"""A worker's standing order with the store, as the worker's process keeps it.

Owns: attaching, and attaching again when link, store or hub were lost; renewing; and knowing when the leases are lost.
Leaves to others: running leases (tasks.runner), giving them (mesh.store).

The worker's half of a promise: what it holds is given to nobody else while it says so in time. Silence counts from the
sending of the last renewal that was confirmed, so here it always ends before it does in the store. A loop that was
blocked for longer asks once more before it gives up: in the store an open link counts as a sign of life.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

import msgspec

from mesh.clock import Clock, Timer
from mesh.engines.sqlite import vitals
from mesh.engines.sqlite.asking import Asker, answer_of, passing
from mesh.engines.sqlite.messages import DAY_S, SERVICE, WORK, Push, encode
from mesh.errors import MeshError
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import Offer, Receiver
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.engines.sqlite")

AGAIN: Final = Backoff(0.05, 1.0)
#: How long `attach` waits for the store before it returns and goes on trying.
FIRST_S: Final = 2.0
#: The share of a lease after which the worker gives its leases up: a handler needs a moment to stop.
SAFE: Final = 0.9
#: A timer that fires later than this was kept waiting by its own loop.
LATE_S: Final = 0.05
#: A question to the store while the lease runs.
ASK_S: Final = 2.0

_read_push: Final = answer_of(Push)

#: (id, attempt) of settlements that are on their way.
Unsettled = Callable[[], Sequence[tuple[str, int]]]


class StoreSession:
    """See mesh.tasks.contract.Session.

    Attributes:
        attached: the store knows this session now.
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
        """`ended` is told when it is closed."""
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
        #: When the last renewal that was confirmed had been sent.
        self._renewed_at = 0.0
        self._timer: Timer | None = None
        self._stream: Any = None
        self._renewing: asyncio.Task[None] | None = None
        self._trying: asyncio.Task[None] | None = None
        self._breaking: asyncio.Task[None] | None = None
        self._task = self._loop.create_task(self._run(), name=f"mesh.session {offer.session}", context=Context())

    # --- asked by the worker ------------------------------------------------------------------------------------

    async def first(self) -> None:
        """Return when it is attached, or after a while: it goes on trying by itself."""
        timer = self._clock.call_at(self._clock.now() + FIRST_S, _done, self._first)
        try:
            await asyncio.shield(self._first)
        finally:
            timer.cancel()

    async def stop(self) -> None:
        """No new leases; those in hand stay and are renewed."""
        if self._stopping:
            return
        self._stopping = True
        if self.attached:
            try:
                await self._ask("stop")
            except MeshError as error:
                # When it is attached again it offers no queues.
                log.debug("the store was not told that a worker takes no more", reason=error.message)

    async def close(self) -> None:
        """End it: what is still held is released at once."""
        if self._closed:
            return
        self._closed = self._stopping = True
        self._ended(self)
        self._stop_timer()
        # It may know us without our having heard so; then it is told, but not waited for as long.
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
                log.info("the store was not told that a worker left; it will see", reason=error.message)

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
                # A receiver that raises breaks its promise; its tasks must go on all the same.
                log.exception("a session with the store failed", session=self._offer.session)
                reason = "it failed"
            if self.attached:
                self.attached = False
                log.info("lost the store; attaching again", session=self._offer.session, reason=reason)
            failures = 1 if self._clock.now() - began_at > AGAIN.most_s else failures + 1
            await self._clock.sleep(AGAIN.delay(failures, self._random()))

    def _complain(self, reason: str) -> None:
        """Say why the store will not have us; once, for it is asked again every second."""
        if reason != self._complaint:
            self._complaint = reason
            log.error("the store refuses this worker; asking again", session=self._offer.session, reason=reason)

    async def _attend(self) -> None:
        """One stream, from its opening to its end."""
        receiver = self._receiver
        held = {*receiver.held(), *self._unsettled()}
        offer = msgspec.structs.replace(self._offer, held=tuple(held))
        if self._stopping:
            # It answers for no service any more: a task that nobody else declares is not unknown for that.
            offer = msgspec.structs.replace(offer, queues=(), services=())
        sent_at = self._clock.now()
        self._stream = stream = self._asker.stream(WORK, encode((offer,)), timeout=DAY_S, decode=_read_push)
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
        """Say that we live, three times in a lease."""
        while True:
            await self._clock.sleep(self._lease_s / 3)
            if self.attached:
                await self._renew_once()

    async def _renew_once(self) -> bool:
        """Whether the store confirmed it."""
        sent_at = self._clock.now()
        try:
            known = await self._ask("renew", timeout_s=self._lease_s / 3)
        except MeshError:
            return False
        if not known:
            # It has given our leases up; attaching again tells which.
            self._break_off()
            return False
        self._renewed_at = max(self._renewed_at, sent_at)
        self._watch()
        return True

    def _watch(self) -> None:
        """Look again when the leases would be lost."""
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
            # This loop was blocked, not the way to the store: while the link stands nobody has taken anything.
            self._trying = self._loop.create_task(self._last_try(), name="mesh.renewal last", context=Context())
        else:
            self._lost()

    async def _last_try(self) -> None:
        if not await self._renew_once():
            self._lost()

    def _lost(self) -> None:
        silent_s = self._clock.now() - self._renewed_at
        reason = f"the store did not confirm the lease for {silent_s:.3g} s"
        log.warning("leases lost", session=self._offer.session, reason=reason)
        self._receiver.lost(reason)
        # The store may not know: attaching again, with nothing in hand, tells it.
        self._break_off()

    def _break_off(self) -> None:
        """End the stream; `_run` opens another."""
        if self._stream is not None and not self._closed:
            self._breaking = self._loop.create_task(self._stream.aclose(), name="mesh.session break", context=Context())

    async def _ask(self, method: str, timeout_s: float = ASK_S) -> Any:
        body = encode((self._offer.session,))
        return await self._asker.call(f"{SERVICE}.{method}", body, timeout=timeout_s, idempotent=True)


def placed(offer: Offer) -> Offer:
    """The offer with the place of this process, where it does not say one."""
    if offer.pid_space and offer.pid:
        return offer
    return msgspec.structs.replace(offer, pid=offer.pid or os.getpid(), pid_space=vitals.pid_space())


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
