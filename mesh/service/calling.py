"""The interface between the proxies and a node, and the options that may be fixed for many calls.

Owns: this interface. Leaves to others: both of its sides (rpc, node).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from mesh.calls.answers import decode_any
from mesh.calls.checks import Duration
from mesh.calls.request import Call, Decode, Stream


class Options(msgspec.Struct, frozen=True):
    """How calls are made; see Client.call for each."""

    timeout: Duration | None = None
    key: str | None = None
    instance: str | None = None
    meta: dict[str, str] | None = None


class Calling(Protocol):
    """The part of a node that the proxies use."""

    def begin_call(self, target: str, body: bytes, options: Options, decode: Decode = decode_any) -> Call: ...
    def begin_stream(self, target: str, body: bytes, options: Options, decode: Decode = decode_any) -> Stream: ...
    def is_stream(self, target: str) -> bool: ...
    def service_names(self) -> list[str]: ...
    def method_names(self, service: str) -> list[str]: ...
