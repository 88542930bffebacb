"""The calling end of a link, beyond what the scripts tell."""

from __future__ import annotations

import pytest

from mesh.errors import ProtocolViolation
from mesh.protocol.caller import ABANDONED, CALLER, STREAMING, WAITING, Caller
from mesh.protocol.codec import INLINE_BYTES, SEAL_BYTES, Reader, one
from mesh.protocol.messages import CALL, END, ERROR, GRAMMAR, ITEM, JSON, NAMES, OPEN, REFUSED, REPLY, WELCOME

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def caller() -> Caller:
    """One whose link is open."""
    caller = Caller("ann-1", 100, 1 << 20)
    caller.connected()
    caller.data_to_send()
    caller.receive([one(WELCOME, 1, "bob-1", 200, 8, 1 << 20)])
    return caller


def written(caller: Caller) -> list[list]:
    return [message for frames in caller.data_to_send() for message in Reader().read(frames)]


def test_a_call_is_written_with_as_few_fields_as_say_it(caller):
    """Encoding, trace and metadata stand there only when they differ from the default."""
    caller.call("a.b", 5, b"x")
    caller.call("a.b", 5, b"x", JSON)
    caller.call("a.b", 5, b"x", 0, TRACE)
    caller.call("a.b", 5, b"x", 0, None, {"k": "v"})
    assert written(caller) == [
        [CALL, 1, "a.b", 5, b"x"],
        [CALL, 2, "a.b", 5, b"x", JSON],
        [CALL, 3, "a.b", 5, b"x", 0, TRACE],
        [CALL, 4, "a.b", 5, b"x", 0, None, {"k": "v"}],
    ]


def test_an_opening_carries_its_window(caller):
    """The window stands before the optional fields, which are as for a call."""
    caller.open("a.s", 5, b"x", 64)
    caller.open("a.s", 5, b"x", 64, JSON, TRACE, {"k": "v"})
    assert written(caller) == [
        [OPEN, 1, "a.s", 5, b"x", 64, 0],
        [OPEN, 2, "a.s", 5, b"x", 64, JSON, TRACE, {"k": "v"}],
    ]


def test_ids_grow_from_one_and_are_not_used_twice(caller):
    """Also across calls and streams, and after answers; `last_id` tells the newest."""
    assert caller.last_id == 0
    assert [caller.call("a.b", 5, b""), caller.open("a.s", 5, b"", 1)] == [1, 2]
    caller.receive([one(REPLY, 1, b"") + one(END, 2)])
    assert caller.call("a.b", 5, b"") == caller.last_id == 3


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1])
def test_large_arguments_are_not_copied(caller, size):
    """Above 64 KiB the body is the frame."""
    body = bytes(size)
    caller.call("a.b", 5, body)
    (frames,) = caller.data_to_send()
    assert len(frames) == (1 if size <= INLINE_BYTES else 2)
    assert frames[-1] is body or size <= INLINE_BYTES


def test_metadata_does_not_make_a_frame_that_the_other_end_refuses(caller):
    """A burst of calls with 16 KiB of metadata each leaves as several frames."""
    for _ in range(300):
        caller.call("a.b", 5, b"", 0, None, {"note": "x" * 16_000})
        caller.open("a.s", 5, b"", 1, 0, None, {"note": "x" * 16_000})
    sent = caller.data_to_send()
    assert all(len(frames[0]) < SEAL_BYTES + 20_000 for frames in sent)
    assert sum(len(Reader().read(frames)) for frames in sent) == 600


@pytest.mark.parametrize("kind", [kind for kind in GRAMMAR if kind > END], ids=NAMES.get)
def test_what_is_not_for_a_caller_is_refused_by_name(caller, kind):
    """The registry's messages and events have other first fields; they were taken for ids."""
    fields = {int: 1, str: "s", bool: True, list: [], dict: {}}
    _, required, types = GRAMMAR[kind]
    message = [kind, *(b"" if isinstance(field, tuple) else fields[field] for field in types[:required])]
    with pytest.raises(ProtocolViolation, match=f"^{NAMES[kind]}: "):
        caller.receive([one(*message)])


def answer(kind: int, call: int) -> list:
    return [kind, call, *{REPLY: [b""], ITEM: [b""], ERROR: [{}], REFUSED: [{}], END: []}[kind]]


@pytest.mark.parametrize("state", [WAITING, STREAMING, ABANDONED], ids=["waiting", "streaming", "abandoned"])
@pytest.mark.parametrize("kind", [REPLY, ERROR, REFUSED, ITEM, END], ids=NAMES.get)
def test_the_table_decides_what_is_legal(caller, state, kind):
    """What it has comes out (unless abandoned); what it lacks is a violation that names the state."""
    call = caller.call("a.b", 5, b"")
    caller.calls[call] = state
    if (state, kind) in CALLER:
        wanted = caller.receive([one(*answer(kind, call))])
        assert wanted == ([] if state == ABANDONED else [answer(kind, call)])
        assert (call in caller.calls) == (kind == ITEM)
    else:
        with pytest.raises(ProtocolViolation, match=rf"^{NAMES[kind]}: .*\bcall 1\b"):
            caller.receive([one(*answer(kind, call))])


def test_it_says_whether_something_waits_to_be_sent(caller):
    """A pong is owed after a ping, and nothing after it was fetched."""
    assert not caller.owes
    caller.receive([one(4, 7)])
    assert caller.owes
    assert written(caller) == [[5, 7]]
    assert not caller.owes


def test_a_lost_link_reports_each_call_once(caller):
    """Whatever happens to it, `lost` may be asked again."""
    caller.call("a.b", 5, b"")
    assert caller.lost() == [1]
    assert caller.lost() == []
