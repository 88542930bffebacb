"""Records from peers that are not trusted."""

from __future__ import annotations

import random

import msgspec
import pytest

from mesh.discovery.admission import Limits, encode_records, read_news, read_records
from mesh.discovery.record import Instance, MethodRecord, RouteRecord, Subscription
from mesh.errors import ProtocolViolation

LIMITS = Limits()


def body(*records):
    return msgspec.msgpack.encode(list(records))


def plain(**fields):
    return {"service": "a", "id": "a-1", "epoch": 1, **fields}


FULL = Instance(
    service="orders",
    id="orders-1",
    epoch=1_700_000_000_000,
    worker="w-1",
    version="1.2.3",
    host="alpha",
    pid=7,
    endpoint="ipc:///run/mesh/w-1.sock",
    events="ipc:///run/mesh/w-1.events.sock",
    methods={"place": MethodRecord("place", {"type": "object"}, {"type": "string"}, idempotent=True, timeout_s=2.5)},
    routes=[RouteRecord("POST", "/orders/{id}", "place", {"id": "path"}, status=201)],
    subscriptions=[Subscription("order.*", "seen", "every")],
    meta={"zone": "x"},
    load=0.25,
)


def test_a_record_comes_back_as_it_went():
    """Every field survives the wire."""
    assert read_records(encode_records([FULL]), LIMITS) == [FULL]
    assert read_news(encode_records([FULL]), "snapshot") == [FULL]


def test_fields_of_a_newer_release_are_ignored():
    """A record may know more than its reader."""
    assert read_records(body(plain(weight=3)), LIMITS) == [Instance("a", "a-1", 1)]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"id": "a-1", "epoch": 1}, "missing required field `service`"),
        (plain(service=7), r"Expected `str`, got `int` - at `\$.service`"),
        (plain(epoch="1"), r"at `\$.epoch`"),
        (plain(epoch=-1), r"\bepoch\b"),
        (plain(epoch=2**63), r"\bepoch\b|out of range"),
        (plain(pid=None), r"at `\$.pid`"),
        (plain(methods=[]), r"at `\$.methods`"),
        (plain(methods={"m": {"name": 1}}), r"at `\$.methods\[...\].name`"),
        (plain(routes=[{"verb": "GET", "path": "/", "method": "m", "sources": {"x": "cookie"}}]), "Invalid enum value"),
        (plain(subscriptions=[{"topic": "t", "to": "some"}]), "Invalid enum value"),
        (plain(meta={"k": 1}), r"at `\$.meta\[...\]`"),
        (plain(load=2.0), r"\bload\b.*0\.0 to 1\.0"),
        (plain(load=float("nan")), r"\bload\b.*0\.0 to 1\.0"),
        (plain(load="0.1"), r"at `\$.load`"),
        (plain(id=""), r"\bid\b.*1 to 200"),
        (plain(id="x" * 201), r"\bid\b.*1 to 200"),
        (plain(id="a\x1b[2J"), r"\bid\b.*1 to 200"),
        (plain(service=""), r"\bservice\b"),
        (plain(service="a\nb"), r"\bservice\b"),
        (plain(endpoint="e" * 513), r"\bendpoint\b"),
        (plain(methods={"m": {"name": "m", "params": {"x": msgspec.msgpack.Ext(5, b"x")}}}), r"\bschemas\b"),
        ("a-1", "Expected `object`"),
        ([], "Expected `object`"),
        (None, "Expected `object`"),
    ],
)
def test_a_wrong_record_is_a_violation_that_names_its_place(record, words):
    """The message says which record, which field, and what was expected."""
    with pytest.raises(ProtocolViolation, match=f"^register: record 1: .*({words})"):
        read_records(body(plain(), record), LIMITS)


@pytest.mark.parametrize(
    "bad", [b"", b"\xc0", b"\x81\xa1a\x01", b"\xdd\xff\xff\xff\xff", b"\x92\xc0", b"\xc1", b"\x91" * 3000]
)
def test_a_body_that_is_no_array_of_records_is_a_violation(bad):
    """Rubbish, truncation, lying lengths and deep nests are refused by name."""
    with pytest.raises(ProtocolViolation, match=r"^register: "):
        read_records(bad, LIMITS)
    with pytest.raises(ProtocolViolation, match=r"^snapshot: "):
        read_news(bad, "snapshot")


def test_a_deep_nest_inside_a_schema_is_a_violation():
    """Nesting past the interpreter's limit is no other exception."""
    deep = b"\x91" * 100_000 + b"\xc0"
    record = b"\x84\xa7service\xa1a\xa2id\xa3a-1\xa5epoch\x01\xa7methods\x81\xa1m\x82\xa4name\xa1m\xa6params\x81\xa1x"
    with pytest.raises(ProtocolViolation):
        read_records(b"\x91" + record + deep, LIMITS)


def test_a_large_record_is_refused_before_it_is_read():
    """Size is bounded per record."""
    with pytest.raises(ProtocolViolation, match=r"record 0\b.*\b1024\b.*max_record"):
        read_records(body(plain(doc="x" * 2000)), Limits(record_bytes=1024))


def test_too_many_records_are_refused():
    """Count is bounded per message, as it is per peer."""
    with pytest.raises(ProtocolViolation, match=r"\b3\b.*\b2\b"):
        read_records(body(plain(), plain(), plain()), Limits(peer_records=2))


def test_mutated_bodies_raise_only_violations():
    """Five thousand bodies with random bytes changed: read, or refused; never another exception."""
    rng = random.Random(7)
    good = encode_records([FULL, FULL])
    refused = 0
    for _ in range(5000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            read_records(bytes(bad[: rng.randint(0, len(bad))] if rng.random() < 0.2 else bad), LIMITS)
        except ProtocolViolation:
            refused += 1
    assert refused > 1000
