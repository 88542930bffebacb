"""Workers that attach, come back and leave: what each of these changes, in order.

Owns: the streams of sessions, and what a turn's leases and news become there.
Leaves to others: when a session is over (sessions), credit (dispatch), the file (the core), turns (turns).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mesh.clock import Clock
from mesh.engines.sqlite.core import Core, Turn
from mesh.engines.sqlite.disk import Fatal
from mesh.engines.sqlite.messages import Push
from mesh.store.dispatch import Dispatch
from mesh.store.sessions import Sessions
from mesh.store.streams import WorkStream
from mesh.store.turns import Turns
from mesh.store.watches import Watches
from mesh.tasks.contract import Lease, Offer
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.store")


class Attending:
    """Every worker's stream.

    Attributes:
        turns: given by whoever makes both.
    """

    turns: Turns

    def __init__(
        self,
        core: Core,
        clock: Clock,
        sessions: Sessions,
        dispatch: Dispatch,
        watches: Watches,
        damaged: Callable[[Fatal], None],
    ) -> None:
        """`damaged` is told when the file turns out not to be as it was written."""
        self._core = core
        self._clock = clock
        self._sessions = sessions
        self._dispatch = dispatch
        self._watches = watches
        self._damaged = damaged
        self._streams: dict[str, WorkStream] = {}

    # --- asked by workers ---------------------------------------------------------------------------------------

    async def attach(self, offer: Offer) -> WorkStream:
        """A worker is here, for the first time or again.

        Of the leases that it had, those that it still holds stay; the others got lost on the way to it and go to
        others at once. What it holds and has no lease on it is told to stop.

        Raises:
            Unwritable: something would have to be written, and the disk takes nothing.
        """
        session = offer.session
        self._supersede(session)
        held = set(offer.held)
        declared = self._core.declared
        news = [queue for queue in offer.queues if declared(queue.name) != queue]
        mine = self._dispatch.leases(session)
        stale = held - mine
        if news or not mine <= held:

            def act(turn: Turn) -> list[tuple[str, int]]:
                for queue in news:
                    turn.declare(queue)
                stale = turn.release(session, keep=offer.held, lost=False)
                for id, attempt in self._dispatch.leases(session) - held:
                    self._dispatch.let_go(id, attempt)
                return stale

            stale = set(await self.turns.do(act))
            self._supersede(session)
        now = self._clock.now()
        self._sessions.attach(offer, now)
        self._dispatch.attach(session, offer.queues, now)
        stream = WorkStream(session, Push(lease_s=self._sessions.lease_s), self._taken)
        self._streams[session] = stream
        for id, attempt in stale:
            stream.cancel(id, attempt)
        for id, attempt in self._asked_to_stop(session) if held else ():
            stream.cancel(id, attempt)
        log.info("a worker is attached", session=session, queues=len(offer.queues), held=len(held), stale=len(stale))
        return stream

    def detach(self, stream: WorkStream) -> None:
        """A stream has ended: its link broke, or the worker left, or attached anew."""
        if self._streams.get(stream.session) is stream:
            del self._streams[stream.session]
            self._dispatch.shut(stream.session)
            self._sessions.away(stream.session, self._clock.now())
            self.turns.wake()

    def stop(self, session: str) -> bool:
        """It wants no more."""
        self._dispatch.shut(session)
        return self._sessions.stop(session, self._clock.now())

    async def leave(self, session: str) -> bool:
        """It is done; what it holds goes to others."""
        if session not in self._sessions:
            return False
        self._dispatch.shut(session)

        def act(turn: Turn) -> None:
            turn.release(session, lost=False)
            self._dispatch.leave(session)

        if self._dispatch.holds(session):
            await self.turns.do(act)
        else:
            self._dispatch.leave(session)
        self._sessions.forget(session)
        self.gone(session)
        log.info("a worker has left", session=session)
        return True

    # --- told by turns ------------------------------------------------------------------------------------------

    def leased(self, session: str, leases: list[Lease]) -> None:
        """Give it these."""
        stream = self._streams.get(session)
        # Without a stream it went within the turn: when it comes back it does not hold them, and they are released.
        if stream is not None:
            # Until it has taken them it gets no more.
            self._dispatch.shut(session)
            stream.push(leases)

    def stopping(self, session: str, id: str, attempt: int) -> None:
        """Somebody wants this attempt to stop."""
        stream = self._streams.get(session)
        if stream is not None:
            stream.cancel(id, attempt)

    def over(self, jobs: Sequence[str]) -> None:
        """These jobs are over."""
        self._watches.over(jobs)

    def damaged(self, error: Fatal) -> None:
        """Nothing may be built on this file any more."""
        self._damaged(error)

    def gone(self, session: str) -> None:
        """A session is over: so is its stream, if it still has one."""
        stream = self._streams.pop(session, None)
        if stream is not None:
            stream.drop()

    def end(self) -> None:
        """The store leaves: no new leases; every stream ends when what waits in it is sent."""
        for session, stream in self._streams.items():
            self._dispatch.shut(session)
            stream.end()

    def __len__(self) -> int:
        return len(self._streams)

    # --- inside -------------------------------------------------------------------------------------------------

    def _taken(self, stream: WorkStream) -> None:
        """It has read what there was: it may have more."""
        if self._streams.get(stream.session) is stream and self._sessions.takes(stream.session):
            self._dispatch.open(stream.session)
            self.turns.wake()

    def _supersede(self, session: str) -> None:
        """Its link broke without our knowing yet. What waits in the stream is lost: the worker does not hold it."""
        before = self._streams.pop(session, None)
        if before is not None:
            before.drop()
        self._dispatch.shut(session)

    def _asked_to_stop(self, session: str) -> list[tuple[str, int]]:
        """(id, attempt) of those that somebody cancelled while their worker was away."""
        return [(held.id, held.attempt) for held in self._core.held().get(session, ()) if held.stopping]
