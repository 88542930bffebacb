"""Events from one process to others, both ways of sending, in memory and over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from mesh.calls.options import CallOptions
from mesh.clock import LoopClock, ManualClock, settle
from mesh.discovery.record import Instance, Subscription
from mesh.errors import BadArguments, TooLarge, Unavailable
from mesh.events.bus import Bus, NotAcknowledged
from mesh.events.event import Event, Handler, decoder
from mesh.events.inbox import Inbox
from mesh.events.topics import BadTopic
from mesh.protocol.messages import JSON, MSGPACK
from mesh.telemetry import traces
from mesh.telemetry.metrics import Recorder
from mesh.transport.contract import Transport
from mesh.transport.memory import MemoryNetwork, MemoryTransport
from mesh.transport.zmq_transport import ZmqTransport
from tests.patience import until

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class FakeTable:
    """What discovery would know."""

    def __init__(self) -> None:
        self.version = 0
        self.known: list[Instance] = []

    def set(self, *instances: Instance) -> None:
        self.known = list(instances)
        self.version += 1

    def services(self) -> list[str]:
        return list(dict.fromkeys(instance.service for instance in self.known))

    def instances(self, service: str) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.known if instance.service == service)


def listener(service: str, *subscriptions: tuple[str, str], events: str = "", id: str = "") -> Instance:
    wanted = [Subscription(topic, "method", to) for topic, to in subscriptions]  # type: ignore[arg-type]
    return Instance(service, id or f"{service}-1", 1, events=events, subscriptions=wanted)


def handler(
    run: Callable[[Event], Any], pattern: str = "#", *, every: bool = True, service: str = "mail", hint: Any = Any
) -> Handler:
    return Handler(f"{service}.handler", service, pattern, every, decoder(f"{service}.handler", hint), run)


class Mesh:
    """A bus and any number of inboxes, one transport each."""

    def __init__(self, make: Callable[[], Transport], clock: Any = None) -> None:
        self.make = make
        self.table = FakeTable()
        self.clock = clock or LoopClock()
        self.transport = make()
        self.delivered: list[tuple[str, bytes, CallOptions]] = []
        self.answers: dict[str, Any] = {}
        self.recorder = Recorder()
        self.bus = self.another_bus(self.transport, "p-1", self.recorder)
        self.closing: list[Any] = [self.bus, self.transport]

    def another_bus(self, transport: Transport, name: str, recorder: Recorder | None = None, **options: Any) -> Bus:
        return Bus(transport, self.table, self.clock, self.deliver, publisher=name, recorder=recorder, **options)

    async def deliver(self, target: str, body: bytes, encoding: int, options: CallOptions) -> Any:
        self.delivered.append((target, body, options))
        answer = self.answers.get(target)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return await answer(body, encoding)
        return answer

    def inbox(self, *handlers: Handler, **options: Any) -> Inbox:
        transport = self.make()
        inbox = Inbox(**options)
        inbox.add(handlers)
        inbox.open(transport, transport.endpoint(f"inbox-{len(self.closing)}"))
        self.closing[:0] = [inbox, transport]
        return inbox

    async def close(self) -> None:
        for thing in self.closing:
            await thing.close()


@contextlib.asynccontextmanager
async def closed_after(mesh: Mesh) -> AsyncIterator[Mesh]:
    try:
        yield mesh
    finally:
        await mesh.close()


@pytest.fixture(params=["memory", "zmq"])
async def mesh(request, tmp_path):
    """The promises hold in memory and over sockets."""
    network = MemoryNetwork()
    make = (lambda: MemoryTransport(network)) if request.param == "memory" else (lambda: ZmqTransport(tmp_path / "run"))
    async with closed_after(Mesh(make)) as made:
        yield made


def collecting() -> tuple[list[Event], Callable[[Event], Any]]:
    seen: list[Event] = []

    async def run(event: Event) -> None:
        seen.append(event)

    return seen, run


async def test_the_first_event_reaches_a_fresh_subscriber(mesh):
    """Nothing is lost to slow joining, and everything arrives in order, once."""
    seen, run = collecting()
    inbox = mesh.inbox(handler(run, "order.*"))
    mesh.table.set(listener("mail", ("order.*", "every"), events=inbox.endpoint))
    for number in range(100):
        await mesh.bus.emit("order.created", {"n": number}, meta={"a": "b"}, trace=TRACE)
    await until(lambda: len(seen) == 100)
    assert [event.data["n"] for event in seen] == list(range(100))
    assert [event.number for event in seen] == list(range(1, 101))
    first = seen[0]
    assert (first.topic, first.publisher, first.trace, first.meta) == ("order.created", "p-1", TRACE, {"a": "b"})
    assert abs(first.at - mesh.clock.wall()) < 60
    assert inbox.missed == 0


async def test_every_instance_hears_and_only_matching_handlers_run(mesh):
    """Two workers, several patterns, one that only shares a prefix."""
    seen_a, run_a = collecting()
    seen_b, run_b = collecting()
    other, run_other = collecting()
    a = mesh.inbox(handler(run_a, "order.#"), handler(run_other, "order.created.twice"))
    b = mesh.inbox(handler(run_b, "order.created"))
    mesh.table.set(
        listener("mail", ("order.#", "every"), events=a.endpoint),
        listener("stock", ("order.created", "every"), events=b.endpoint),
    )
    await mesh.bus.emit("order.created", 1)
    await mesh.bus.emit("order.createdX", 2)
    await mesh.bus.emit("order", 3)
    await until(lambda: len(seen_a) == 3 and seen_b)
    await settle()
    assert sorted(event.data for event in seen_a) == [1, 2, 3]
    assert [event.data for event in seen_b] == [1]
    assert other == []


async def test_bytes_arrive_as_they_were_sent(mesh):
    """Without an encoding around them."""
    seen, run = collecting()
    inbox = mesh.inbox(handler(run))
    mesh.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    await mesh.bus.emit("image", b"\xff" * 300_000)
    await mesh.bus.emit_raw("image", b'{"a": 1}', JSON)
    await until(lambda: len(seen) == 2)
    assert seen[0].data == b"\xff" * 300_000
    assert seen[1].data == {"a": 1}


async def test_what_one_tick_emits_of_a_topic_leaves_as_few_frames(mesh):
    """Coalesced, but a frame does not grow without end."""
    seen, run = collecting()
    inbox = mesh.inbox(handler(run))
    mesh.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    await mesh.bus.emit("warm.up")
    await until(lambda: seen)
    frames: list[int] = []
    real = mesh.bus._publisher.send
    mesh.bus._publisher.send = lambda topic, frame: (frames.append(len(frame)), real(topic, frame))
    await asyncio.gather(*(mesh.bus.emit("a", "x" * 10_000) for _ in range(100)))
    await until(lambda: len(seen) == 101)
    assert 4 <= len(frames) <= 6
    assert max(frames) <= 256 * 1024


async def test_closing_sends_what_waits(tmp_path):
    """An event emitted just before the end is not forgotten."""
    network = MemoryNetwork()
    async with closed_after(Mesh(lambda: MemoryTransport(network))) as mesh:
        seen, run = collecting()
        inbox = mesh.inbox(handler(run))
        mesh.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
        await mesh.bus.emit("last", 1)
        await mesh.bus.close()
        await until(lambda: seen)
        await mesh.bus.emit("later", 2)


@pytest.fixture
async def memory():
    """In memory, with time turned by hand."""
    clock = ManualClock()
    network = MemoryNetwork(clock)
    async with closed_after(Mesh(lambda: MemoryTransport(network), clock)) as made:
        made.network = network
        yield made


async def test_a_dead_subscriber_delays_the_first_event_only(memory):
    """Bounded, counted, and paid once; the living one gets it all."""
    seen, run = collecting()
    inbox = memory.inbox(handler(run))
    memory.table.set(
        listener("mail", ("#", "every"), events=inbox.endpoint), listener("dead", ("#", "every"), events="mem://nobody")
    )
    emission = asyncio.ensure_future(memory.bus.emit("a", 1))
    await memory.clock.advance(0.9)
    assert not emission.done()
    await memory.clock.advance(0.2)
    assert emission.done()
    await memory.bus.emit("a", 2)
    await settle()
    assert [event.data for event in seen] == [1, 2]
    assert memory.recorder.counter("events_not_joined").value == 1


async def test_a_cancelled_emission_leaves_the_others_waiting_well(memory):
    """They wait for the same subscriber; one giving up does not end it."""
    memory.table.set(listener("dead", ("#", "every"), events="mem://nobody"))
    first = asyncio.ensure_future(memory.bus.emit("a", 1))
    second = asyncio.ensure_future(memory.bus.emit("a", 2))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    assert not second.done()
    await memory.clock.advance(1.1)
    assert second.done()
    await second


async def test_closing_ends_the_waiting(memory):
    """No task is left behind."""
    memory.table.set(listener("dead", ("#", "every"), events="mem://nobody"))
    emission = asyncio.ensure_future(memory.bus.emit("a", 1))
    await settle()
    await memory.bus.close()
    await emission
    assert not memory.bus._joining


async def test_a_subscriber_that_has_gone_is_left(memory):
    """When the table changes, and without another event."""
    seen, run = collecting()
    inbox = memory.inbox(handler(run))
    memory.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    await memory.bus.emit("a", 1)
    await settle()
    memory.table.set()
    memory.bus.changed()
    assert memory.bus._connected == set()
    await memory.bus.emit("a", 2)
    memory.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    await memory.bus.emit("a", 3)
    await settle()
    assert [(event.data, event.number) for event in seen] == [(1, 1), (3, 2)], "what nobody asked for has no number"


async def test_a_malformed_record_harms_nobody(memory):
    """A bad pattern or address in the registry is skipped; the rest hear."""
    seen, run = collecting()
    inbox = memory.inbox(handler(run))
    memory.table.set(
        listener("bad", ("a..b", "every"), ("**", "one"), events=inbox.endpoint),
        listener("worse", ("#", "every"), events="nonsense"),
        listener("mail", ("#", "every"), events=inbox.endpoint),
    )
    await memory.bus.emit("a", 1)
    await settle()
    assert [event.data for event in seen] == [1]


async def test_lost_events_are_counted_at_the_receiver(memory):
    """At most once, and the holes are shown."""
    seen, run = collecting()
    inbox = memory.inbox(handler(run))
    memory.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    await memory.bus.emit("a", 1)
    await settle()
    memory.network.drop(inbox.endpoint, 1.0)
    for _ in range(3):
        await memory.bus.emit("a", 0)
        await settle()
    memory.network.drop(inbox.endpoint, 0.0, random.Random(1))
    await memory.bus.emit("a", 2)
    await settle()
    assert [event.data for event in seen] == [1, 2]
    assert inbox.missed == 3


async def test_a_forgotten_topic_goes_on_above_all_numbers(memory):
    """Bounded memory at the publisher never makes a receiver drop what is new."""
    seen, run = collecting()
    inbox = memory.inbox(handler(run))
    memory.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    bus = memory.another_bus(memory.transport, "p-2", most_topics=2)
    for topic in ["a", "a", "a", "b", "c", "a", "d", "e", "b"]:
        await bus.emit(topic, topic)
        await settle()
    await bus.close()
    assert len(seen) == 9


async def test_one_of_a_service_is_called_and_acknowledges(memory):
    """Idempotent, so that it fails over; once for each service, however many instances and patterns match."""
    memory.table.set(
        listener("mail", ("order.*", "one"), ("#", "one")),
        listener("mail", ("order.*", "one"), id="mail-2"),
        listener("stock", ("order.created", "one")),
        listener("other", ("user.*", "one")),
    )
    await memory.bus.emit("order.created", {"n": 1}, key="k", timeout=2.0)
    assert [target for target, _, _ in memory.delivered] == ["mail.$on", "stock.$on"]
    assert memory.delivered[0][2] == CallOptions(timeout=2.0, key="k", idempotent=True)


async def test_services_are_asked_at_once_and_each_failure_is_told(memory):
    """One that fails keeps nobody from hearing."""
    both = asyncio.Event()
    waiting: list[int] = []

    async def together(body: bytes, encoding: int) -> None:
        waiting.append(1)
        if len(waiting) == 2:
            both.set()
        await both.wait()

    memory.answers = {
        "a.$on": together,
        "b.$on": together,
        "c.$on": Unavailable("nobody there"),
        "d.$on": ValueError("x"),
    }
    memory.table.set(*(listener(name, ("#", "one")) for name in "abcd"))
    with pytest.raises(NotAcknowledged) as caught:
        await memory.bus.emit("order.created")
    named = ("'order.created'", "c (unavailable: nobody there), d (ValueError: x)")
    assert all(word in caught.value.message for word in named)
    assert caught.value.details["services"]["c"] == {"code": "unavailable", "message": "nobody there"}
    assert len(waiting) == 2


async def test_cancelling_an_emission_cancels_its_calls(memory):
    """Cancellation goes through to whoever was asked."""
    stopped: list[str] = []

    async def slow(body: bytes, encoding: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append("stopped")
            raise

    memory.answers = {"a.$on": slow, "b.$on": slow}
    memory.table.set(listener("a", ("#", "one")), listener("b", ("#", "one")))
    emission = asyncio.ensure_future(memory.bus.emit("x"))
    await settle()
    emission.cancel()
    with pytest.raises(asyncio.CancelledError):
        await emission
    assert stopped == ["stopped", "stopped"]


async def test_what_cannot_be_sent_fails_where_it_is_emitted(memory):
    """Bad topics, bad data, too much of it: before anything leaves."""
    memory.table.set(listener("mail", ("#", "one")))
    with pytest.raises(BadTopic):
        await memory.bus.emit("a..b")
    with pytest.raises(BadArguments, match="object"):
        await memory.bus.emit("a", object())
    with pytest.raises(TooLarge, match="1,048,576"):
        await memory.bus.emit("a", b"x" * 2_000_000)
    assert memory.delivered == []


async def test_an_event_nobody_wants_opens_nothing(memory):
    """No socket, no call."""
    await memory.bus.emit("a", 1)
    assert memory.bus._publisher is None


async def test_from_bus_to_handlers_through_the_call(memory):
    """The method that an inbox makes understands what a bus sends, with the handler's types and the trace."""
    seen, run = collecting()

    class Order(msgspec.Struct):
        id: int

    inbox = Inbox()
    (method,) = inbox.add([handler(run, "order.*", every=False, hint=Order)])
    assert (method.target, method.idempotent) == ("mail.$on", True)

    async def serve(body: bytes, encoding: int) -> None:
        answer = method.encode_result(await method.run(*method.decode_args(body, encoding)), encoding)
        assert answer == (b"\xc0", MSGPACK)

    memory.answers = {"mail.$on": serve}
    memory.table.set(listener("mail", ("order.*", "one")))
    await memory.bus.emit("order.created", {"id": 7}, trace=TRACE, meta={"a": "b"})
    (event,) = seen
    assert (event.data, event.number, event.trace, event.meta) == (Order(7), 1, TRACE, {"a": "b"})
    with pytest.raises(NotAcknowledged, match=r"bad_arguments: .*mail\.handler: .*int.*str"):
        await memory.bus.emit("order.created", {"id": "x"})


async def test_the_trace_in_force_goes_along(memory):
    """Unless another is given."""
    seen, run = collecting()
    inbox = memory.inbox(handler(run))
    memory.table.set(listener("mail", ("#", "every"), events=inbox.endpoint))
    token = traces.current.set(TRACE)
    await memory.bus.emit("a")
    traces.current.reset(token)
    await settle()
    assert seen[0].trace == TRACE
