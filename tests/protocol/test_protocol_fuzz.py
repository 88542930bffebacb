"""Bytes from a hostile peer: only ProtocolViolation comes out, and memory stays bounded."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Iterator

import msgpack
import protocol_values as values
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ProtocolViolation
from mesh.protocol.callee import Callee
from mesh.protocol.caller import Caller
from mesh.protocol.codec import MAX_FRAME, Buffer, Reader, one
from mesh.protocol.messages import (
    CALL,
    CHANGE,
    END,
    GRAMMAR,
    HELLO,
    NAMES,
    OPEN,
    PING,
    RENEW,
    REPLY,
    WELCOME,
)

FUZZ_SECONDS = float(os.environ.get("MESH_FUZZ_SECONDS", "0"))
MIB = 1024 * 1024
IDS = (1, 2, 3, 4, 5)


def open_caller() -> Caller:
    """A caller with calls 1 and 2, streams 3 and 4, the even ones abandoned."""
    caller = Caller("ann", 1, MIB)
    caller.connected()
    caller.receive([one(WELCOME, 1, "bob", 1, 100, MIB)])
    caller.call("a.b", 5, b"")
    caller.cancel(caller.call("a.b", 5, b""))
    caller.open("a.s", 5, b"", 8)
    caller.cancel(caller.open("a.s", 5, b"", 8))
    caller.data_to_send()
    return caller


def open_callee() -> Callee:
    """A callee that runs the same calls."""
    callee = Callee("bob", 1, 100, MIB)
    callee.connected()
    callee.receive([one(HELLO, 1, "ann", 1, MIB)])
    callee.receive([one(CALL, 1, "a.b", 5, b"") + one(CALL, 2, "a.b", 5, b"")])
    callee.receive([one(OPEN, 3, "a.s", 5, b"", 8) + one(OPEN, 4, "a.s", 5, b"", 8)])
    callee.data_to_send()
    return callee


class Victims:
    """Ends that read whatever comes, as a transport would have them: replaced when they were cut."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.ends: dict[type, Caller | Callee] = {Caller: open_caller(), Callee: open_callee()}
        self.accepted = self.refused = 0

    def feed(self, frames: list[Buffer]) -> None:
        """Anything but a ProtocolViolation, or a reader that is of no use afterwards, is a failure."""
        try:
            for message in self.reader.read(list(frames)):
                assert type(message) is list
                assert message[0] in GRAMMAR
            self.accepted += 1
        except ProtocolViolation:
            self.refused += 1
        assert self.reader.read([one(PING, 1)]) == [[PING, 1]], "the reader is of use afterwards"
        for make in (open_caller, open_callee):
            kind = Caller if make is open_caller else Callee
            end = self.ends[kind]
            try:
                for message in end.receive(list(frames)):
                    assert type(message) is list
            except ProtocolViolation:
                for sent in end.data_to_send():
                    Reader().read(list(sent))  # what it still says is itself legal
                end.lost()
                assert not end.calls
                self.ends[kind] = make()
            else:
                for sent in end.data_to_send():
                    Reader().read(list(sent))


# --- bytes ----------------------------------------------------------------------------------------


def corpus() -> list[list[Buffer]]:
    """Valid ZeroMQ messages of every kind, with small and large bodies, alone and together."""
    found: list[list[Buffer]] = []
    examples = {int: 3, str: "a.b", bool: True, list: [["a-1", 5, 0.5]], dict: {"code": "x", "message": "m"}}
    for kind, (_, required, fields) in GRAMMAR.items():
        for count in range(required, len(fields) + 1):
            full: list[object] = [kind]
            for at, field in enumerate(fields[:count], start=1):
                if field == (bytes, int):
                    full.append(b"body")
                elif values.ENCODING.get(kind) == at:
                    full.append(1)
                elif isinstance(field, tuple):
                    full.append({"k": "v"} if dict in field else "00-aa-bb-01")
                else:
                    full.append(examples[field])
            found.append([one(*full)])
            if b"body" in full:
                found.append([one(*(0 if field == b"body" else field for field in full)), b"large body"])
    answers = [[kind, call] for kind in (20, 21, 22, 23, 24) for call in IDS]
    tails = {20: [b"x"], 21: [{"code": "c"}], 22: [{}], 23: [b"x"], 24: []}
    found += [[one(*head, *tails[head[0]])] for head in answers]
    found += [[one(18, call)] for call in IDS] + [[one(19, call, 7)] for call in IDS]
    found.append([b"".join(bytes(frames[0]) for frames in found if len(frames) == 1)])
    return found


#: What is dropped into frames: lengths that lie, extension types, broken text, markers, nesting, numbers at edges.
HOSTILE = (
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdc\x10\x00", b"\xdf\xff\xff\xff\xff", b"\xde\x04\x00",
    b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\x00\x10\x00\x00", b"\xc9\xff\xff\xff\xff\x01",
    b"\xc7\x00\x05", b"\xd4\x05x", b"\xd6\xff\x00\x00\x00\x00", b"\xc7\x0c\xff" + b"\xff" * 12, b"\xc1",
    b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xa2\xc3(", b"\xc0", b"\xc0\x92", b"\x91" * 1100, b"\x81" * 1100,
    b"\x81\x90\x90", b"\x81\xc4\x01x\x05", b"\x83\x00\x14\x01\x01\xc4\x01x\x05", b"\xc4\x02\x04\x07",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7, b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xc3", b"\xc2",
)  # fmt: skip


def mutated(draw: random.Random, valid: list[list[Buffer]]) -> list[Buffer]:
    """One valid message, made wrong in one to four ways."""
    frames = [bytearray(frame) for frame in draw.choice(valid)]
    for _ in range(draw.randint(1, 4)):
        frame = frames[draw.randrange(len(frames))] if draw.random() < 0.2 else frames[0]
        at = draw.randint(0, len(frame))
        match draw.randrange(10):
            case 0 if frame:
                frame[at % len(frame)] ^= 1 << draw.randrange(8)
            case 1 if frame:
                frame[at % len(frame)] = draw.randrange(256)
            case 2:
                del frame[at:]
            case 3:
                del frame[: draw.randint(0, 3)]
            case 4:
                frame[at:at] = draw.choice(HOSTILE)
            case 5:
                frame[at : at + draw.randint(1, 5)] = draw.choice(HOSTILE)
            case 6:
                other = bytes(draw.choice(valid)[0])
                frame[at:] = other[draw.randint(0, len(other)) :]
            case 7:
                frame += bytes(draw.choice(valid)[0])
            case 8:
                frames.append(bytearray(draw.randbytes(draw.randint(0, 8))))
            case _ if len(frames) > 1:
                frames.pop()
    return [bytes(frame) for frame in frames]


def attack(draw: random.Random, victims: Victims, valid: list[list[Buffer]], rounds: int) -> None:
    for _ in range(rounds):
        victims.feed(mutated(draw, valid))


def test_the_corpus_is_valid():
    """What is mutated begins as what every reader takes."""
    for frames in corpus():
        Reader().read(list(frames))


def test_mutated_frames_are_refused_or_read():
    """Flipped, cut, spliced and stuffed: both happen, and nothing else does."""
    victims = Victims()
    attack(random.Random(20), victims, corpus(), 8000)
    assert victims.refused > 1000
    assert victims.accepted > 100


def test_random_bytes_are_refused_or_read():
    """Short ones, long ones, and such as begin like a message."""
    draw = random.Random(21)
    victims = Victims()
    for _ in range(3000):
        head = draw.choice((b"", b"\x92\x04", b"\x95\x10\x01", b"\x93\x14", bytes([0x90 + draw.randrange(10)])))
        victims.feed([head + draw.randbytes(draw.choice((1, 3, 10, 40)))])


# --- values ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(GRAMMAR)), st.sampled_from(IDS) | values.values, st.lists(values.values))
        .map(lambda parts: [parts[0], parts[1], *parts[2]])
        .map(lambda message: message[: 1 + len(GRAMMAR[message[0]][2]) + 1])
        | values.any_message
        | values.near_message
        | values.values,
        min_size=1,
        max_size=4,
    ),
    st.lists(st.binary(max_size=4), max_size=2),
)
@settings(max_examples=300)
def test_any_values_are_refused_or_read(messages, bodies):
    """Well-formed MessagePack with the wrong things in it, at ends that have calls under way."""
    Victims().feed([b"".join(map(msgpack.packb, messages)), *bodies])


@pytest.mark.parametrize("who", ["caller", "callee"])
@pytest.mark.parametrize("kind", sorted(GRAMMAR), ids=NAMES.get)
def test_no_kind_breaks_an_end_that_has_not_been_greeted(kind, who):
    """Before the first word only welcome and hello are taken, one at each end."""

    @given(values.messages(kind))
    @settings(max_examples=10)
    def check(message: list[object]) -> None:
        end = Caller("ann", 1, MIB) if who == "caller" else Callee("bob", 1, 8, MIB)
        end.connected()
        try:
            end.receive([msgpack.packb(message)])
        except ProtocolViolation:
            return
        assert kind == (WELCOME if who == "caller" else HELLO)

    check()


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak(frame: bytes) -> tuple[float, float]:
    """MiB at most while a frame is read and refused or read, and MiB left behind."""
    reader = Reader()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        reader.read([frame])
    except ProtocolViolation:
        pass
    now, most = tracemalloc.get_traced_memory()
    return (most - before) / MIB, (now - before) / MIB


@pytest.mark.parametrize(
    ("frame", "most"),
    [
        (b"\xdd\xff\xff\xff\xff", 0.2),  # an array of four thousand million
        (b"\xdf\xff\xff\xff\xff", 0.2),
        (b"\xdb\xff\xff\xff\xff", 0.2),
        (b"\xc6\xff\xff\xff\xff", 0.2),
        (b"\xc9\xff\xff\xff\xff\x01", 0.2),
        (b"\xdc\x10\x00", 0.2),  # as long an array as may be, of which nothing came
        (b"\xde\x04\x00", 0.2),
        (b"\xdc\x10\x00" * 1023, 34),  # such arrays, each in the one before
        (b"\x92\x32" + b"\xdc\x10\x00" * 1022, 34),
        (b"\xc6\x00\x10\x00\x00", 0.2),
        (b"\xc6\x00\x10\x00\x00" * 1000, 0.2),
    ],
    ids=lambda part: part[:8].hex() if isinstance(part, bytes) else "",
)
def test_a_small_frame_that_claims_much_gets_little(traced, frame, most):
    """A header is not believed; what it makes Python allocate is bounded and given back."""
    used, left = peak(frame)
    assert used < most
    assert left < 0.2


@pytest.mark.parametrize(
    "frame",
    [
        # The dearest in memory per byte: empty containers.
        one(RENEW, [])[:-1] + b"\xdc\x00\x3f" + (b"\xdc\x10\x00" + b"\x90" * 4096) * 63,
        one(RENEW, [])[:-1] + b"\xdc\x00\x3f" + (b"\xdc\x10\x00" + b"\x80" * 4096) * 63,
        b"\x90" * (MAX_FRAME // 8),
        b"\xc0" * (MAX_FRAME // 8),
        one(PING, 1) * (MAX_FRAME // 24),
    ],
    ids=["nested arrays", "nested maps", "arrays", "nils", "messages"],
)
def test_a_frame_costs_a_hundred_times_its_length_at_the_most(traced, frame):
    """And only until it is refused or dealt with. With MAX_FRAME that makes 200 MB for the most hostile one."""
    used, left = peak(frame)
    assert used * MIB < 100 * len(frame)
    assert left < 2


def test_a_hundred_hostile_frames_leave_nothing_behind(traced):
    """Neither the reader nor its unpacker grows from frame to frame."""
    reader = Reader()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(100):
        with pytest.raises(ProtocolViolation):
            reader.read([HOSTILE[number % 4] + bytes(50_000)])
    assert tracemalloc.get_traced_memory()[0] - before < MIB


def test_a_frame_above_the_limit_is_not_taken_in(traced):
    """It is refused by its length."""
    frame = one(CHANGE, 1, b"", []) * MAX_FRAME
    used, left = peak(frame)
    assert used < 1
    assert left < 1


def test_calls_of_a_hostile_caller_are_bounded_by_its_credit():
    """However many it makes, the callee remembers as many as it allowed."""
    callee = open_callee()
    for start in range(0, 100_000, 1000):
        callee.receive([b"".join(one(CALL, 10 + start + at, "a.b", 5, b"") for at in range(1000))])
        callee.data_to_send()
    assert len(callee.calls) == 100


# --- longer ---------------------------------------------------------------------------------------


@pytest.mark.timeout(FUZZ_SECONDS + 60)
@pytest.mark.skipif(not FUZZ_SECONDS, reason="set MESH_FUZZ_SECONDS to search for so long from fresh seeds")
def test_mutated_frames_however_long_one_searches():
    """Fresh seeds until the time is over; a failure names its seed."""
    until = time.monotonic() + FUZZ_SECONDS / 2
    first = seed = time.time_ns()
    valid = corpus()
    while time.monotonic() < until:
        try:
            attack(random.Random(seed), Victims(), valid, 500)
        except BaseException as exc:
            exc.add_note(f"attack(random.Random({seed}), Victims(), corpus(), 500)")
            raise
        seed += 1
    print(f"{(seed - first) * 500} frames from seed {first}")


def test_both_ends_were_really_reached():
    """The victims have what the corpus speaks of, so that answers and cancels meet calls under way."""
    assert open_caller().receive([one(REPLY, 1, b"x") + one(END, 3)]) == [[REPLY, 1, b"x"], [END, 3]]
    assert list(open_callee().calls) == [1, 2, 3, 4]
