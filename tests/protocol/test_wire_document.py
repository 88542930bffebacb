"""docs/wire.md says what the code does, to the byte."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh import errors
from mesh.calls import failover
from mesh.discovery import record
from mesh.events import topics
from mesh.events.event import Parcel
from mesh.protocol import callee, caller, codec, link, messages

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()


def table(*header: str) -> list[list[str]]:
    """The rows of the tables with this header, cells without their backquotes."""
    return [row for rows in tables(*header) for row in rows]


def tables(*header: str) -> list[list[list[str]]]:
    pattern = r"^\| " + r" \| ".join(map(re.escape, header)) + r" \|\n\|[-|]+\|\n((?:\|.*\|\n)+)"
    found = re.findall(pattern, DOCUMENT, re.MULTILINE)
    assert found, f"no table with the columns {header}"
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.strip().splitlines()]
        for lines in found
    ]


def plain(cell: str) -> str:
    return cell.strip("`")


# --- grammar --------------------------------------------------------------------------------------

TYPES = {
    "int": int,
    "str": str,
    "bool": bool,
    "array": list,
    "map": dict,
    "body": (bytes, int),
    "str or nil": (str, type(None)),
    "map or nil": (dict, type(None)),
}


def test_the_message_table_is_the_grammar():
    """Numbers, names, fields, their types, and how many are required."""
    written = {}
    for number, name, _, fields in table("number", "name", "to", "fields"):
        required, _, optional = fields.partition("[")
        of = {part: re.findall(r"`(\w+): ([\w ]+)`", part) for part in (required, optional)}
        types = tuple(TYPES[kind] for part in (required, optional) for _, kind in of[part])
        written[int(number)] = (name, len(of[required]), types)
    assert written == messages.GRAMMAR


def test_fields_that_mean_something_stand_where_the_code_looks():
    """A body and an encoding are found by position; the names in the table say the same."""
    for number, _, _, fields in table("number", "name", "to", "fields"):
        names = re.findall(r"`(\w+): ", fields)
        places = codec._PLACES[int(number)]
        if "encoding" in names:
            assert places["encoding"] == names.index("encoding") + 1
        else:
            assert "encoding" not in places
        for name in ("body", "records"):
            if name in names:
                assert places["body"] == names.index(name) + 1
        for name in ("meta", "error"):
            if name in names:
                assert places["map"] == names.index(name) + 1


def test_a_caller_hears_what_the_table_says_is_for_diallers():
    """Of the kinds below the registry's, exactly those."""
    heard = {
        int(number)
        for number, _, to, _ in table("number", "name", "to", "fields")
        if to in ("dialler", "both") and int(number) < messages.REGISTER
    }
    assert heard == caller.HEARD


def test_the_version_and_the_encodings():
    """As spoken."""
    assert f"# The mesh wire protocol, version {messages.VERSION}\n" in DOCUMENT
    assert f"`version` is {messages.VERSION}." in DOCUMENT
    written = {int(number): name for number, name, _ in table("encoding", "name", "the body is")}
    assert written == dict(enumerate(messages.ENCODINGS))
    assert (messages.MSGPACK, messages.JSON, messages.RAW) == (0, 1, 2)


# --- states ---------------------------------------------------------------------------------------

NUMBERS = {name: number for number, name in messages.NAMES.items()} | {"connected": link.CONNECTED, "lost": link.LOST}


def test_the_states_of_a_link():
    """Both tables, step for step."""
    dialler, acceptor = tables("state", "hears", "next")[:2]
    for rows, machine in ((dialler, link.DIALLER), (acceptor, link.ACCEPTOR)):
        written = {(link.Link(state), NUMBERS[kind]): link.Link(after) for state, kind, after in rows}
        assert len(written) == len(rows)
        assert written == machine


def test_the_states_of_a_call():
    """The caller's half and the callee's."""
    rows = tables("state", "hears", "next")[2]
    names = {
        "waiting": caller.WAITING,
        "streaming": caller.STREAMING,
        "abandoned": caller.ABANDONED,
        "sending": caller.SENDING,
        "done": 0,
    }
    assert {(names[state], NUMBERS[kind]): names[after] for state, kind, after in rows} == caller.CALLER
    rows = table("state", "hears or says", "next")
    names = {"running": callee.RUNNING, "streaming": callee.STREAMING, "stopping": callee.STOPPING, "done": 0}
    assert {(names[state], NUMBERS[kind]): names[after] for state, kind, after in rows} == callee.CALLEE
    rows = table("state of the callee", "hears", "next")
    assert {(names[state], NUMBERS[kind]): names[after] for state, kind, after in rows} == callee.CLIENT_STREAM


# --- limits ---------------------------------------------------------------------------------------


def value_of(path: str) -> Any:
    """`module.CONSTANT`, or the default of an attribute: `module.Struct.attribute`."""
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            found = getattr(found() if isinstance(found, type) else found, name)
        return found
    raise AssertionError(f"{path} is nowhere")


@pytest.mark.parametrize(
    ("value", "where"), [(row[1], plain(row[2])) for row in table("limit", "value", "in the code")]
)
def test_limits_are_those_of_the_code(value, where):
    """Each number in the table is the constant that it names."""
    assert int(value) == value_of(where)


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        ("mesh.protocol.codec.MAX_FRAME", 2 << 20, "Frame 0 MUST be shorter than 2 MiB"),
        ("mesh.protocol.codec.SEAL_BYTES", 256 << 10, "when it holds 256 KiB"),
        ("mesh.protocol.codec.INLINE_BYTES", 64 << 10, "A body of up to 64 KiB SHOULD be inline"),
        ("mesh.protocol.codec.MAX_BIN", 1 << 20, "for every size up to 1 MiB"),
        ("mesh.protocol.stream.WINDOW", 256, "mesh opens with 256 and grants 128 when 128 have been consumed"),
        ("mesh.protocol.stream.MAX_CREDIT", 1048576, "MUST NOT pass 1048576"),
        ("mesh.protocol.deadline.MAX_BUDGET_MS", 604800000, "1 to 604800000 (a week)"),
        ("mesh.discovery.registry.GONE_AT_ONCE", 1000, "at most 1000 of them"),
        ("mesh.discovery.registry.LOAD_STEP", 0.1, "when it has moved by more than a tenth"),
        ("mesh.discovery.registrations.PIECE_BYTES", 512 << 10, "in several messages of at most 512 KiB"),
        ("mesh.transport.sockets.MAX_BACKLOG_BYTES", 128 << 20, "up to 128 MiB, and then the link is cut"),
        ("mesh.transport.endpoints.IPC_PATH_BYTES", 107, "at most 107 bytes of path"),
        ("mesh.transport.sockets.LinkOptions.heartbeat_s", 1.0, "`ZMQ_HEARTBEAT_IVL` 1 s"),
        ("mesh.transport.sockets.LinkOptions.heartbeat_timeout_s", 3.0, "`ZMQ_HEARTBEAT_TTL` 3 s"),
        ("mesh.events.bus.JOIN_S", 1.0, "but not for longer than a second"),
        ("mesh.events.bus.DELIVER", "$on", "a call to `SERVICE.$on`"),
    ],
)
def test_numbers_in_sentences_are_those_of_the_code(where, value, sentence):
    """What the text says in passing."""
    assert value_of(where) == value
    assert sentence in " ".join(DOCUMENT.split())


# --- bytes ----------------------------------------------------------------------------------------

EXAMPLES = re.findall(r"^```wire\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def parts(example: str) -> list[tuple[list[list[Any]], bytes, list[int]]]:
    """The ZeroMQ messages of an example: what is in them, frame 0, and the lengths of further frames."""
    found: list[tuple[list[list[Any]], bytes, list[int]]] = []
    for line in example.splitlines():
        if line.startswith("> "):
            if not found or found[-1][1]:
                found.append(([], b"", []))
            found[-1][0].append(literal(line[2:]))
        elif line.startswith("frame "):
            found[-1][2].append(int(line.split(": ")[1].split()[0]))
        else:
            said, frame, further = found[-1]
            found[-1] = (said, frame + bytes.fromhex(line), further)
    return found


def literal(text: str) -> list[Any]:
    """A message as it is written; `b"x" * 70000` is worked out."""
    repeated = re.search(r'b"(.)" \* (\d+)', text)
    if repeated is None:
        return ast.literal_eval(text)
    message = ast.literal_eval(text.replace(repeated[0], "None"))
    return [repeated[1].encode() * int(repeated[2]) if field is None else field for field in message]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0][:30])
def test_hex_dumps_are_real(example):
    """Written by the writer, and read by the reader."""
    for said, frame, further in parts(example):
        writer = codec.Writer()
        for message in said:
            at = codec._PLACES[message[0]].get("body")
            if at is None:
                writer.add(*message)
            else:
                writer.add_body(tuple(message[:at]), message[at], tuple(message[at + 1 :]))
        (frames,) = writer.take()
        assert bytes(frames[0]).hex(" ") == frame.hex(" ")
        assert [len(body) for body in frames[1:]] == further
        assert codec.Reader().read(frames) == said


def test_the_first_example_is_what_the_machines_say():
    """Not only well-formed: a caller and a callee that do this write these bytes."""
    (hello,), (welcome,), (calls,), (answers,) = map(parts, EXAMPLES[:4])
    ann = caller.Caller("gateway-1", 1700000000000, 67108864)
    bob = callee.Callee("greeting-1", 1700000000500, 4096, 67108864)
    ann.connected()
    bob.connected()

    def sends(end: caller.Caller | callee.Callee) -> bytes:
        ((frame,),) = end.data_to_send()
        (callee.Callee.receive if end is ann else caller.Caller.receive)(bob if end is ann else ann, [frame])
        return bytes(frame)

    assert sends(ann) == hello[1]
    assert sends(bob) == welcome[1]
    ann.call("greeting.hello", 2000, msgspec.msgpack.encode(["ujun"]))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ann.cancel(ann.call("greeting.hello", 2000, b'{"name": "ann"}', messages.JSON, trace))
    assert sends(ann) == calls[1]
    bob.reply(1, msgspec.msgpack.encode("Hello, ujun!"))
    bob.error(2, errors.Cancelled("greeting.hello: cancelled"))
    assert sends(bob) == answers[1]
    assert ann.calls == bob.calls == {}


def test_the_records_of_the_example_are_records():
    """The body of the snapshot is what a client reads."""
    (snapshot,) = [said[0] for example in EXAMPLES for said, _, _ in parts(example) if said[0][0] == messages.SNAPSHOT]
    (instance,) = msgspec.msgpack.decode(snapshot[5], type=list[record.Instance])
    assert (instance.service, instance.id, instance.epoch) == ("greeting", "greeting-1", 5)


def test_the_token_of_a_subscriber():
    """What an XPUB reads when a SUB has joined: 1, and the token of pubsub with the endpoint."""
    from mesh.transport.pubsub import TOKEN

    ((endpoint, dump),) = re.findall(r"^```wire-subscription\n> (.*)\n(.*)\n```", DOCUMENT, re.MULTILINE)
    assert bytes.fromhex(dump) == b"\x01" + TOKEN + endpoint.encode()


# --- errors ---------------------------------------------------------------------------------------


def test_error_codes_are_those_of_the_tree():
    """With their statuses and whether they may be retried: everything that comes back as what it was."""
    written = {
        plain(code): (int(status), retry == "yes")
        for code, status, retry, _ in table("code", "status", "retry", "means")
    }
    known = {code: (cls.status, cls.retryable) for code, cls in errors.BY_CODE.items()}
    known["handler_error"] = (errors.ServiceError.status, errors.ServiceError.retryable)
    assert written == known


def test_the_error_map_is_what_is_sent():
    """Keys, in order, and the defaults of those that are missing."""
    keys = [plain(row[0]) for row in table("key", "type", "meaning")]
    assert list(errors.ServiceError("x", details={"a": 1}).to_wire()) == keys
    bare = errors.from_wire({})
    assert (bare.code, bare.message, bare.type_name) == ("handler_error", "handler error", "Exception")
    assert (bare.status, bare.retryable, bare.details) == (500, False, {})
    assert "`handler_error`, the code in words, `Exception`, 500, false, none" in " ".join(DOCUMENT.split())


def test_the_refusals_that_are_asked_elsewhere():
    """The codes that speak of the instance, and how freely another one is asked."""
    (told,) = re.findall(
        r"^Of `refused`, only (.*?) speak of the instance: (.*?)\.", DOCUMENT, re.DOTALL | re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", told[0])) == set(failover.REFUSALS)
    budgeted = {
        code
        for code, trouble in failover.REFUSALS.items()
        if failover.FAILOVER[trouble, False] is failover.Verdict.BUDGETED
    }
    assert set(re.findall(r"`(\w+)`", told[1])) == budgeted


# --- records and events ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "struct"),
    [
        ("an instance", record.Instance),
        ("a method", record.MethodRecord),
        ("a route", record.RouteRecord),
        ("a subscription", record.Subscription),
    ],
)
def test_records_have_the_keys_of_the_table(what, struct):
    """In the order of the code, which is that of the bytes."""
    keys = [plain(row[0]) for row in table(f"key of {what}", "type", "meaning")]
    assert keys == [field.encode_name for field in msgspec.structs.fields(struct)]


def test_a_parcel_is_the_array_that_is_shown():
    """The argument of `SERVICE.$on`."""
    shown = re.search(r"^    \[(topic, .*)\]$", DOCUMENT, re.MULTILINE)
    assert shown is not None
    assert shown[1].split(", ") == [field.name for field in msgspec.structs.fields(Parcel)]
    packed = msgspec.msgpack.encode(Parcel("a.b", "p", 1, 5, b"x"))
    assert msgspec.msgpack.decode(packed) == ["a.b", "p", 1, 5, b"x", 0, "", {}]


@pytest.mark.parametrize(("pattern", "prefix"), [("order.*", "order."), ("order.#", "order"), ("order.x", "order.x")])
def test_prefixes_are_as_told(pattern, prefix):
    """What a SUB socket subscribes to."""
    assert topics.literal_prefix(pattern) == prefix
    assert f"(`{pattern}`: `{prefix}`)" in DOCUMENT or pattern == "order.x"


def test_words_of_topics_are_as_told():
    """Letters, digits and the characters that the grammar lists."""
    listed = re.search(r"^word     = 1\*\(ALPHA / DIGIT / (.*)\)$", DOCUMENT, re.MULTILINE)
    assert listed is not None
    others = {literal.strip('" ') for literal in listed[1].split("/")}
    for number in range(33, 127):
        letter = chr(number)
        if letter == ".":
            continue
        if letter.isalnum() or letter in others:
            topics.check_topic(f"a.{letter}")
        else:
            with pytest.raises(topics.BadTopic):
                topics.check_topic(f"a.{letter}")
