"""The interface between the proxies and a node.

Owns: this interface. Leaves to others: both of its sides (rpc, node).
"""

from __future__ import annotations

from typing import Protocol

from mesh.calls.answers import decode_any
from mesh.calls.options import CallOptions
from mesh.calls.request import Call, Decode, Stream


class Calling(Protocol):
    """The part of a node that the proxies use."""

    def begin_call(self, target: str, body: bytes, options: CallOptions, decode: Decode = decode_any) -> Call: ...
    def begin_stream(self, target: str, body: bytes, options: CallOptions, decode: Decode = decode_any) -> Stream: ...
    def is_stream(self, target: str) -> bool: ...
    def service_names(self) -> list[str]: ...
    def method_names(self, service: str) -> list[str]: ...
