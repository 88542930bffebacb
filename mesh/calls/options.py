"""How one call is made: the options that all ways of calling share.

Owns: the record, and its form as keyword arguments. Leaves to others: their effect (client), checking them (checks).
"""

from __future__ import annotations

from typing import Final, TypedDict

import msgspec

from mesh.calls.checks import Duration
from mesh.calls.outbound import Source


class CallOptions(msgspec.Struct, frozen=True):
    """The options of a call or stream.

    Attributes:
        timeout: seconds, or text like "2s"; of a stream, for all of it. None takes the timeout that the method
            declares, or else the configured one. A call made by a handler ends no later than the call that the handler
            answers.
        key: calls with the same key prefer the same instance.
        instance: id of the only instance to call.
        meta: metadata sent with the call; strings to strings, 16 KiB at most.
        trace: W3C traceparent; None takes the trace of the work at hand.
        idempotent: overrides what the method declares.
        source: the encoded items of a client stream.
        window: of a stream: items that the handler may send ahead; 0 takes the usual number.
        avoid: id of an instance that is not called, and the number of the connection to it.
    """

    timeout: Duration | None = None
    key: str | None = None
    instance: str | None = None
    meta: dict[str, str] | None = None
    trace: str | None = None
    idempotent: bool | None = None
    source: Source | None = None
    window: int = 0
    avoid: tuple[str, int] | None = None


#: The options of most calls; nothing is made for them.
NO_OPTIONS: Final = CallOptions()


class CallKeywords(TypedDict, total=False):
    """The options that applications give as keyword arguments; see CallOptions."""

    timeout: Duration | None
    key: str | None
    instance: str | None
    meta: dict[str, str] | None


class RawKeywords(CallKeywords, total=False):
    """All options as keyword arguments, for code that forwards calls; see CallOptions."""

    trace: str | None
    idempotent: bool | None
    source: Source | None
    window: int
