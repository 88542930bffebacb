"""Messages to frames and back."""

from __future__ import annotations

import re
import tracemalloc

import msgpack
import protocol_values as values
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.errors import ProtocolViolation, ServiceError
from mesh.protocol import codec
from mesh.protocol.codec import INLINE_BYTES, MAX_FRAME, SEAL_BYTES, Reader, Writer, error_map, one
from mesh.protocol.messages import (
    CALL,
    CANCEL,
    CHANGE,
    CREDIT,
    END,
    ERROR,
    EVENT,
    GRAMMAR,
    HELLO,
    ITEM,
    LEARNED,
    NAMES,
    OPEN,
    PING,
    REFUSED,
    REGISTER,
    RENEW,
    REPLY,
    SNAPSHOT,
    WATCH,
    WELCOME,
)

BODY_AT = {
    kind: next((at for at, field in enumerate(fields, start=1) if field == (bytes, int)), None)
    for kind, (_, _, fields) in GRAMMAR.items()
}


def write(*messages: list) -> list[list]:
    """The ZeroMQ messages in which a writer sends these."""
    writer = Writer()
    for message in messages:
        at = BODY_AT[message[0]]
        if at is None:
            writer.add(*message)
        else:
            writer.add_body(tuple(message[:at]), message[at], tuple(message[at + 1 :]))
    return writer.take()


def read(sent: list[list]) -> list[list]:
    reader = Reader()
    return [message for frames in sent for message in reader.read(frames)]


def refused(frames: list) -> str:
    """Why a reader refuses; it must be of use afterwards."""
    reader = Reader()
    with pytest.raises(ProtocolViolation) as caught:
        reader.read(frames)
    assert reader.read([one(PING, 1)]) == [[PING, 1]]
    return caught.value.message


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(GRAMMAR), ids=NAMES.get)
def test_what_is_written_is_read(kind):
    """Every kind, with any values and any number of its optional fields, comes back as it was."""

    @given(st.lists(values.messages(kind), min_size=1, max_size=4))
    @settings(max_examples=25)
    def check(messages: list[list]) -> None:
        assert read(write(*messages)) == messages

    check()


@given(st.lists(values.any_message, max_size=12))
@settings(max_examples=100)
def test_messages_of_all_kinds_share_a_frame_in_order(messages):
    """One tick's messages leave as one frame."""
    sent = write(*messages)
    assert len(sent) == (1 if messages else 0)
    assert read(sent) == messages


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, SEAL_BYTES, SEAL_BYTES * 5])
@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ((CALL, 1, "a.b", 5), (1, None, {"k": "v"})),
        ((OPEN, 1, "a.b", 5), (64, 2)),
        ((REPLY, 1), ()),
        ((ITEM, 1), (2,)),
        ((EVENT, "p", 1, "t", 5), (1,)),
        ((REGISTER, 1), ()),
        ((SNAPSHOT, "h", 1, 2, True), ()),
        ((CHANGE, 1), ([["a", 1, "left"]],)),
    ],
    ids=lambda part: NAMES.get(part[0]) if part and isinstance(part[0], int) else None,
)
def test_bodies_of_every_size_come_back(size, head, tail):
    """Up to 64 KiB inside the frame, above it as a frame of its own; the reader does not care."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    writer = Writer()
    writer.add_body(head, body, tail)
    sent = writer.take()
    assert [len(frames) for frames in sent] == [1 if size <= INLINE_BYTES else 2]
    assert read(sent) == [[*head, body, *tail]]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
@pytest.mark.parametrize("size", [3, INLINE_BYTES + 1])
def test_any_buffer_is_a_body(make, size):
    """Small ones are copied into the frame, large ones travel as the object itself."""
    body = make(b"x" * size)
    writer = Writer()
    writer.add_body((REPLY, 1), body)
    (frames,) = writer.take()
    if size > INLINE_BYTES:
        assert frames[1] is body
    assert bytes(read([frames])[0][2]) == b"x" * size


def test_a_large_body_closes_its_message():
    """What was written after it need not wait for its bytes to be read; the order stays."""
    big = b"b" * (INLINE_BYTES + 1)
    sent = write([PING, 1], [REPLY, 1, big], [PING, 2], [REPLY, 2, big], [REPLY, 3, b"small"])
    assert [len(frames) for frames in sent] == [2, 2, 1]
    assert read(sent) == [[PING, 1], [REPLY, 1, big], [PING, 2], [REPLY, 2, big], [REPLY, 3, b"small"]]


def test_several_large_bodies_in_one_message_are_read():
    """This writer seals after each; another language's need not."""
    head = one(REPLY, 1, 0) + one(PING, 9) + one(ITEM, 2, 1, 2)
    assert Reader().read([head, b"first", memoryview(b"second")]) == [
        [REPLY, 1, b"first"],
        [PING, 9],
        [ITEM, 2, b"second", 2],
    ]


# --- how much one frame holds ---------------------------------------------------------------------


def test_a_flood_is_sealed_into_frames_of_a_bounded_size():
    """Frame 0 stays near SEAL_BYTES, however much a tick produces."""
    writer = Writer()
    for number in range(100):
        writer.add_small(REPLY, number, b"x" * 10_000)
    sent = writer.take()
    assert len(sent) > 3
    assert all(len(frames[0]) < SEAL_BYTES + 11_000 for frames in sent)
    assert [message[1] for message in read(sent)] == list(range(100))


@pytest.mark.parametrize("kind", [CANCEL, PING, CREDIT, END])
def test_messages_without_a_body_are_sealed_too(kind):
    """A hundred thousand of them are several frames that the other end takes."""
    writer = Writer()
    for _ in range(100_000):
        writer.add(*((kind, 2**40) if kind != CREDIT else (kind, 2**40, 1)))
    sent = writer.take()
    assert all(len(frames[0]) < MAX_FRAME for frames in sent)
    assert len(read(sent)) == 100_000


def test_what_stands_beside_bodies_is_counted_when_it_is_announced():
    """`expect` seals in time: metadata and error maps are no bodies, but they fill frames."""
    writer = Writer()
    for number in range(200):
        writer.expect(16_000)
        writer.add_body((CALL, number, "a.b", 5), b"", (0, None, {"k": "v" * 16_000}))
    sent = writer.take()
    assert all(len(frames[0]) < SEAL_BYTES + 20_000 for frames in sent)
    assert len(read(sent)) == 200


def test_a_writer_is_empty_after_take():
    """Nothing is sent twice."""
    writer = Writer()
    assert not writer
    assert writer.take() == []
    writer.add(PING, 1)
    assert writer
    assert read(writer.take()) == [[PING, 1]]
    assert not writer
    assert writer.take() == []


# --- what is refused ------------------------------------------------------------------------------


@given(st.lists(values.near_message | values.any_message, max_size=3))
@settings(max_examples=400)
@example([[CALL, 1, "a.b", 5, b"", 3]])
@example([[CALL, 1, "a.b", 5, b"", -1]])
@example([[ERROR, 1, {1: 2}]])
@example([[ERROR, 1, {"code": 2}]])
@example([[REFUSED, 1, {"code": "x", "details": {1: [None]}}]])
@example([[HELLO, 1, "a", 1, 1, {"k": 1}]])
@example([[True, 1]])
@example([[4.0, 1]])
@example([[SNAPSHOT, "h", 1, 1, 1, b""]])
@example([[]])
def test_a_reader_takes_exactly_what_the_grammar_allows(messages):
    """The tables of the codec agree with the grammar read slowly and plainly."""
    # A body that is an int would refer to a further frame, and none comes: not legal, as is_legal has it.
    frame = b"".join(msgpack.packb(message) for message in messages)
    if all(map(values.is_legal, messages)):
        assert Reader().read([frame]) == messages
    else:
        refused([frame])


@pytest.mark.parametrize(
    "value",
    [
        {0: REPLY, 1: 1, b"x": 5},
        {0: PING, 1: 7},
        bytes([PING, 7]),
        bytes([WATCH]),
        "5",
        5,
        5.0,
        True,
        msgpack.ExtType(5, b""),
    ],
    ids=repr,
)
def test_a_message_is_an_array_and_nothing_that_looks_like_one(value):
    """A map or a string has elements, too: read as fields, they broke whoever used them."""
    assert type(value).__name__ in refused([msgpack.packb(value)])


@pytest.mark.parametrize(
    "frame",
    [b"\xc0", b"\xc0" + one(PING, 1), one(PING, 1) + b"\xc0" + one(PING, 2), b"\xc0\xc0", b"\xc0\x92", b"\xc0\xc4"],
    ids=lambda frame: frame.hex(),
)
def test_a_nil_between_messages_is_refused(frame):
    """Also in front of something unfinished, which would then swallow the reader's own nil behind the frame."""
    assert "nil" in refused([frame])


@pytest.mark.parametrize("cut", range(1, len(one(CALL, 1, "a.b", 5, b"body", 0, None, {"k": "v"}))))
def test_a_frame_that_ends_in_a_message_is_refused(cut):
    """Wherever it is cut; what follows on the connection is not taken for its rest."""
    frame = one(CALL, 1, "a.b", 5, b"body", 0, None, {"k": "v"})
    refused([frame[:cut]])
    refused([one(PING, 1) + frame[:cut]])


@pytest.mark.parametrize(
    ("frames", "numbers"),
    [
        ([one(REPLY, 1, 0)], []),
        ([one(REPLY, 1, 1), b"a"], ["1", "0"]),
        ([one(REPLY, 1, -1), b"a"], ["-1", "0"]),
        ([one(REPLY, 1, 1) + one(REPLY, 2, 0), b"a", b"b"], ["1", "0"]),
        ([one(REPLY, 1, 0) + one(REPLY, 2, 0), b"a", b"b"], ["0", "1"]),
        ([one(REPLY, 1, 0), b"a", b"b"], ["2", "1"]),
        ([one(PING, 1), b"a"], ["1", "0"]),
        ([b"", b"a"], ["1", "0"]),
    ],
)
def test_large_bodies_are_referred_to_once_and_in_order(frames, numbers):
    """A number that is out of order, missing or too many is refused, never guessed. The error shows what came and what
    would be legal."""
    message = refused(frames)
    assert re.findall(r"-?\b\d+\b", message) == numbers or not numbers


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (one(99), ["99"]),
        (one("call", 1), ["'call'"]),
        (one([CALL], 1), []),
        (one(CALL, 1, "a.b", 5), ["call", "3", "4 to 7"]),
        (one(PING, 1, 2), ["ping", "2", "1 to 1"]),
        (one(PING, "1"), ["ping", "(str)"]),
        (one(CALL, 1, "a.b", 5, "text"), ["call", "(int, str, int, str)"]),
        (one(CALL, 1, "a.b", 5, b"", 3), ["call", "encoding 3"]),
        (one(CALL, 1, "a.b", 5, b"", 0, None, {"k": 1}), ["call", "metadata"]),
        (one(HELLO, 1, "a", 1, 1, {1: "v"}), ["hello", "metadata"]),
        (one(ERROR, 1, {"code": 5}), ["error", "code, message, type"]),
        (one(REFUSED, 1, {5: "x"}), ["refused", "code, message, type"]),
        (b"\x92\x04\xc1", ["frame 0"]),
        (b"\x93\x03\xa1\xff", ["frame 0"]),
        (b"\x92\x03\xa1\xff", ["UnicodeDecodeError"]),
        (b"\x92\x04\xc7\x01\x05x", ["max_ext_len"]),
        (b"\x91" * 2000, ["StackError"]),
        (b"x" * MAX_FRAME, ["BufferFull"]),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_wrong_is_named(frame, words):
    """A refusal says what came and what would be legal."""
    message = refused([frame])
    assert [each for each in words if each not in message] == []


def test_a_frame_may_be_as_long_as_the_limit_says():
    """One byte less than MAX_FRAME is read, MAX_FRAME is not."""
    beside = len(one(EVENT, "p", 1, "t", 5, bytes(70_000))) - 70_000
    body = bytes((MAX_FRAME - 2 * beside) // 2)
    frame = one(EVENT, "p", 1, "t", 5, body) + one(EVENT, "p", 2, "t", 5, body[1:])
    assert len(frame) == MAX_FRAME - 1
    assert len(Reader().read([frame])) == 2
    assert "BufferFull" in refused([one(EVENT, "p", 1, "t", 5, body) * 2])


def test_no_frame_at_all_is_refused():
    """A ZeroMQ message has at least one frame; an empty one holds no messages and is legal."""
    refused([])
    assert Reader().read([b""]) == []


def test_a_reader_may_be_told_what_it_is_for():
    """Kinds that this end of a link never hears are refused by name, before anybody looks at their fields."""
    reader = Reader((PING, WELCOME))
    assert reader.read([one(PING, 1)]) == [[PING, 1]]
    for message in ((RENEW, []), (WATCH,), (LEARNED, 1), (CALL, 1, "a.b", 5, b"")):
        with pytest.raises(ProtocolViolation, match=f"^{NAMES[message[0]]}: "):
            reader.read([one(*message)])


def test_nothing_of_a_refused_frame_is_delivered():
    """A frame is read as a whole: good messages before the bad one do not come out."""
    assert "unknown kind" in refused([one(PING, 1) + one(PING, 2) + one(99)])


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "details",
    [
        {"rows": list(range(5000))},
        {"map": {str(number): number for number in range(2000)}},
        {"text": "x" * 300_000},
        {"number": 2**70},
        {"number": -(2**64)},
        {"odd": "\ud800"},
    ],
    ids=["long list", "large map", "long text", "huge number", "huge negative", "no unicode"],
)
def test_an_error_that_no_reader_takes_travels_without_its_details(details):
    """What a service puts into an error costs neither the caller its answer nor its neighbours their link."""

    class Odd(ServiceError):
        code = "odd"
        status = 409

    wire, size = error_map(Odd("the message", details=details).to_wire())
    packed = one(ERROR, 1, wire)
    assert len(packed) <= size + 10
    assert size <= codec.MAX_ERROR
    ((_, _, came),) = Reader().read([packed])
    assert (came["code"], came["message"], came["type"], came["status"]) == ("odd", "the message", "Odd", 409)
    assert came["retry"] is False
    if details != {"odd": "\ud800"}:  # errors.to_wire has mended this one already, or left it out
        assert set(came["details"]) == {"omitted"}


def test_an_ordinary_error_travels_as_it_is():
    """With its details, and untouched."""
    wire = ServiceError("no", details={"path": "$.name", "rows": [1, 2], "n": {"1": None}}).to_wire()
    told, size = error_map(dict(wire))
    assert told == wire
    assert size == len(msgpack.packb(wire))


def test_an_error_code_that_is_no_string_is_made_one():
    """A service that writes `code = 404` is understood, not cut."""

    class Numbered(ServiceError):
        code = 404  # type: ignore[assignment]

    wire, _ = error_map(Numbered("no").to_wire())
    assert wire["code"] == "404"
    Reader().read([one(ERROR, 1, wire)])


# --- memory ---------------------------------------------------------------------------------------


def test_a_link_at_rest_is_small():
    """A reader and a writer take less than 400 KiB: msgpack's own defaults would take 1.3 MiB."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pair = Reader(), Writer()
        assert tracemalloc.get_traced_memory()[0] - before < 400 * 1024
        del pair
    finally:
        tracemalloc.stop()
