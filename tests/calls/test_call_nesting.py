"""Bodies, metadata and envelopes that are nested a thousand deep: an error with a code, and the worker goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

import mesh
from mesh.errors import ProtocolViolation
from mesh.protocol.codec import Reader
from mesh.testing import Mesh

DEEP = (500, 1_000, 5_000, 100_000)


class Echo(mesh.Service):
    @mesh.rpc
    async def untyped(self, value: Any) -> int:
        return 1

    @mesh.rpc
    async def typed(self, value: dict[str, Any]) -> int:
        return 1

    @mesh.rpc(offload="thread")
    def in_thread(self, value: Any) -> int:
        return 1


@pytest.mark.parametrize("depth", DEEP)
@pytest.mark.parametrize("method", ["untyped", "typed", "in_thread"])
@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1k"], ids=["arrays", "maps"])
async def test_a_nested_body(depth: int, method: str, nest: bytes, capsys: pytest.CaptureFixture[str]):
    """bad_arguments or, where the depth is legal, an answer; never an exception of the interpreter's."""
    async with Mesh(Echo) as m:
        body = b"\x81\xa5value" + nest * depth + b"\xc0"
        call = m.node.client.call(f"echo.{method}", body)
        await asyncio.wait([call])
        error = call.exception()
        assert error is None or error.code == "bad_arguments"
        assert await m.call("echo.untyped", 1) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("depth", DEEP)
@pytest.mark.parametrize(
    "head",
    [
        b"",  # the envelope itself
        b"\x98\x10\x01\xa3a.b\x64\xc4\x00\x00\xc0\x81\xa1k",  # a value of a call's metadata
        b"\x93\x15\x01\x81\xa7details",  # details of an error
    ],
    ids=["envelope", "metadata", "error"],
)
def test_a_nested_message_is_a_violation_or_read(depth: int, head: bytes):
    """And the reader can be used again."""
    reader = Reader()
    with suppress(ProtocolViolation):
        reader.read([head + b"\x91" * depth + b"\xc0"])
    assert reader.read([b"\x92\x04\x01"]) == [[4, 1]]
