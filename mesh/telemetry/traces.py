"""The trace that the current work belongs to.

Owns: reading and making W3C `traceparent` values, and the current one (`current`).
Leaves to others: sending it (the wire's messages, HTTP headers), setting it for a handler (calls), recording spans.

A traceparent is `00-<trace id, 32 hex>-<span id, 16 hex>-<flags, 2 hex>`. Strings are checked once, by `accept`, where
they enter the process; all other code trusts them.

Source: W3C Trace Context, sections 3.2 and 4.3.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, NamedTuple

#: The traceparent of the current work; "" outside of a trace.
current: Final[ContextVar[str]] = ContextVar("mesh_traceparent", default="")

#: `random` and not `secrets`: a span id must be unlikely to repeat, not hard to guess, and one is drawn per call.
#: Python seeds it from the operating system, and anew in each forked child.
Bits = Callable[[int], int]

_SHAPE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
#: Matches nearly all traceparents, which need no change; takes a third of the time of a full parse.
_COMMON = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]", re.ASCII)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
#: The defined flags: "sampled" and "the trace id is random"; others are not passed on.
_KNOWN_FLAGS = 0x03


class Trace(NamedTuple):
    """The parts of a traceparent."""

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller may have recorded it."""
        return bool(self.flags & 1)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse(header: str) -> Trace | None:
    """The parts of a traceparent, or None when it is not a valid one.

    A version above 00 is read like version 00; its additions are dropped.
    """
    found = _SHAPE.fullmatch(header)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (more and version == "00"):
        return None
    return Trace(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)


def accept(header: str | None) -> str:
    """A received header, made safe to pass on: a valid traceparent of version 00, or "" (then a new trace begins)."""
    if not header:
        return ""
    if _COMMON.fullmatch(header):
        return header
    trace = parse(header.strip())
    return str(trace) if trace is not None else ""


def root(bits: Bits = random.getrandbits) -> str:
    """A new trace, sampled, with its first span."""
    return "00-" + (bits(128) or 1).to_bytes(16, "big").hex() + "-" + _span(bits) + "-01"


def child(parent: str | None = None, bits: Bits = random.getrandbits) -> str:
    """A new span in the trace of `parent`; without one, a new trace.

    Args:
        parent: a traceparent from `accept`, `root` or `child`; None uses `current`.
        bits: returns the given number of random bits.
    """
    if parent is None:
        parent = current.get()
    if not parent:
        return root(bits)
    return parent[:36] + _span(bits) + parent[52:]


def in_force() -> str:
    """The traceparent of the current work, created now when its caller sent none; "" outside of a trace."""
    return current.get() or _begin()


def begin_with(begin: Callable[[], str]) -> None:
    """Use `begin` to create the trace of the call being answered; set by calls.context, which knows the call."""
    global _begin
    _begin = begin


def _nothing_is_answered() -> str:
    return ""


_begin: Callable[[], str] = _nothing_is_answered


def _span(bits: Bits) -> str:
    # Not a format string, which takes 50 % longer: a span id is made for every call.
    return (bits(64) or 1).to_bytes(8, "big").hex()
