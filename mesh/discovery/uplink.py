"""A client's connection to one hub, with reconnection.

Owns: the connection with its backoff, and the messages on it.
Leaves to others: merging several hubs (table), which instances are registered (registrations), when to renew (agent).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from mesh.clock import Clock, Timer
from mesh.discovery.admission import read_loads, read_news
from mesh.discovery.registrations import Holdings
from mesh.discovery.shapes import Shapes
from mesh.discovery.table import Change, Table
from mesh.errors import MeshError, ProtocolViolation
from mesh.policy.backoff import Backoff
from mesh.protocol.codec import Reader, Writer
from mesh.protocol.link import CONNECTED, DIALLER, Link, check_version, step
from mesh.protocol.messages import (
    CHANGE,
    HELLO,
    LEARNED,
    LEAVE,
    LOADS,
    PING,
    PONG,
    REGISTER,
    REGISTERED,
    REJECT,
    RENEW,
    SNAPSHOT,
    UNKNOWN,
    VERSION,
    WATCH,
    WELCOME,
)
from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Buffer, Channel, Refusal, Transport

log = get_logger("mesh.discovery")

#: The largest message that a client accepts. A hub's records are limited to less (admission.Limits.hub_bytes), so that
#: a snapshot always fits.
MAX_MESSAGE: Final = 64 * 1024 * 1024


#: Metadata of this process's `hello`. `hears`: message kinds that it accepts beyond those of the first release.
ABOUT: Final = {"role": "node", "hears": "loads"}


class HubStatus(msgspec.Struct, frozen=True):
    """The state of the connection to one hub, for pages and `mesh ps`.

    Attributes:
        link: "waiting" to dial again, "connecting", "greeting", "open" or "leaving"; "closed" when stopped.
        view: "absent", "learning", "learned" or "gapped": see discovery.view.
        instances: how many instances the hub lists now.
        stale: how many more it listed before it was lost.
        failures: consecutive connections refused or lost since the last one that lasted.
        reason: why the last connection ended; "" when none has ended.
    """

    endpoint: str
    link: str
    view: str
    identity: str = ""
    epoch: int = 0
    number: int = 0
    instances: int = 0
    stale: int = 0
    failures: int = 0
    reason: str = ""


class Uplink:
    """The connection to one hub, dialled again when it is lost. Synchronous: called by the transport and the clock."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        endpoint: str,
        *,
        identity: str,
        epoch: int,
        table: Table,
        holdings: Holdings,
        shapes: Shapes,
        tell: Callable[[Change], None],
        backoff: Backoff,
        rng: random.Random,
        connect_timeout_s: float,
    ) -> None:
        """Args:
        tell: called after each message of the hub and each loss of it, with the change of the table (often empty).
        """
        self.endpoint = endpoint
        self.identity = identity
        self.epoch = epoch
        self.table = table
        self.holdings = holdings
        self.shapes = shapes
        self.tell = tell
        self.clock = clock
        #: The renewal period that this hub requests; None until it has sent one.
        self.renew_s: float | None = None
        #: Deregistrations that the hub has not confirmed: (id, epoch).
        self.leaving: set[tuple[str, int]] = set()
        self.failures = 0
        self.reason = ""
        #: How many connections in a row, up to the last one, keys did not allow.
        self.refusals = 0
        self._heard_at: float | None = None
        self._known = False  # whether the hub has ever sent a snapshot
        self._missed = False
        self._transport = transport
        self._backoff = backoff
        self._rng = rng
        self._connect_timeout_s = connect_timeout_s
        self._session: HubSession | None = None
        self._timer: Timer | None = None
        self._stopped = True

    # --- connecting -------------------------------------------------------------------------------

    def start(self) -> None:
        """Dial, and dial again whenever the connection is lost, until `stop`.

        Raises:
            BadEndpoint: the endpoint is malformed.
        """
        self._stopped = False
        self._dial()

    def stop(self) -> None:
        """Flush and close; `stopped` becomes true when the transport has closed the connection."""
        self._stopped = True
        self._cancel_timer()
        if self._session is not None:
            self._session.channel.close("stopped")

    @property
    def stopped(self) -> bool:
        return self._stopped and self._session is None

    @property
    def open(self) -> bool:
        return self._session is not None and self._session.link is Link.OPEN

    def _dial(self) -> None:
        self._timer = None
        self._heard_at = None
        self._transport.dial(self.endpoint, self._make)
        self._timer = self.clock.call_at(self.clock.now() + self._connect_timeout_s, self._give_up)

    def _make(self, channel: Channel) -> HubSession:
        self._session = HubSession(self, channel)
        return self._session

    def _give_up(self) -> None:
        self._timer = None
        if self._session is not None and self._session.link in (Link.CONNECTING, Link.GREETING):
            self._session.channel.close(f"no welcome within {self._connect_timeout_s:g} s")

    def _redial(self) -> None:
        try:
            self._dial()
        except MeshError as exc:
            self._lost(str(exc))

    def lost(self, session: HubSession, reason: str) -> None:
        """A connection was lost: keep the hub's claims as stale ones, and dial again later."""
        if session is self._session:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        now = self.clock.now()
        if self._heard_at is not None and now - self._heard_at >= self._backoff.most_s:
            # Only a connection that lasted resets the backoff, not one that is cut as soon as it is open.
            self.failures = 0
        self.failures += 1
        self.refusals = self.refusals + 1 if isinstance(reason, Refusal) else 0
        if self.failures == 1 and not self._stopped:
            # Logged once per absence, not once per attempt.
            self._missed = True
            log.warning("hub.lost" if self._known else "hub.unreachable", hub=self.endpoint, reason=reason)
        self._session = None
        self.reason = reason
        self.leaving.clear()
        self._cancel_timer()
        self.table.hub_lost(self.endpoint, now)
        if not self._stopped:
            self._timer = self.clock.call_at(now + self._backoff.delay(self.failures, self._rng.random()), self._redial)
        self.tell(Change())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- messages to the hub ----------------------------------------------------------------------

    def register(self, ids: Iterable[str]) -> None:
        """Register the known ones of `ids`. Does nothing without a connection: a new one registers all instances."""
        if self.open and self._session is not None:
            self._session.register(ids)

    def renew(self) -> None:
        """Renew all instances of this process, with their loads."""
        if self.open and self._session is not None:
            for renewals in self.holdings.renewals():
                self._session.say(RENEW, renewals)

    def leave(self, claims: list[tuple[str, int]]) -> None:
        """Deregister (id, epoch) each; `leaving` becomes empty when the hub has notified its watchers."""
        if self.open and self._session is not None and claims:
            self._session.say(LEAVE, [list(claim) for claim in claims])
            self.leaving.update(claims)

    def status(self) -> HubStatus:
        view = self.table.view(self.endpoint)
        idle = "closed" if self._stopped else "waiting"
        return HubStatus(
            endpoint=self.endpoint,
            link=self._session.link.value if self._session is not None else idle,
            view=view.state if view else "absent",
            identity=view.hub_id if view else "",
            epoch=view.epoch if view else 0,
            number=view.number if view else 0,
            instances=len(view.records) if view else 0,
            stale=len(view.stale) if view else 0,
            failures=self.failures,
            reason=self.reason,
        )

    def heard(self) -> None:
        """The hub sent a snapshot."""
        self.refusals = 0
        if self._heard_at is None:
            self._heard_at = self.clock.now()
            self._known = True
        if self._missed:
            self._missed = False
            log.info("hub.recovered", hub=self.endpoint, failures=self.failures)


class HubSession:
    """One connection to a hub; the `Session` of the transport's contract."""

    def __init__(self, uplink: Uplink, channel: Channel) -> None:
        self.link = Link.CONNECTING
        self.channel = channel
        self._uplink = uplink
        self._reader = Reader()
        self._writer = Writer()
        self._requests = 0
        self._asked = False

    # --- Session ----------------------------------------------------------------------------------

    def opened(self) -> None:
        self.link = step(DIALLER, self.link, CONNECTED)
        self.say(HELLO, VERSION, self._uplink.identity, self._uplink.epoch, MAX_MESSAGE, ABOUT)

    def receive(self, frames: list[Buffer]) -> None:
        for message in self._reader.read(frames):
            act = ACTS.get((self.link, message[0]))
            if act is None:
                self.link = step(DIALLER, self.link, message[0])
            else:
                act(self, message)
            if self.link is Link.CLOSED:
                return

    def data_to_send(self) -> list[list[Buffer]]:
        return self._writer.take()

    def lost(self, reason: str) -> None:
        self.link = Link.CLOSED
        self._uplink.lost(self, reason)

    # --- sending ----------------------------------------------------------------------------------

    def say(self, *message: Any) -> None:
        self._writer.add(*message)
        self.channel.wake()

    def register(self, ids: Iterable[str]) -> None:
        for body in self._uplink.holdings.registrations(ids):
            self._requests += 1
            self._writer.add_body((REGISTER, self._requests), body)
        self.channel.wake()

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self.say(WATCH)

    # --- messages from the hub --------------------------------------------------------------------

    def _welcome(self, message: list[Any]) -> None:
        check_version(message)
        about = (message[6] if len(message) > 6 else None) or {}
        if about.get("role", "hub") != "hub":
            raise ProtocolViolation(
                f"{self._uplink.endpoint} is not a hub but a {about['role'][:40]!r}: correct mesh.hubs in mesh.toml"
            )
        self.link = step(DIALLER, self.link, WELCOME)
        self._lease(about.get("lease_ms", ""))
        self.register(self._uplink.holdings.ids())
        self._ask()

    def _lease(self, lease_ms: str) -> None:
        if lease_ms.isdecimal() and len(lease_ms) < 10:
            table = self._uplink.table
            table.grace_s = max(table.grace_s, int(lease_ms) / 1000)

    def _registered(self, message: list[Any]) -> None:
        renew_ms = message[3]
        if renew_ms <= 0:
            raise ProtocolViolation(f"registered: {renew_ms} ms is not a valid renewal period")
        self._uplink.renew_s = renew_ms / 1000

    def _unknown(self, message: list[Any]) -> None:
        # Ids are only looked up; anything else in the list is ignored.
        self.register([key for key in message[1] if type(key) is str])

    def _snapshot(self, message: list[Any]) -> None:
        _, hub_id, epoch, number, learning, body = message
        uplink = self._uplink
        records = read_news(body, "snapshot", uplink.shapes)
        now = uplink.clock.now()
        change = uplink.table.snapshot(uplink.endpoint, epoch, number, learning, records, now, hub_id=hub_id)
        self._asked = False
        uplink.heard()
        uplink.tell(change)

    def _change(self, message: list[Any]) -> None:
        number, body, gone = message[1:]
        for item in gone:
            match item:
                case [str(), int(), str()]:
                    pass
                case _:
                    raise ProtocolViolation(f"change: expected [id, epoch, reason], got {item!r:.80}")
        uplink = self._uplink
        records = read_news(body, "change", uplink.shapes)
        change = uplink.table.change(uplink.endpoint, number, records, gone, uplink.clock.now())
        if change is None:
            self._ask()
            return
        if uplink.leaving:
            uplink.leaving.difference_update((item[0], item[1]) for item in gone)
        uplink.tell(change)

    def _learned(self, message: list[Any]) -> None:
        uplink = self._uplink
        change = uplink.table.learned(uplink.endpoint, message[1], uplink.clock.now())
        if change is None:
            self._ask()
            return
        uplink.tell(change)

    def _loads(self, message: list[Any]) -> None:
        uplink = self._uplink
        uplink.tell(uplink.table.loads(uplink.endpoint, read_loads(message[1]), uplink.clock.now()))

    def _ping(self, message: list[Any]) -> None:
        self.say(PONG, message[1])

    def _reject(self, message: list[Any]) -> None:
        _, code, reason = message
        self.link = step(DIALLER, self.link, REJECT)
        log.error("hub.refused", hub=self._uplink.endpoint, code=code, reason=reason)
        self.channel.close(f"rejected: {reason}")


_NEWS: Final[dict[int, Callable[[HubSession, list[Any]], None]]] = {
    REGISTERED: HubSession._registered,
    UNKNOWN: HubSession._unknown,
    SNAPSHOT: HubSession._snapshot,
    CHANGE: HubSession._change,
    LEARNED: HubSession._learned,
    LOADS: HubSession._loads,
    PING: HubSession._ping,
}

#: Messages that a client handles beyond the link's own table (protocol.link.DIALLER); all others are violations.
ACTS: Final[dict[tuple[Link, int], Callable[[HubSession, list[Any]], None]]] = {
    (Link.GREETING, WELCOME): HubSession._welcome,
    (Link.GREETING, REJECT): HubSession._reject,
    (Link.OPEN, REJECT): HubSession._reject,
    (Link.LEAVING, REJECT): HubSession._reject,
    **{(Link.OPEN, kind): act for kind, act in _NEWS.items()},
    **{(Link.LEAVING, kind): act for kind, act in _NEWS.items()},
}
