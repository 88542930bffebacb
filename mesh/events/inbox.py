"""The receiving half of events: from PUB/SUB for every instance here, and from calls to "service.$on".

Owns: finding this worker's handlers of an event, running them, and counting lost events.
Leaves to others: sending (bus), sockets (transport), answering calls (the server, with the Method made here).

Frames over PUB/SUB are untrusted: no content makes this module raise, and memory is bounded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from mesh.calls.context import CURRENT, PlainContext
from mesh.calls.exhaustion import note
from mesh.calls.failures import failure_of, location
from mesh.calls.method import Method
from mesh.calls.propagation import Values, same_principal, split, unverified
from mesh.errors import BadArguments, MeshError, ProtocolViolation, Unavailable
from mesh.events.bus import DELIVER
from mesh.events.event import Buffer, Event, Handler, Parcel
from mesh.events.topics import Matcher, check_topic, literal_prefix
from mesh.forking import end_forked_child
from mesh.protocol.codec import Reader
from mesh.protocol.messages import EVENT, MSGPACK
from mesh.telemetry import traces
from mesh.telemetry.logs import get_logger
from mesh.telemetry.metrics import Recorder
from mesh.transport.contract import Subscriber, Transport

log = get_logger("mesh.events")

#: Maximum number of running handlers of events to every instance. No publisher waits for them, so excess events are
#: dropped and counted.
MOST_RUNNING: Final = 10_000
#: (publisher, topic) pairs with a remembered last number, to detect gaps; the one silent for longest is evicted.
MOST_REMEMBERED: Final = 65_536
# The fields of an event that may be left out, from the end: encoding, trace, metadata.
_OPTIONAL: Final[list[Any]] = [MSGPACK, None, None]
_NIL: Final = msgspec.msgpack.encode(None)
_parcel: Final = msgspec.msgpack.Decoder(Parcel).decode


class Gaps:
    """Detects missing event numbers, for each publisher and topic, in bounded memory."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._last: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._most = most

    def note(self, publisher: str, topic: str, number: int) -> int:
        """How many events were missed before this one; -1 when it came already. The first event of a pair counts none:
        events from before this process subscribed are not missed."""
        key = (publisher, topic)
        last = self._last.get(key)
        if last is not None and number <= last:
            return -1
        self._last[key] = number
        self._last.move_to_end(key)
        if len(self._last) > self._most:
            self._last.popitem(last=False)
        return 0 if last is None else number - last - 1


class Inbox:
    """One worker's handlers of events."""

    def __init__(
        self,
        *,
        recorder: Recorder | None = None,
        most_running: int = MOST_RUNNING,
        most_remembered: int = MOST_REMEMBERED,
        verifies: bool = False,
    ) -> None:
        """`verifies`: [access] is declared, so principals in events are marked as not verified unless the call that
        delivers the event has the same one, verified. Over PUB/SUB none is: no rule says who may publish there."""
        self._verifies = verifies
        self._every: list[Handler] = []
        self._matcher: Matcher[Handler] = Matcher()
        self._one: dict[str, Matcher[Handler]] = {}
        self._subscriber: Subscriber | None = None
        self._gaps = Gaps(most_remembered)
        self._running: set[asyncio.Task[None]] = set()
        self._most_running = most_running
        recorder = recorder or Recorder()
        self._received = recorder.counter("events_received", "Events that came over PUB/SUB.")
        self._missed = recorder.counter("events_missed", "Events over PUB/SUB that were lost: gaps in their numbers.")
        self._again = recorder.counter("events_repeated", "Events that arrived over PUB/SUB more than once; dropped.")
        self._dropped = recorder.counter("events_dropped", "Events dropped: too many handlers were running.")
        self._garbage = recorder.counter("events_garbage", "Frames over PUB/SUB that were not events; dropped.")
        self._failed = recorder.counter("events_failed", "Handlers of events that raised.")

    @property
    def missed(self) -> int:
        """The number of events that were sent to this worker over PUB/SUB and did not arrive."""
        return int(self._missed.value)

    @property
    def endpoint(self) -> str:
        """Where publishers connect, for the instance's record; "" unless open."""
        return self._subscriber.endpoint if self._subscriber is not None else ""

    @property
    def wanted(self) -> bool:
        """Whether any handler receives over PUB/SUB, so that `open` is needed."""
        return bool(self._every)

    # --- set-up ---------------------------------------------------------------------------------

    def add(self, handlers: Iterable[Handler]) -> list[Method]:
        """Add the handlers of one service instance; return the methods that receive its `to="one"` events.

        Raises:
            BadTopic: a pattern is malformed.
        """
        ones: dict[str, list[Handler]] = {}
        for handler in handlers:
            if handler.every:
                self._every.append(handler)
                if self._subscriber is not None:
                    self._subscriber.subscribe(literal_prefix(handler.pattern))
            else:
                ones.setdefault(handler.service, []).append(handler)
        self._matcher = Matcher((handler.pattern, handler) for handler in self._every)
        for service, mine in ones.items():
            self._one[service] = Matcher((handler.pattern, handler) for handler in mine)
        return [_method(service, self._one[service], self._verifies) for service in ones]

    def listen(self, patterns: Iterable[str], handler: Handler) -> None:
        """Hand every event of these topics to one handler, once, and no longer those of earlier patterns. For a process
        with topics that change; a worker's are those of its services, see `add`.

        Raises:
            BadTopic: a pattern is malformed.
        """
        before = {literal_prefix(each.pattern) for each in self._every}
        self._every = [msgspec.structs.replace(handler, pattern=pattern) for pattern in patterns]
        self._matcher = Matcher(((each.pattern, handler) for each in self._every), distinct=True)
        if self._subscriber is not None:
            after = {literal_prefix(each.pattern) for each in self._every}
            for prefix in sorted(after - before):
                self._subscriber.subscribe(prefix)
            for prefix in sorted(before - after):
                self._subscriber.unsubscribe(prefix)

    def open(self, transport: Transport, endpoint: str) -> None:
        """Bind and subscribe. Call this before the instance is registered, so that no publisher connects too early.

        Raises:
            AddressInUse, BadEndpoint: as for `Transport.subscriber`.
        """
        self._subscriber = transport.subscriber(endpoint, self.receive)
        for prefix in sorted({literal_prefix(handler.pattern) for handler in self._every}):
            self._subscriber.subscribe(prefix)

    async def close(self, *, cancel: bool = False) -> None:
        """Stop receiving, and wait for the running handlers; `cancel` cancels them instead."""
        if self._subscriber is not None:
            self._subscriber.close()
            self._subscriber = None
        while self._running:
            running = list(self._running)
            if cancel:
                for task in running:
                    task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    # --- from PUB/SUB ---------------------------------------------------------------------------

    def receive(self, topic: str, frame: Buffer) -> None:
        """One frame came: a sequence of events of one topic. Never raises."""
        try:
            handlers = self._matcher.match(check_topic(topic))
            # A new reader for each frame: frames of many publishers arrive here, and an incomplete one must not
            # affect the next. This costs about a microsecond.
            messages = Reader().read([frame])
        except MeshError as exc:
            self._refuse(topic, exc.message)
            return
        if not messages:
            self._refuse(topic, "it is empty")
        for message in messages:
            if message[0] != EVENT or message[3] != topic or message[2] < 1:
                self._refuse(topic, "it holds something other than events of its topic")
                return
            self._take(message, handlers)

    def _take(self, message: list[Any], handlers: Sequence[Handler]) -> None:
        _, publisher, number, topic, at_ms, body, *more = message
        missed = self._gaps.note(publisher, topic, number)
        if missed < 0:
            self._again.add()
            return
        self._missed.add(missed)
        self._received.add()
        if handlers:
            encoding, trace, meta = [*more, *_OPTIONAL[len(more) :]]
            meta, found = split(meta or {})
            carried: Values | None = found
            if found is not None and self._verifies:
                carried = unverified(found)
            parcel = Parcel(topic, publisher, number, at_ms, body, encoding, traces.accept(trace), meta)
            for handler in handlers:
                self._start(handler, parcel, carried)

    def _refuse(self, topic: str, reason: str) -> None:
        self._garbage.add()
        log.debug("event.frame_dropped", topic=topic[:100], reason=reason[:200])

    def _start(self, handler: Handler, parcel: Parcel, carried: Values | None) -> None:
        if len(self._running) >= self._most_running:
            self._dropped.add()
            return
        run = self._run(handler, parcel, carried)
        task = asyncio.get_running_loop().create_task(run, name=f"event {handler.label}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, handler: Handler, parcel: Parcel, carried: Values | None) -> None:
        # An asyncio task has its own context: this one applies to this handler only.
        trace = traces.child(parcel.trace)
        traces.current.set(trace)
        CURRENT.set(
            PlainContext(handler.label, caller=parcel.publisher, trace=trace, meta=parcel.meta, carried=carried)
        )
        try:
            event = _event(handler, parcel)
        except Exception as exc:
            # A type's own checks may raise anything.
            self._failed.add()
            error = exc.message if isinstance(exc, MeshError) else repr(exc)
            log.warning("event.type_mismatched", topic=parcel.topic, publisher=parcel.publisher, error=error)
            return
        try:
            await handler.run(event)
        except BaseException as exc:
            end_forked_child(exc)
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            note(exc)
            self._failed.add()
            _log_failure(handler, parcel.topic, exc)


def _event(handler: Handler, parcel: Parcel) -> Event:
    return Event(
        topic=parcel.topic,
        data=handler.decode(parcel.body, parcel.encoding),
        publisher=parcel.publisher,
        number=parcel.number,
        at=parcel.at_ms / 1000,
        trace=parcel.trace,
        meta=parcel.meta,
    )


# --- from calls -------------------------------------------------------------------------------------


def _method(service: str, matcher: Matcher[Handler], verifies: bool) -> Method:
    """ "service.$on": runs the handlers of an event and answers nothing, which acknowledges it."""
    target = f"{service}.{DELIVER}"

    def decode(body: Any, encoding: int) -> tuple[Parcel]:
        try:
            if encoding != MSGPACK:
                raise ProtocolViolation("it is not MessagePack")
            parcel = _parcel(body)
            check_topic(parcel.topic)
        except Exception as exc:
            raise BadArguments(f"{target} takes an event: {exc}"[:300], details={"path": "$"}) from None
        if not matcher.match(parcel.topic):
            # Another release of the service subscribes to the topic, this one does not. Raised before any handler has
            # started, Unavailable makes the caller try another instance.
            raise Unavailable(f"this instance of {service} does not subscribe to {parcel.topic!r}")
        return (parcel,)

    async def deliver(parcel: Parcel) -> None:
        meta, carried = split(parcel.meta)
        if carried is not None:
            parcel = msgspec.structs.replace(parcel, meta=meta)
            context = CURRENT.get()
            if context is not None:
                # The worker has verified the principal of the call, not that of the event in it.
                verified = not verifies or (context.verified and same_principal(context.carried, carried))
                context.carried = carried if verified else unverified(carried)
        handlers = matcher.match(parcel.topic)
        await _run_all(handlers, [_event(handler, parcel) for handler in handlers])

    return Method(
        target=target,
        service=service,
        name=DELIVER,
        run=deliver,
        decode_args=decode,
        encode_result=lambda value, encoding: (_NIL, MSGPACK),
        idempotent=True,
    )


async def _run_all(handlers: Sequence[Handler], events: Sequence[Event]) -> None:
    """Run all handlers to their end, even if some fail; then raise the first error, if any."""
    if len(handlers) == 1:
        handler, event = handlers[0], events[0]
        try:
            await handler.run(event)
        except Exception as exc:
            told = _told(handler, exc)
            if told is exc:
                raise
            raise told from exc
        return
    runs = (_outcome(handler, event) for handler, event in zip(handlers, events, strict=True))
    outcomes = await asyncio.gather(*runs)
    failed = [(each, out) for each, out in zip(handlers, outcomes, strict=True) if out is not None]
    for handler, outcome in failed[1:]:
        _log_failure(handler, events[0].topic, outcome)
    for handler, outcome in failed:
        raise _told(handler, outcome) if isinstance(outcome, Exception) else outcome


async def _outcome(handler: Handler, event: Event) -> BaseException | None:
    """The handler's exception, returned rather than raised: a task that raises SystemExit ends the event loop."""
    try:
        await handler.run(event)
    except BaseException as exc:
        end_forked_child(exc)
        return exc
    return None


def _told(handler: Handler, exc: Exception) -> Exception:
    """The exception to report to the publisher for a handler that raised."""
    failure = failure_of(exc, handler.label)
    return failure.error.with_traceback(exc.__traceback__) if isinstance(exc, MeshError) else exc


def _log_failure(handler: Handler, topic: str, exc: BaseException) -> None:
    failure = failure_of(exc, handler.label)
    log.error(
        "event.handler_failed",
        handler=handler.label,
        topic=topic,
        error=f"{failure.error.type_name}: {failure.error.message}",
        at=location(exc, handler.run),
        exc_info=(type(exc), exc, exc.__traceback__),
    )
