"""The sending half of events: to every instance over PUB/SUB, and to one instance of each service by a call.

Owns: finding the subscribers of a topic, the order and numbers of events, waiting for new subscribers, and reporting
which service did not acknowledge.
Leaves to others: receiving (inbox), finding an instance and failing over (the call that is passed in), sockets.

To every instance: at most once. The events of one topic in one loop tick are sent as one frame. To one instance of a
service: acknowledged when its handlers have returned; another instance is tried when the first dies.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from mesh.calls.checks import check_meta
from mesh.calls.context import carrying
from mesh.calls.options import CallOptions
from mesh.clock import Clock
from mesh.discovery.record import Instance
from mesh.errors import MeshError, Uncertain
from mesh.events.event import Parcel, encode_data
from mesh.events.topics import Matcher, check_topic
from mesh.protocol.codec import MAX_BIN, SEAL_BYTES, one
from mesh.protocol.messages import EVENT, MSGPACK
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.traces import in_force
from mesh.transport.contract import Publisher, Transport

log = get_logger("mesh.events")

#: The method that a worker serves for its `to="one"` handlers: "mail.$on".
DELIVER: Final = "$on"
#: How long the first event waits for a subscriber to join. Joining takes a connection and one message: a few
#: milliseconds on one host. After that the subscriber is presumed dead, and no later event waits for it.
JOIN_S: Final = 1.0
#: Topics with a remembered next number. Beyond that the least recently used one is evicted; see _Numbers.
MOST_TOPICS: Final = 65_536

_pack: Final = msgspec.msgpack.Encoder().encode


class NotAcknowledged(Uncertain):
    """Some services that subscribe to an event did not acknowledge it.

    The others have received it. `details["services"]` maps each failed service to the code and message of its error.
    """

    code = "not_acknowledged"


class Listeners(Protocol):
    """The part of discovery's Table that the bus uses."""

    version: int

    def services(self) -> list[str]: ...

    def instances(self, service: str) -> Sequence[Instance]: ...


class Deliver(Protocol):
    """A call that fails over: the client's `call`."""

    def __call__(self, target: str, body: bytes, encoding: int, options: CallOptions, /) -> Awaitable[Any]: ...


class _Who(NamedTuple):
    """The subscribers, computed once for each version of the table."""

    version: int
    endpoints: Matcher[str]
    services: Matcher[str]
    living: frozenset[str]


class _Numbers:
    """The next number of each topic, in bounded memory.

    An evicted topic continues above the highest number of any evicted topic, so that a receiver which remembers it sees
    a gap, which is counted, and never a repetition, which would be dropped.
    """

    def __init__(self, most: int) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()
        self._most = most
        self._highest_forgotten = 0

    def next(self, topic: str) -> int:
        last = self._last
        number = last[topic] = last.get(topic, self._highest_forgotten) + 1
        last.move_to_end(topic)
        if len(last) > self._most:
            self._highest_forgotten = max(self._highest_forgotten, last.popitem(last=False)[1])
        return number


class Bus:
    """The publisher of one process's events."""

    def __init__(
        self,
        transport: Transport,
        table: Listeners,
        clock: Clock,
        deliver: Deliver,
        *,
        publisher: str,
        recorder: Recorder | None = None,
        join_s: float = JOIN_S,
        most_topics: int = MOST_TOPICS,
    ) -> None:
        """Opens no socket before the first event that has a subscriber.

        Args:
            publisher: names this run of the process; a restarted process needs another name, as its numbers restart.
            deliver: makes a call to "service.$on".
            join_s: the longest wait of an event for a new subscriber, in seconds.
        """
        self._transport = transport
        self._table = table
        self._clock = clock
        self._deliver = deliver
        self._name = publisher
        self._join_s = join_s
        self._publisher: Publisher | None = None
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._connected: set[str] = set()
        self._numbers = _Numbers(most_topics)
        self._parcels = _Numbers(most_topics)
        self._outbox: dict[str, list[bytes]] = {}
        self._who = _Who(-1, Matcher(), Matcher(), frozenset())
        self._closed = False
        recorder = recorder or Recorder(clock)
        self._sent = recorder.counter("events_sent", "Events that left this process, once for each way of sending.")
        self._slow = recorder.counter("events_not_joined", "Subscribers that had not joined in time for an event.")

    async def emit(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send an event to all subscribers. Returns when the event has been handed to the subscribers' sockets and
        every service with a `to="one"` handler has acknowledged it; at once when there is no subscriber.

        Args:
            key: events with the same key go to the same instance of a service, as long as it lives.
            trace: traceparent; None takes the current one.
            timeout: seconds for a service to acknowledge; None takes the calls' default.

        Raises:
            BadTopic, BadArguments, TooLarge: the event cannot be sent; nothing was sent.
            NotAcknowledged: some service did not acknowledge; all were tried.
        """
        body, encoding = encode_data(check_topic(topic), data, MAX_BIN)
        await self.emit_raw(topic, body, encoding, key=key, meta=meta, trace=trace, timeout=timeout)

    async def emit_raw(
        self,
        topic: str,
        body: bytes,
        encoding: int,
        *,
        key: str | None = None,
        meta: dict[str, str] | None = None,
        trace: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """`emit` of data that is encoded already, at most 1 MiB."""
        check_topic(topic)
        meta = carrying(meta)
        if meta is not None:
            check_meta(meta)
        who = self._listeners()
        trace = in_force() if trace is None else trace
        services = who.services.match(topic)
        endpoints = who.endpoints.match(topic)
        if endpoints:
            fresh = self._connect(endpoints)
            if fresh:
                # asyncio.wait leaves the tasks alone when this emission is cancelled: others wait for them too.
                await asyncio.wait(fresh)
            self._put(topic, body, encoding, trace, meta)
        if services:
            parcel = _pack(
                Parcel(topic, self._name, self._parcels.next(topic), self._now_ms(), body, encoding, trace, meta or {})
            )
            await self._hand_over(topic, services, parcel, key, trace, timeout)

    # --- to one instance of each service --------------------------------------------------------

    async def _hand_over(
        self, topic: str, services: Sequence[str], parcel: bytes, key: str | None, trace: str, timeout: float | None
    ) -> None:
        self._sent.add(len(services))
        options = CallOptions(timeout, key, trace=trace or None, idempotent=True)

        async def deliver(service: str) -> None:
            await self._deliver(f"{service}.{DELIVER}", parcel, MSGPACK, options)

        outcomes = await asyncio.gather(*map(deliver, services), return_exceptions=True)
        failed = {service: out for service, out in zip(services, outcomes, strict=True) if isinstance(out, Exception)}
        stopped = [out for out in outcomes if isinstance(out, BaseException) and not isinstance(out, Exception)]
        if stopped:
            raise stopped[0]
        if failed:
            told = ", ".join(f"{service} ({_what(exc)})" for service, exc in failed.items())
            raise NotAcknowledged(
                f"event {topic!r} was not acknowledged by {told}",
                details={
                    "services": {
                        service: {"code": getattr(exc, "code", "error"), "message": str(exc)}
                        for service, exc in failed.items()
                    }
                },
            ) from next(iter(failed.values()))

    # --- to every instance ----------------------------------------------------------------------

    def changed(self) -> None:
        """Disconnect from subscribers that are no longer in the table. May be called at any time."""
        if self._connected and not self._closed:
            self._listeners()

    def _listeners(self) -> _Who:
        """The present subscribers; recomputed only when the table has changed."""
        if self._who.version == self._table.version:
            return self._who
        every: dict[tuple[str, str], None] = {}
        ones: dict[tuple[str, str], None] = {}
        living: set[str] = set()
        version = self._table.version
        for service in self._table.services():
            for instance in self._table.instances(service):
                if instance.events:
                    living.add(instance.events)
                for subscription in instance.subscriptions:
                    if subscription.to == "one":
                        ones[(subscription.topic, instance.service)] = None
                    elif instance.events:
                        every[(subscription.topic, instance.events)] = None
        self._who = _Who(version, _matcher(every), _matcher(ones), frozenset(living))
        for endpoint in self._connected - living:
            self._disconnect(endpoint)
        return self._who

    def _connect(self, endpoints: Sequence[str]) -> set[asyncio.Task[None]]:
        """Connect to all endpoints; return the tasks of those that have not joined yet."""
        if self._publisher is None:
            self._publisher = self._transport.publisher()
        for endpoint in endpoints:
            if endpoint not in self._connected and not self._closed:
                try:
                    self._publisher.connect(endpoint)
                except MeshError as exc:
                    # A record with a malformed address: it receives nothing; the other subscribers are not affected.
                    log.warning("subscriber.unreachable", endpoint=endpoint, error=exc.message)
                    self._connected.add(endpoint)
                    continue
                self._connected.add(endpoint)
                self._joining[endpoint] = asyncio.get_running_loop().create_task(self._join(endpoint))
        return {self._joining[endpoint] for endpoint in endpoints if endpoint in self._joining}

    async def _join(self, endpoint: str) -> None:
        """Wait until the subscriber has joined, or give up after `join_s`."""
        publisher = self._publisher
        assert publisher is not None
        give_up_at = self._clock.now() + self._join_s
        try:
            for turn in itertools.count():
                if publisher.joined(endpoint):
                    return
                if self._clock.now() >= give_up_at or endpoint not in self._connected:
                    self._slow.add()
                    log.warning("subscriber.join_timed_out", endpoint=endpoint, waited_s=self._join_s)
                    return
                # In memory a few loop iterations are enough; a socket needs about a millisecond.
                if turn < 5:
                    await asyncio.sleep(0)
                else:
                    await self._clock.sleep(min(0.001 * 2 ** (turn - 5), 0.02))
        finally:
            if self._joining.get(endpoint) is asyncio.current_task():
                del self._joining[endpoint]

    def _disconnect(self, endpoint: str) -> None:
        self._connected.discard(endpoint)
        if self._publisher is not None:
            self._publisher.disconnect(endpoint)

    def _put(self, topic: str, body: bytes, encoding: int, trace: str, meta: dict[str, str] | None) -> None:
        if self._publisher is None or self._closed:
            return
        message: tuple[Any, ...] = (EVENT, self._name, self._numbers.next(topic), topic, self._now_ms(), body)
        if encoding or trace or meta:
            message = (*message, encoding, trace or None, meta or None)
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.setdefault(topic, []).append(one(*message))
        self._sent.add()

    def _flush(self) -> None:
        """Send the events of this tick: one frame for each topic, or several when they exceed SEAL_BYTES."""
        outbox, self._outbox = self._outbox, {}
        publisher = self._publisher
        if publisher is None:
            return
        for topic, messages in outbox.items():
            at = 0
            while at < len(messages):
                end, size = at + 1, len(messages[at])
                while end < len(messages) and size + len(messages[end]) <= SEAL_BYTES:
                    size += len(messages[end])
                    end += 1
                publisher.send(topic, b"".join(messages[at:end]) if end - at > 1 else messages[at])
                at = end

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    async def close(self) -> None:
        """Send waiting events, give up on subscribers that have not joined, and close the socket. Idempotent."""
        self._closed = True
        joining = list(self._joining.values())
        for task in joining:
            task.cancel()
        await asyncio.gather(*joining, return_exceptions=True)
        self._flush()
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None


def _matcher(pairs: dict[tuple[str, str], None]) -> Matcher[str]:
    """A matcher of all valid patterns; malformed ones are skipped. It gives each listener once per topic."""
    good = []
    for pattern, who in pairs:
        try:
            Matcher([(pattern, who)])
        except MeshError as exc:
            log.warning("subscription.malformed", who=who, error=exc.message)
            continue
        good.append((pattern, who))
    return Matcher(good, distinct=True)


def _what(exc: BaseException) -> str:
    return f"{exc.code}: {exc.message}" if isinstance(exc, MeshError) else f"{type(exc).__name__}: {exc}"
