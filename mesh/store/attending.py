"""Workers that subscribe, reconnect and leave: the changes of each step, in order.

Owns: the streams of sessions, and sending the leases and cancellations of a transaction there.
Leaves to others: when a session is over (sessions), credit (dispatch), the file (the core), transactions (turns).
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
        turns: set after construction, because each of the two refers to the other.
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
        """`damaged` is called when the file turns out to be corrupt."""
        self._core = core
        self._clock = clock
        self._sessions = sessions
        self._dispatch = dispatch
        self._watches = watches
        self._damaged = damaged
        self._streams: dict[str, WorkStream] = {}

    # --- asked by workers ---------------------------------------------------------------------------------------

    async def attach(self, offer: Offer) -> WorkStream:
        """Subscribe a worker, for the first time or again.

        Of its recorded leases, those that it still holds stay; the others were lost on the way to the worker and are
        released at once. Attempts that it runs without a lease are cancelled.

        Raises:
            Unwritable: a change is needed, and the store is read-only or the disk is full.
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
        log.info("session.opened", session=session, queues=len(offer.queues), held=len(held), stale=len(stale))
        return stream

    def detach(self, stream: WorkStream) -> None:
        """A stream has ended: its link broke, or the worker left or subscribed again."""
        if self._streams.get(stream.session) is stream:
            del self._streams[stream.session]
            self._dispatch.shut(stream.session)
            self._sessions.away(stream.session, self._clock.now())
            self.turns.wake()

    def stop(self, session: str) -> bool:
        """Send the session no more leases; return whether it is known."""
        self._dispatch.shut(session)
        return self._sessions.stop(session, self._clock.now())

    async def leave(self, session: str) -> bool:
        """End the session and release its leases; return whether it was known."""
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
        log.info("session.closed", session=session)
        return True

    # --- called by turns ----------------------------------------------------------------------------------------

    def leased(self, session: str, leases: list[Lease]) -> None:
        """Send leases to a session."""
        stream = self._streams.get(session)
        # Without a stream it has disconnected meanwhile: when it returns it does not hold them, and they are released.
        if stream is not None:
            # It gets no more leases until it has read these.
            self._dispatch.shut(session)
            stream.push(leases)

    def stopping(self, session: str, id: str, attempt: int) -> None:
        """Ask a session to stop this attempt."""
        stream = self._streams.get(session)
        if stream is not None:
            stream.cancel(id, attempt)

    def over(self, jobs: Sequence[str]) -> None:
        """These jobs are over."""
        self._watches.over(jobs)

    def damaged(self, error: Fatal) -> None:
        """The file is corrupt: stop using it."""
        self._damaged(error)

    def gone(self, session: str) -> None:
        """A session is over: drop its stream, if it still has one."""
        stream = self._streams.pop(session, None)
        if stream is not None:
            stream.drop()

    def end(self) -> None:
        """Drain: grant no new leases; end every stream after its waiting items are sent."""
        for session, stream in self._streams.items():
            self._dispatch.shut(session)
            stream.end()

    def __len__(self) -> int:
        return len(self._streams)

    # --- inside -------------------------------------------------------------------------------------------------

    def _taken(self, stream: WorkStream) -> None:
        """The worker has read its stream: it may get more leases."""
        if self._streams.get(stream.session) is stream and self._sessions.takes(stream.session):
            self._dispatch.open(stream.session)
            self.turns.wake()

    def _supersede(self, session: str) -> None:
        """Drop the previous stream: its link broke unnoticed. The worker does not hold the leases that wait in it."""
        before = self._streams.pop(session, None)
        if before is not None:
            before.drop()
        self._dispatch.shut(session)

    def _asked_to_stop(self, session: str) -> list[tuple[str, int]]:
        """(id, attempt) of attempts that were cancelled while their worker was disconnected."""
        return [(held.id, held.attempt) for held in self._core.held().get(session, ()) if held.stopping]
