"""Sessions that ended before their time: by logging out, here or everywhere.

Owns: the notes about them in the state of the mesh, and a bounded cache of what was read there.
Leaves to others: the state (mesh.state), deciding that a session ends (answers).

The namespace has two kinds of keys, both of which expire with the last session that they are about:
`s.ID` says that this session has ended; `p.HASH` holds an instant, before which all sessions of a principal have ended.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from mesh.clock import Clock
from mesh.config.edge_sessions import SessionSettings
from mesh.errors import BadReply, MeshError
from mesh.gateway.edge.auth.contract import AuthUnavailable
from mesh.gateway.edge.auth.sessions.token import Expired, Session
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: Rules of [access] name it: state = ["mesh-sessions"].
NAMESPACE: Final = "mesh-sessions"
#: Sessions about which something is cached; the one that was unused for longest is dropped.
REMEMBERED: Final = 16_384
#: How long to wait for the state, in seconds.
PATIENCE_S: Final = 2.0
#: After a failed request, one request at a time tries again, so often; all others fail at once.
RETRY_S: Final = 1.0
#: How often an unreachable state is logged, in seconds.
LOG_EVERY_S: Final = 60.0
#: Two notes within a millisecond get different instants.
_STEP_S: Final = 0.001

_UNAVAILABLE: Final = "sessions cannot be checked now, because the state of the mesh cannot be used; try again later"


T = TypeVar("T")


class State(Protocol):
    """The namespace; see mesh.state.namespace."""

    async def get_many(self, keys: Any, /) -> dict[str, tuple[Any, str]]: ...
    async def set(self, key: str, value: Any, *, etag: str | None = None, ttl: float | None = None) -> str: ...


class _Read(NamedTuple):
    """What was read about a session, and when: monotonic clock."""

    at: float
    ended: bool


class Revocations:
    """The ended sessions, as one gateway sees them."""

    def __init__(self, state: Callable[[], State], clock: Clock, settings: SessionSettings) -> None:
        """`state` returns the namespace; it is called with each request, because the engine may come later."""
        self._state = state
        self._clock = clock
        self._check_s = settings.check_s
        self._grace_s = settings.grace_s
        self._longest_s = settings.absolute_s
        self._read: OrderedDict[bytes, _Read] = OrderedDict()
        #: Changes whenever this gateway ends sessions: what was read before is then not cached any more.
        self._generation = 0
        self._failing = False
        self._retry_at = self._logged_at = float("-inf")

    async def check(self, session: Session) -> None:
        """Check that a session goes on.

        Raises:
            Expired: it has ended.
            AuthUnavailable: the state cannot be read, and what is known about the session is too old.
        """
        now = self._clock.now()
        known = self._read.get(session.id)
        if known is None or now >= known.at + self._check_s:
            generation = self._generation
            try:
                self._take_turn(now)
                known = _Read(now, await self._has_ended(session))
            except AuthUnavailable:
                if known is None or now >= known.at + self._check_s + self._grace_s:
                    raise
            else:
                if generation == self._generation:
                    self._note(session.id, known)
        if known.ended:
            raise Expired("the session was ended by logging out; log in again")

    async def start(self, principal: str, now: float) -> float:
        """The instant at which a session begins that is made now: after the last one at which all others were ended.

        Raises:
            AuthUnavailable: the state cannot be read.
        """
        key = _principal_key(principal)
        found, _ = (await self._ask(lambda state: state.get_many([key])))[key]
        # The clock of the gateway that ended the others may be ahead of this one.
        return max(now, found) if isinstance(found, float) else now

    async def end(self, session: Session, now: float) -> None:
        """End one session.

        Raises:
            AuthUnavailable: that could not be noted: other gateways accept the session until it expires.
        """
        self._generation += 1
        self._note(session.id, _Read(self._clock.now(), True))
        await self._ask(lambda state: state.set(f"s.{session.id.hex()}", True, ttl=max(1.0, session.expires_at - now)))

    async def end_all(self, principal: str, now: float) -> None:
        """End all sessions of a principal that have begun until now.

        Raises:
            AuthUnavailable: that could not be noted.
        """
        key = _principal_key(principal)
        found, _ = (await self._ask(lambda state: state.get_many([key])))[key]
        at = max(now, found) if isinstance(found, float) else now
        # A login that is being answered begins its session now, too: it ends as well.
        await self._ask(lambda state: state.set(key, at + _STEP_S, ttl=self._longest_s + _STEP_S + max(0.0, at - now)))
        # The cache has no principals. Reading it again costs one request for each session.
        self._generation += 1
        self._read.clear()

    async def _has_ended(self, session: Session) -> bool:
        keys = f"s.{session.id.hex()}", _principal_key(session.principal)
        found = await self._ask(lambda state: state.get_many(keys))
        since = found[keys[1]][0]
        return found[keys[0]][0] is not None or (isinstance(since, float) and session.began_at < since)

    def _note(self, id: bytes, read: _Read) -> None:
        self._read[id] = read
        self._read.move_to_end(id)
        if len(self._read) > REMEMBERED:
            self._read.popitem(last=False)

    def _take_turn(self, now: float) -> None:
        """Let one request at a time find out whether a state that failed works again; the others need not wait for it.

        Raises:
            AuthUnavailable: it is not the turn of this request.
        """
        if self._failing:
            if now < self._retry_at:
                raise AuthUnavailable(_UNAVAILABLE)
            self._retry_at = now + PATIENCE_S

    async def _ask(self, request: Callable[[State], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await request(self._state())
            self._failing = False
            return answer
        except (MeshError, TimeoutError) as exc:
            error = exc.message if isinstance(exc, MeshError) else f"no answer within {PATIENCE_S:g} s"
            now = self._clock.now()
            self._failing, self._retry_at = True, now + RETRY_S
            if now >= self._logged_at + LOG_EVERY_S:
                self._logged_at = now
                _log.error("auth.sessions_unchecked", namespace=NAMESPACE, error=error)
            raise AuthUnavailable(_UNAVAILABLE) from exc


class NoRevocations:
    """Sessions of a gateway with `auth.sessions.revocation = "none"`: they end when they expire. As Revocations."""

    async def check(self, session: Session) -> None:
        """Every session goes on."""

    async def start(self, principal: str, now: float) -> float:
        """Now."""
        return now

    async def end(self, session: Session, now: float) -> None:
        """Nothing is noted: its cookie is deleted."""

    async def end_all(self, principal: str, now: float) -> None:
        """Raises:
        BadReply: this gateway cannot do it.
        """
        raise BadReply('sessions cannot be ended everywhere, because auth.sessions.revocation is "none"')


def _principal_key(principal: str) -> str:
    # A hash, because a key has fewer bytes than the longest principal, and names of users are not for listings.
    return f"p.{hashlib.sha256(principal.encode()).hexdigest()}"
