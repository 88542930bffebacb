"""Lines that are rendered without the general machinery: they say the same."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.gateway.request_log import _fields, _members
from mesh.telemetry import logs, traces
from mesh.telemetry.batched import BatchedLines
from tests.patience import until

VALUES = ("GET", "/a?b=c", 200, 0.00081, "192.0.2.1", 3, 15, "shop.hello")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def stream():
    text = io.StringIO()
    yield text
    traces.current.set("")
    logs.reset()


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@given(path=st.text(), client=st.text(), seconds=st.floats(0, 1e6), called=st.sampled_from(["", "shop.hello", 'a"b']))
def test_the_members_are_the_fields(path, client, seconds, called):
    values = ("GET", path, 200, seconds, client, 3, 15, called)
    members = json.loads("{" + _members(*values) + "}")
    fields = _fields(*values)
    assert members.pop("duration_ms") == pytest.approx(fields.pop("duration_ms"), abs=0.011)
    assert members == fields


def test_half_a_character_does_not_lose_the_line():
    # Bytes of a path that are not UTF-8 arrive as lone surrogates.
    assert json.loads(logs.json_text("/a\udcff")) == "/a\\udcff"


@pytest.mark.parametrize("trace", ["", TRACE])
async def test_a_batched_line_has_what_every_line_has(stream: io.StringIO, trace: str):
    logs.configure(format="json", stream=stream, worker="w-1", service='sh"op')
    traces.current.set(trace)
    batched = BatchedLines("mesh.test", "request.answered", _members, _fields)
    batched.add(*VALUES)
    logs.get_logger("mesh.test").info("request.answered", **_fields(*VALUES))
    batched.flush()
    plain, quick = lines_of(stream)
    assert list(quick) == list(plain)
    assert {**quick, "ts": ""} == {**plain, "ts": ""}


async def test_lines_are_written_soon_and_together(stream: io.StringIO):
    logs.configure(format="json", stream=stream)
    batched = BatchedLines("mesh.test", "request.answered", _members, _fields)
    for _ in range(3):
        batched.add(*VALUES)
    assert stream.getvalue() == ""
    await until(lambda: stream.getvalue() != "")
    assert len(lines_of(stream)) == 3


async def test_batched_lines_follow_what_is_configured_later(stream: io.StringIO):
    batched = BatchedLines("mesh.test", "request.answered", _members, _fields)
    logs.configure(format="json", stream=stream, level="warning")
    batched.add(*VALUES)
    logs.configure(format="console", stream=stream)
    batched.add(*VALUES)
    assert stream.getvalue().count("request.answered") == 1
    logs.configure(format="json", stream=stream, worker="w-2")
    batched.add(*VALUES)
    batched.flush()
    assert json.loads(stream.getvalue().splitlines()[-1])["worker"] == "w-2"
