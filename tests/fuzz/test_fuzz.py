"""Every target of tests.fuzz, by Hypothesis: a few hundred inputs each, shaped so that they come far."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mesh.engines.contract import Unit
from mesh.events.log import NewEvent
from mesh.schedules.contract import Advance
from mesh.state.contract import Write
from mesh.tasks.contract import NewTask, Queue, Settlement

from . import targets

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ANY = st.binary(max_size=200)


def words(alphabet: str, most: int = 40) -> st.SearchStrategy[bytes]:
    return st.text(alphabet, max_size=most).map(str.encode)


def joined(*pieces: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*pieces).map(b"\0".join)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "side", "address", "street", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
BODY = ANY | JSON.map(msgspec.json.encode) | JSON.map(msgspec.msgpack.encode)
QUERY = words("idnameratioflgs=&+%0123456789.eE-truefalse", 60) | words("id=1&ratio=e999&flags=true&side=left&%ff%00")


@FEW
@given(ANY | words("\x91\x92\x93\x94\xa0\xc0\xc4\xdc\xdd\x00\x01\x02"))
def test_codec(data: bytes) -> None:
    targets.codec(data)


@FEW
@given(joined(words("0123456789-+ea%/\u0664"), QUERY, BODY))
@example(b"1\0\0" + b"[" * 1000)
@example(b"1\0\0" + b'{"address":' * 600)
@example(b"1\0\0" + b"\x91" * 5000)
@example(b"1\0\0" + b"\xdd\xff\xff\xff\xff")
@example(b"1\0ratio=1e400\0")
@example(b"1\0id=9999999999999999999999999999999999999999\0{}")
def test_http_binding(data: bytes) -> None:
    targets.http_binding(data)


@FEW
@given(ANY | words("0123456789.eE+-sminfa ") | words("text/event-stream,;q=01.*application/json \"'\\"))
def test_http_headers(data: bytes) -> None:
    targets.http_headers(data)


TOML_KEYS = st.sampled_from(
    [
        "mesh",
        "calls",
        "access",
        "services",
        "gateway",
        "store",
        "allow",
        "serve",
        "caller",
        "service",
        "methods",
        "timeout",
        "hubs",
        "class",
        "port",
        "keys",
        "x y",
        "config",
    ]
)
TOML_VALUES = st.recursive(
    st.sampled_from(
        [
            '"10s"',
            "1",
            "-1",
            "1.5",
            "nan",
            "inf",
            "true",
            '"x"',
            '""',
            '"*"',
            '"[a"',
            "1979-05-27",
            '"\\u0000"',
            "9223372036854775808",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]")
        | st.tuples(TOML_KEYS, inner).map(lambda pair: f'{{ "{pair[0]}" = {pair[1]} }}')
    ),
    max_leaves=4,
)
TOML_LINES = (
    st.tuples(TOML_KEYS, TOML_VALUES).map(lambda pair: f'"{pair[0]}" = {pair[1]}')
    | TOML_KEYS.map(lambda key: f'["{key}"]')
    | st.tuples(TOML_KEYS, TOML_KEYS).map(lambda pair: f'["{pair[0]}"."{pair[1]}"]')
    | st.tuples(TOML_KEYS, TOML_KEYS).map(lambda pair: f'[["{pair[0]}"."{pair[1]}"]]')
)


@FEW
@given(ANY | st.lists(TOML_LINES, max_size=8).map(lambda lines: "\n".join(lines).encode()))
@example(b'\xef\xbb\xbf[mesh]\nname = "x"\n')
@example(b'[[access.allow]]\ncaller = "[!"\nservice = "*"\n')
@example(b"x = " + b"[" * 2000)
@example(b"x = " + b"9" * 5000)
def test_settings(data: bytes) -> None:
    targets.settings(data)


@FEW
@given(ANY | words("0123456789.smhd dKMGiB") | words("A_B=1'\"\\ \n#$ export"))
@example(b"9" * 400 + b"d")
@example(b"9" * 400 + b"GiB")
@example("\u0661s".encode())
def test_values(data: bytes) -> None:
    targets.values(data)


FIELD = st.sampled_from(
    [
        "*",
        "0",
        "59",
        "60",
        "1-5",
        "5-1",
        "*/10",
        "*/0",
        "1,15",
        "L",
        "LW",
        "5L",
        "FRI#2",
        "FRI#6",
        "JAN",
        "MON-FRI",
        "31",
        "2",
        "7",
        "-1",
        "",
        "*/99999999999",
        "1/2",
        "1-2-3",
        "L-1",
    ]
)
ZONE = st.sampled_from(
    ["UTC", "Asia/Tokyo", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "../etc", "Europe", "", "utc"]
)


@FEW
@given(
    ANY
    | st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD, ZONE).map(lambda fields: " ".join(fields).encode())
    | words("every 0123456789.smhd").map(lambda rest: b"every " + rest)
    | st.tuples(st.sampled_from(["@daily", "@yearly", "@never"]), ZONE).map(lambda pair: " ".join(pair).encode())
)
@example(b"every inf")
@example(b"every 1.0005s")
@example(b"every 31622400.0004s")
@example(b"0 2 29 2 MON UTC")
def test_schedule(data: bytes) -> None:
    targets.schedule(data)


@FEW
@given(joined(words("ab.*#", 14), words("ab.", 10)) | joined(ANY, ANY))
def test_topics(data: bytes) -> None:
    targets.topics(data)


TEXT = st.sampled_from(["", "a", "x.y", "fuzz.task", "\0", "\U0001f600", "a" * 5000]) | st.text(max_size=6)
NUMBER = st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, targets._NOW, 2.0**63])
INTEGER = st.sampled_from([0, 1, -1, 5, 9, 10, 2**31, 2**62, 2**63 - 1, -(2**63)])
BYTES = st.sampled_from([b"", b"\x90", b"\xc0", b"\x01", b"\xff", b"x" * 3000])
META = st.dictionaries(TEXT, TEXT, max_size=2)


@pytest.fixture(scope="module")
def store() -> Iterator[targets.Store]:
    made = targets.Store()
    yield made
    made.close()


UNITS = st.lists(
    st.builds(
        Unit,
        id=TEXT,
        tasks=st.lists(
            st.builds(
                NewTask,
                id=TEXT,
                queue=TEXT,
                body=BYTES,
                key=TEXT,
                order=TEXT,
                priority=INTEGER,
                due_at=NUMBER,
                keep_s=NUMBER,
                waits=INTEGER,
                feeds=TEXT,
                place=INTEGER,
                gathers=st.booleans(),
                trace=TEXT,
                meta=META,
                timeout_s=NUMBER,
            ),
            max_size=2,
        ),
        events=st.lists(
            st.builds(
                NewEvent,
                id=TEXT,
                topic=TEXT,
                body=BYTES,
                encoding=INTEGER,
                key=TEXT,
                at=NUMBER,
                publisher=TEXT,
                trace=TEXT,
                meta=META,
            ),
            max_size=2,
        ),
        writes=st.lists(
            st.builds(
                Write,
                namespace=TEXT,
                key=TEXT,
                verb=st.sampled_from(["set", "delete", "add"]),
                new_etag=TEXT,
                value=BYTES,
                by=INTEGER,
                etag=st.none() | TEXT,
                ttl_s=NUMBER,
            ),
            max_size=2,
        ),
        settle=st.lists(
            st.builds(
                Settlement,
                id=TEXT,
                attempt=INTEGER,
                verdict=st.sampled_from(["done", "retry", "dead", "release", "cancelled"]),
                due_at=NUMBER,
                error=TEXT,
            ),
            max_size=1,
        ),
        advance=st.lists(st.builds(Advance, name=TEXT, from_at=NUMBER, to_at=NUMBER), max_size=1),
    ),
    max_size=3,
)
QUEUES = st.builds(
    Queue,
    name=TEXT,
    credit=INTEGER,
    rate_per_s=NUMBER,
    burst=INTEGER,
    concurrency=INTEGER,
    most_lost=INTEGER,
    patterns=st.lists(TEXT | st.just("#"), max_size=2).map(tuple),
    start=st.sampled_from(["new", "all"]),
)


@FEW
@given(units=UNITS)
def test_store_units(store: targets.Store, units: list[Unit]) -> None:
    store.apply(units)


@FEW
@given(queue=QUEUES)
def test_store_queues(store: targets.Store, queue: Queue) -> None:
    store.declare(queue)
