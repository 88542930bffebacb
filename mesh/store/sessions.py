"""Workers' sessions, as the store sees them: who is attached, who is silent, and who has died.

Owns: when a session is over. Leaves to others: its leases (dispatch, the core), its stream (streams), looking at
processes (engines.sqlite.vitals; passed in).

No socket, no loop, no clock: what happens is told by methods, with `now`.

A session with an open stream lives: libzmq answers for a loop that is busy, and a process that dies takes its links
with it. From the end of its stream on it has a lease's time to come back, unless it is seen to be dead before. After a
restart of the store nobody has a stream, and whoever holds leases has that time, too.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from mesh.tasks.contract import Offer

#: A loop that has not renewed for so many leases, though its link stands, does not just work hard: it hangs.
HANGS_AFTER: Final = 30
#: How soon after the end of a stream its process is looked at again, and then how often: what was killed is still there
#: for a moment.
FIRST_LOOKS_S: Final = (0.0, 0.01, 0.05, 0.2, 0.5)
LOOK_EVERY_S: Final = 1.0


class State(Enum):
    """Where a session stands."""

    ATTACHED = auto()  # its stream is open
    AWAY = auto()  # it has none; its leases wait for it
    STOPPING = auto()  # attached, and wants no more


class Heard(Enum):
    """What is told of it."""

    ATTACH = auto()
    STOP = auto()
    STREAM_ENDED = auto()
    RENEWED = auto()


#: (state, what is told) -> state; a missing key changes nothing: it crossed other news.
LIFE: Final[dict[tuple[State, Heard], State]] = {
    (State.AWAY, Heard.ATTACH): State.ATTACHED,
    (State.ATTACHED, Heard.ATTACH): State.ATTACHED,
    (State.STOPPING, Heard.ATTACH): State.ATTACHED,
    (State.ATTACHED, Heard.STOP): State.STOPPING,
    (State.ATTACHED, Heard.STREAM_ENDED): State.AWAY,
    (State.STOPPING, Heard.STREAM_ENDED): State.AWAY,
    (State.ATTACHED, Heard.RENEWED): State.ATTACHED,
    (State.STOPPING, Heard.RENEWED): State.STOPPING,
    (State.AWAY, Heard.RENEWED): State.AWAY,
}


class Session:
    """One worker's session.

    Attributes:
        offer: what it said when it attached; None for one that is only known to hold leases.
        born: when its process began, as far as this host can see it; "" when it cannot.
        heard_at: when it was last heard of.
        looks: how often its process has been looked at since its stream ended; `look_at`: when it is again.
    """

    __slots__ = ("born", "heard_at", "look_at", "looks", "name", "offer", "state")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.offer: Offer | None = None
        self.born = ""
        self.state = State.AWAY
        self.heard_at = now
        self.looks = 0
        self.look_at = 0.0


class Sessions:
    """All of them."""

    def __init__(
        self,
        lease_s: float,
        *,
        pid_space: str,
        born: Callable[[int], str],
        dead: Callable[[int, str], bool],
    ) -> None:
        self.lease_s = lease_s
        self._pid_space = pid_space
        self._born = born
        self._dead = dead
        self._known: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def services(self) -> set[str]:
        """Services with a worker that is attached."""
        return {
            service
            for session in self._known.values()
            if session.offer is not None and session.state is not State.AWAY
            for service in session.offer.services
        }

    def found(self, name: str, now: float) -> None:
        """It holds leases, and nothing else is known of it."""
        self._known.setdefault(name, Session(name, now))

    def attach(self, offer: Offer, now: float) -> None:
        """Its stream is open."""
        session = self._known.setdefault(offer.session, Session(offer.session, now))
        session.offer = offer
        near = bool(offer.pid_space) and offer.pid_space == self._pid_space
        session.born = self._born(offer.pid) if near and offer.pid > 0 else ""
        self._tell(session, Heard.ATTACH, now)

    def takes(self, name: str) -> bool:
        """Whether it is attached and wants leases."""
        session = self._known.get(name)
        return session is not None and session.state is State.ATTACHED

    def stop(self, name: str, now: float) -> bool:
        """It wants no more; whether it is known."""
        return self._tell(self._known.get(name), Heard.STOP, now)

    def renew(self, name: str, now: float) -> bool:
        """It says that it lives; whether it is known."""
        return self._tell(self._known.get(name), Heard.RENEWED, now)

    def away(self, name: str, now: float) -> None:
        """Its stream has ended."""
        session = self._known.get(name)
        if self._tell(session, Heard.STREAM_ENDED, now) and session is not None:
            session.looks = 0
            session.look_at = now

    def forget(self, name: str) -> None:
        """It is over."""
        self._known.pop(name, None)

    def died(self, now: float) -> list[tuple[str, str]]:
        """(session, why) of those that are over now. They are known until `forget`."""
        found = []
        for session in self._known.values():
            if session.state is not State.AWAY:
                if now >= session.heard_at + self.lease_s * HANGS_AFTER:
                    found.append((session.name, f"it has not renewed for {now - session.heard_at:.0f} s: it hangs"))
            elif now >= session.heard_at + self.lease_s:
                found.append((session.name, f"nothing was heard of it for {self.lease_s:g} s"))
            elif session.born and session.look_at <= now and session.offer is not None:
                if self._dead(session.offer.pid, session.born):
                    found.append((session.name, f"its process {session.offer.pid} is dead"))
                session.looks += 1
                following = FIRST_LOOKS_S[session.looks] if session.looks < len(FIRST_LOOKS_S) else LOOK_EVERY_S
                session.look_at = now + following
        return found

    def due_at(self) -> float | None:
        """When to ask `died` again, even if nothing happens."""
        dues = []
        for session in self._known.values():
            away = session.state is State.AWAY
            dues.append(session.heard_at + self.lease_s * (1 if away else HANGS_AFTER))
            if away and session.born:
                dues.append(session.look_at)
        return min(dues, default=None)

    def _tell(self, session: Session | None, what: Heard, now: float) -> bool:
        if session is None:
            return False
        after = LIFE.get((session.state, what))
        if after is None:
            return True
        session.state = after
        session.heard_at = now
        return True
