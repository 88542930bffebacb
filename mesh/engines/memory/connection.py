"""The connection of one process to the memory that all processes share, and its workers' sessions over it.

Owns: cutting the connection (which tests may do), waiting for it, and subscribing again after a cut.
Leaves to others: the contracts (engine), all data (memory).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from mesh.engines.memory.memory import Memory
from mesh.engines.memory.sessions import SessionState
from mesh.errors import Unavailable
from mesh.tasks.contract import Offer, Receiver


class Way:
    """The connection of one process to the memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._blocked: asyncio.Future[None] | None = None

    @property
    def open(self) -> bool:
        return self._blocked is None

    def cut(self) -> None:
        if self._blocked is None:
            self._blocked = asyncio.get_running_loop().create_future()

    def mend(self) -> None:
        if self._blocked is not None:
            self._blocked.set_result(None)
            self._blocked = None

    async def clear(self, timeout_s: float) -> None:
        """Wait until the connection is open.

        Raises:
            Unavailable: it was cut for all of `timeout_s`; nothing was done.
        """
        if self._blocked is not None and not await self.within(asyncio.shield(self._blocked), timeout_s):
            raise Unavailable(f"the memory engine was unreachable for {timeout_s:g} s")

    async def within(self, awaited: Awaitable[object], timeout_s: float) -> bool:
        """Wait for `awaited`, at most `timeout_s` by the engine's clock; return whether it was done in time."""
        waiting = asyncio.ensure_future(awaited)
        clock = self.memory.clock
        timer = clock.call_at(clock.now() + timeout_s, waiting.cancel)
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            waiting.cancel()
            raise
        finally:
            timer.cancel()
        return not waiting.cancelled()


class MemorySession:
    """See mesh.tasks.contract.Session."""

    def __init__(self, way: Way, offer: Offer, receiver: Receiver, sessions: list[MemorySession]) -> None:
        self._way = way
        self._memory = way.memory
        self._offer = offer
        self._receiver = receiver
        self._sessions = sessions
        self._stopped = False
        # None until the memory is first reached.
        self._state: SessionState | None = self._attach(offer.held) if way.open else None
        sessions.append(self)

    async def stop(self) -> None:
        self._stopped = True
        if self._state is not None:
            self._memory.sessions.stop(self._state)

    async def close(self) -> None:
        if self in self._sessions:
            self._sessions.remove(self)
            if self._state is not None and self._way.open:
                self._memory.sessions.leave(self._state)

    def cut(self) -> None:
        if self._state is not None:
            self._memory.sessions.fall_silent(self._state)

    def mend(self) -> None:
        if self._state is None or not self._memory.sessions.speak(self._state):
            self._state = self._attach(self._receiver.held())

    def kill(self) -> None:
        self.cut()
        if self._state is not None:
            self._state.receiver = _Nobody()

    def _attach(self, held: Sequence[tuple[str, int]]) -> SessionState:
        for queue in self._offer.queues:
            if queue.patterns:
                self._memory.subscribe(queue.name, queue.patterns, queue.start)
        state = self._memory.sessions.attach(self._offer, self._receiver, held)
        if self._stopped:
            self._memory.sessions.stop(state)
        return state


class _Nobody:
    """The receiver of a killed process."""

    def leased(self, leases: object) -> None: ...
    def cancel(self, jobs: object) -> None: ...
    def lost(self, reason: str) -> None: ...
    def held(self) -> Sequence[tuple[str, int]]:
        return ()
