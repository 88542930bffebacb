"""Workers' sessions in the store: which are subscribed, silent, or dead.

Owns: when a session is over. Leaves to others: its leases (dispatch, the core), its stream (streams), observing
processes (engines.sqlite.liveness; passed in).

No socket, no loop, no clock: callers report events by methods, with `now`.

A session with an open stream lives: libzmq answers heartbeats while the worker's loop is busy, and the links of a
process end when it dies. After the end of its stream a session has one lease time to return, unless its process is
found dead before. After a restart of the store no session has a stream, and each one with leases has the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from mesh.tasks.contract import Offer

#: A worker that has not renewed for so many lease times although its link is up is not just busy: it hangs.
HANGS_AFTER: Final = 30
#: Delays of the checks of a process after the end of its stream, and then the period: a killed process still exists for
#: a moment.
FIRST_LOOKS_S: Final = (0.0, 0.01, 0.05, 0.2, 0.5)
LOOK_EVERY_S: Final = 1.0


class State(Enum):
    """The state of a session."""

    ATTACHED = auto()  # its stream is open
    AWAY = auto()  # it has no stream; its leases are kept for it
    STOPPING = auto()  # its stream is open, but it gets no more leases


class Heard(Enum):
    """The events of a session."""

    ATTACH = auto()
    STOP = auto()
    STREAM_ENDED = auto()
    RENEWED = auto()


#: (state, event) -> state; a missing key changes nothing: the event was overtaken by another.
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
        offer: its subscription; None for a session that is known only by its leases.
        born: when its process started; "" when this host cannot observe the process.
        heard_at: the time of its last event.
        looks: how often its process has been checked since its stream ended; `look_at`: the time of the next check.
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
    """All sessions of one store."""

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
        """The services of all subscribed workers."""
        return {
            service
            for session in self._known.values()
            if session.offer is not None and session.state is not State.AWAY
            for service in session.offer.services
        }

    def found(self, name: str, now: float) -> None:
        """Add a session that is known only by its leases."""
        self._known.setdefault(name, Session(name, now))

    def attach(self, offer: Offer, now: float) -> None:
        """The session's stream is open."""
        session = self._known.setdefault(offer.session, Session(offer.session, now))
        session.offer = offer
        near = bool(offer.pid_space) and offer.pid_space == self._pid_space
        session.born = self._born(offer.pid) if near and offer.pid > 0 else ""
        self._tell(session, Heard.ATTACH, now)

    def takes(self, name: str) -> bool:
        """Whether the session is subscribed and accepts leases."""
        session = self._known.get(name)
        return session is not None and session.state is State.ATTACHED

    def stop(self, name: str, now: float) -> bool:
        """The session accepts no more leases; return whether it is known."""
        return self._tell(self._known.get(name), Heard.STOP, now)

    def renew(self, name: str, now: float) -> bool:
        """Renew the session; return whether it is known."""
        return self._tell(self._known.get(name), Heard.RENEWED, now)

    def away(self, name: str, now: float) -> None:
        """The session's stream has ended."""
        session = self._known.get(name)
        if self._tell(session, Heard.STREAM_ENDED, now) and session is not None:
            session.looks = 0
            session.look_at = now

    def forget(self, name: str) -> None:
        """Remove the session."""
        self._known.pop(name, None)

    def died(self, now: float) -> list[tuple[str, str]]:
        """(session, reason) of the sessions that are over now. They stay known until `forget`."""
        found = []
        for session in self._known.values():
            if session.state is not State.AWAY:
                if now >= session.heard_at + self.lease_s * HANGS_AFTER:
                    found.append((session.name, f"it hangs: no renewal for {now - session.heard_at:.0f} s"))
            elif now >= session.heard_at + self.lease_s:
                found.append((session.name, f"it sent nothing for {self.lease_s:g} s"))
            elif session.born and session.look_at <= now and session.offer is not None:
                if self._dead(session.offer.pid, session.born):
                    found.append((session.name, f"its process {session.offer.pid} is dead"))
                session.looks += 1
                following = FIRST_LOOKS_S[session.looks] if session.looks < len(FIRST_LOOKS_S) else LOOK_EVERY_S
                session.look_at = now + following
        return found

    def due_at(self) -> float | None:
        """When to call `died` again, even if nothing happens."""
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
