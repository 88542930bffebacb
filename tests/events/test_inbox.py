"""What comes in over PUB/SUB and by calls: handlers run, nothing else happens."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.clock import settle
from mesh.errors import BadArguments, Unavailable
from mesh.events.event import Event, Handler, Parcel, decoder
from mesh.events.inbox import Gaps, Inbox
from mesh.protocol.codec import one
from mesh.protocol.messages import EVENT, JSON, MSGPACK, PING
from mesh.telemetry import traces
from mesh.telemetry.metrics import Recorder

pack = msgspec.msgpack.encode


def event(number: int = 1, topic: str = "a", body: bytes = b"\x01", publisher: str = "p") -> bytes:
    return one(EVENT, publisher, number, topic, 1_000_500, body)


def made(run: Any, pattern: str = "#", every: bool = True, hint: Any = Any) -> Handler:
    return Handler("mail.handler", "mail", pattern, every, decoder("mail.handler", hint), run)


class Seen(list[Event]):
    async def __call__(self, event: Event) -> None:
        self.append(event)


def counted(recorder: Recorder, name: str) -> float:
    return recorder.counter(f"events_{name}").value


async def test_repetitions_are_dropped_and_holes_counted():
    """For each publisher and topic apart."""
    recorder, seen = Recorder(), Seen()
    inbox = Inbox(recorder=recorder)
    inbox.add([made(seen)])
    for number, topic, publisher in [
        (5, "a", "p"),
        (6, "a", "p"),
        (6, "a", "p"),
        (9, "a", "p"),
        (1, "b", "p"),
        (1, "a", "q"),
    ]:
        inbox.receive(topic, event(number, topic, publisher=publisher))
    inbox.receive("a", event(10) + event(12))
    await settle()
    assert [(e.publisher, e.topic, e.number) for e in seen] == [
        ("p", "a", 5), ("p", "a", 6), ("p", "a", 9), ("p", "b", 1), ("q", "a", 1), ("p", "a", 10), ("p", "a", 12),
    ]  # fmt: skip
    assert (inbox.missed, counted(recorder, "repeated"), counted(recorder, "received")) == (3, 1, 7)
    assert seen[0].at == 1000.5


def test_what_is_remembered_of_publishers_is_bounded():
    """The longest silent pair is forgotten, and then counts as new."""
    gaps = Gaps(most=2)
    assert [gaps.note("p", topic, 1) for topic in "aba"] == [0, 0, -1]
    assert gaps.note("p", "a", 4) == 2
    assert gaps.note("p", "c", 1) == 0
    assert gaps.note("p", "a", 5) == 0
    assert gaps.note("p", "b", 9) == 0, "forgotten: no hole can be told"
    assert len(gaps._last) == 2


GARBAGE = [
    b"",
    b"\x00",
    b"\xc1",
    b"hello",
    one(PING, 1),
    one(EVENT, "p", 1, "a"),
    one(EVENT, "p", 1, "b", 0, b""),
    one(EVENT, "p", 0, "a", 0, b""),
    one(EVENT, "p", 1, "a", 0, 0),
    one(EVENT, "p", 1, "a", 0, b"", 77),
    one(EVENT, "p", 1, "a", 0, b"", 0, None, {"a": 1}),
    b"\x91" * 10_000,
    b"\xdd\xff\xff\xff\xff",
    event()[:-1],
]


@pytest.mark.parametrize("frame", GARBAGE)
async def test_garbage_is_counted_and_forgotten(frame):
    """And the next event is heard as if nothing had been."""
    recorder, seen = Recorder(), Seen()
    inbox = Inbox(recorder=recorder)
    inbox.add([made(seen)])
    inbox.receive("a", frame)
    inbox.receive("not a topic", event())
    await settle()
    assert seen == []
    assert counted(recorder, "garbage") == 2
    inbox.receive("a", event(1))
    await settle()
    assert len(seen) == 1


@settings(deadline=None)
@given(
    st.text(max_size=8),
    st.one_of(
        st.binary(max_size=80), st.builds(lambda a, b: event()[:a] + b, st.integers(0, 20), st.binary(max_size=20))
    ),
)
def test_random_frames_never_raise(topic, frame):
    """Whatever a publisher sends."""
    Inbox().receive(topic, frame)


async def test_a_failing_handler_harms_no_other():
    """It is logged and counted; the others run, also those of events that follow."""
    recorder, seen = Recorder(), Seen()

    async def broken(event: Event) -> None:
        raise RuntimeError("no")

    inbox = Inbox(recorder=recorder)
    inbox.add([made(broken), made(seen), made(seen, hint=str)])
    inbox.receive("a", event(1) + event(2))
    await settle()
    assert [e.data for e in seen] == [1, 1]
    assert counted(recorder, "failed") == 4


async def test_a_handler_runs_in_the_trace_of_its_event():
    """In a span of its own; after a malformed trace in a new one."""
    seen: list[str] = []

    async def run(event: Event) -> None:
        seen.append(traces.current.get())

    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    inbox = Inbox()
    inbox.add([made(run)])
    inbox.receive("a", one(EVENT, "p", 1, "a", 0, b"\x01", MSGPACK, trace, {}))
    inbox.receive("a", one(EVENT, "p", 2, "a", 0, b"1", JSON, "garbage"))
    await settle()
    assert (seen[0][:36], seen[0][52:]) == (trace[:36], trace[52:])
    assert seen[0] != trace
    assert len(seen[1]) == len(trace)
    assert seen[1][:36] != trace[:36]


async def test_a_flood_is_dropped_past_a_bound():
    """Handlers that never end do not fill the memory; what they miss is counted."""
    recorder, running, gate = Recorder(), [], asyncio.Event()

    async def slow(event: Event) -> None:
        running.append(event)
        await gate.wait()

    inbox = Inbox(recorder=recorder, most_running=3)
    inbox.add([made(slow)])
    inbox.receive("a", b"".join(event(number) for number in range(1, 11)))
    await settle()
    assert (len(running), counted(recorder, "dropped")) == (3, 7)
    gate.set()
    await inbox.close()


async def test_closing_waits_for_handlers_or_cancels_them():
    """Every task has an owner that awaits it."""
    ended: list[str] = []
    gate = asyncio.Event()

    async def slow(event: Event) -> None:
        try:
            await gate.wait()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    inbox = Inbox()
    inbox.add([made(slow)])
    inbox.receive("a", event(1))
    closing = asyncio.ensure_future(inbox.close())
    await settle()
    assert not closing.done()
    gate.set()
    await closing
    gate.clear()
    inbox.receive("a", event(2))
    await settle()
    await inbox.close(cancel=True)
    assert ended == ["done", "cancelled"]


async def test_all_handlers_of_a_call_run_to_their_end_and_then_the_first_error_is_told():
    """An acknowledgement means that all of them returned."""
    seen = Seen()

    async def broken(event: Event) -> None:
        raise ValueError("no")

    (method,) = Inbox().add([made(broken, "a", False), made(seen, "a", False), made(seen, "#", False)])
    parcel = pack(Parcel("a", "p", 1, 0, b"\x07"))
    with pytest.raises(ValueError, match=r"^no$"):
        await method.run(*method.decode_args(parcel, MSGPACK))
    assert [e.data for e in seen] == [7, 7]


async def test_an_instance_that_does_not_listen_sends_the_caller_elsewhere():
    """Two releases of one service may listen to different topics."""
    (method,) = Inbox().add([made(Seen(), "a", False)])
    with pytest.raises(Unavailable) as caught:
        await method.run(*method.decode_args(pack(Parcel("b", "p", 1, 0, b"")), MSGPACK))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"", MSGPACK),
        (b"\x90", MSGPACK),
        (b"\x91" * 9999, MSGPACK),
        (b"[]", JSON),
        (pack(Parcel("a..", "p", 1, 0, b"")), MSGPACK),
    ],
)
def test_a_call_with_anything_but_an_event_is_refused(body, encoding):
    """With an error that the caller understands."""
    (method,) = Inbox().add([made(Seen(), "a", False)])
    with pytest.raises(BadArguments, match=r"mail\.\$on"):
        method.decode_args(body, encoding)
