"""The answering end of a link, beyond what the scripts tell."""

from __future__ import annotations

import pytest

from mesh.errors import ProtocolViolation, RemoteError, ServiceError
from mesh.protocol.callee import CALLEE, RUNNING, STOPPING, STREAMING, Callee
from mesh.protocol.codec import INLINE_BYTES, MAX_FRAME, Reader, one
from mesh.protocol.messages import (
    CALL,
    CANCEL,
    CREDIT,
    END,
    ERROR,
    GRAMMAR,
    HELLO,
    ITEM,
    JSON,
    NAMES,
    OPEN,
    PING,
    PONG,
    REFUSED,
    REJECT,
    REPLY,
)


@pytest.fixture
def callee() -> Callee:
    """One whose link is open, with credit for 1,000 calls."""
    callee = Callee("bob-1", 200, 1000, 1 << 20)
    callee.connected()
    callee.receive([one(HELLO, 1, "ann-1", 100, 1 << 20)])
    callee.data_to_send()
    return callee


def ask(callee: Callee, *calls: int) -> None:
    callee.receive([b"".join(one(CALL, call, "a.b", 1000, b"") for call in calls)])


def written(callee: Callee) -> list[list]:
    return [message for frames in callee.data_to_send() for message in Reader().read(frames)]


def test_a_reply_is_written_with_as_few_fields_as_say_it(callee):
    """Encoding and metadata stand there only when they differ from the default."""
    ask(callee, 1, 2, 3)
    callee.reply(1, b"x")
    callee.reply(2, b"x", JSON)
    callee.reply(3, b"x", 0, {"k": "v"})
    assert written(callee) == [[REPLY, 1, b"x"], [REPLY, 2, b"x", JSON], [REPLY, 3, b"x", 0, {"k": "v"}]]


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1])
def test_large_answers_are_not_copied(callee, size):
    """Above 64 KiB the body is the frame, of a reply and of an item."""
    ask(callee, 1)
    callee.receive([one(OPEN, 2, "a.s", 1000, b"", 8)])
    body = bytes(size)
    callee.reply(1, body, JSON)
    callee.item(2, body, JSON)
    sent = callee.data_to_send()
    assert sum(frames[-1] is body for frames in sent) == (2 if size > INLINE_BYTES else 0)
    assert [message for frames in sent for message in Reader().read(frames)] == [
        [REPLY, 1, body, 1],
        [ITEM, 2, body, 1],
    ]


def test_an_error_with_impossible_details_answers_its_call_and_harms_no_other(callee):
    """It took the answers before it with it, and its own caller waited for ever."""
    ask(callee, 1, 2, 3)
    callee.reply(1, b"first")
    callee.error(2, ServiceError("no", details={"number": 2**70}))
    callee.reply(3, b"third")
    first, second, third = written(callee)
    assert (first, third) == ([REPLY, 1, b"first"], [REPLY, 3, b"third"])
    assert second[:2] == [ERROR, 2]
    assert second[2]["message"] == "no"
    assert callee.calls == {}


def test_a_thousand_failures_of_one_tick_arrive(callee):
    """With tracebacks and long messages; their frames stay below what a reader takes."""
    ask(callee, *range(1000))
    for call in range(1000):
        error = RemoteError("x" * 10_000, type_name="ValueError", details={"traceback": "y" * 8000})
        callee.error(call, error)
    sent = callee.data_to_send()
    assert all(len(frames[0]) < MAX_FRAME // 4 for frames in sent)
    assert [message[:2] for frames in sent for message in Reader().read(frames)] == [[ERROR, n] for n in range(1000)]


def test_replies_with_metadata_arrive_in_frames_that_a_reader_takes(callee):
    """As calls do."""
    ask(callee, *range(500))
    for call in range(500):
        callee.reply(call, b"", 0, {"note": "x" * 16_000})
    sent = callee.data_to_send()
    assert all(len(frames[0]) < MAX_FRAME // 4 for frames in sent)
    assert sum(len(Reader().read(frames)) for frames in sent) == 500


@pytest.mark.parametrize("state", [RUNNING, STREAMING, STOPPING], ids=["running", "streaming", "stopping"])
@pytest.mark.parametrize("kind", [CANCEL, CREDIT], ids=NAMES.get)
def test_the_table_decides_what_a_caller_may_say_of_a_call(callee, state, kind):
    """What it has changes the state; what it lacks is a violation."""
    ask(callee, 1)
    callee.calls[1] = state
    message = [CANCEL, 1] if kind == CANCEL else [CREDIT, 1, 5]
    if (state, kind) in CALLEE:
        wanted = callee.receive([one(*message)])
        assert wanted == ([] if (state, kind) == (STOPPING, CANCEL) else [message])
        assert callee.calls == {1: CALLEE[state, kind]}
    else:
        with pytest.raises(ProtocolViolation, match=r"^credit: .*\b1\b"):
            callee.receive([one(*message)])


def test_an_answer_of_the_wrong_shape_is_a_fault_of_this_process(callee):
    """An end for a call is not written but raised where it is said."""
    ask(callee, 1)
    with pytest.raises(AssertionError, match=r"end .*\bcall 1\b"):
        callee.end(1)
    callee.item(1, b"")
    assert written(callee) == []


@pytest.mark.parametrize(
    "kind", [kind for kind in GRAMMAR if kind not in (CALL, OPEN, CANCEL, CREDIT, ITEM, END, PING, PONG)], ids=NAMES.get
)
def test_what_is_not_for_a_callee_is_refused_by_name(callee, kind):
    """Answers, the registry's messages, events and a second hello; the caller is told why it is cut."""
    fields = {int: 1, str: "s", bool: True, list: [], dict: {}}
    _, required, types = GRAMMAR[kind]
    message = [kind, *(b"" if isinstance(field, tuple) else fields[field] for field in types[:required])]
    with pytest.raises(ProtocolViolation, match=rf"^{NAMES[kind]}: .*\bopen\b"):
        callee.receive([one(*message)])
    ((_, code, reason),) = written(callee)
    assert code == "protocol_violation"
    assert reason.startswith(NAMES[kind])


def test_the_reject_of_a_long_story_is_short(callee):
    """What a peer sent is quoted to it in at most 500 characters."""
    with pytest.raises(ProtocolViolation):
        callee.receive([one("k" * 200_000)])
    ((kind, _, reason),) = written(callee)
    assert kind == REJECT
    assert len(reason) <= 500


def test_refusals_beyond_the_credit_are_bounded_frames():
    """A caller that ignores its credit is told so in frames that it can read."""
    callee = Callee("bob-1", 200, 1, 1 << 20)
    callee.connected()
    callee.receive([one(HELLO, 1, "ann-1", 100, 1 << 20)])
    callee.data_to_send()
    ask(callee, *range(20_000))
    sent = callee.data_to_send()
    assert all(len(frames[0]) < MAX_FRAME // 4 for frames in sent)
    refusals = [message for frames in sent for message in Reader().read(frames)]
    assert [message[:2] for message in refusals] == [[REFUSED, call] for call in range(1, 20_000)]
    assert {message[2]["code"] for message in refusals} == {"overloaded"}
    assert list(callee.calls) == [0]


def test_a_stream_ends_with_its_last_word_in_every_state(callee):
    """An end while streaming and while stopping; afterwards nothing is owed."""
    callee.receive([one(OPEN, 1, "a.s", 1000, b"", 8) + one(OPEN, 2, "a.s", 1000, b"", 8) + one(CANCEL, 2)])
    callee.item(1, b"x")
    callee.item(2, b"dropped")
    callee.end(1)
    callee.end(2)
    assert written(callee) == [[ITEM, 1, b"x"], [END, 1], [END, 2]]
    assert callee.calls == {}
