"""Which calls have the same answer: for `coalesce` and `cache`.

Owns: the key of a call, and making a call for several callers.

Answers of services may depend on who asks: the key holds the values of the context that travel with a call (principal,
tenant, roles, scopes), and its metadata. Only the baggage and the trace are left out.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from mesh.calls.answers import Answer, as_answer
from mesh.calls.interceptors import OutgoingCall
from mesh.calls.propagation import BAGGAGE, TRACESTATE


def key_of(call: OutgoingCall) -> Hashable:
    """Equal for calls with the same answer."""
    carried = call.context.carried if call.context is not None else None
    who = frozenset((name, value) for name, value in (carried or {}).items() if name not in (BAGGAGE, TRACESTATE))
    meta = call.meta
    return bytes(call.body), call.encoding, call.instance, who, frozenset(meta.items()) if meta else None


def undecoded(call: OutgoingCall) -> OutgoingCall:
    """The call with an answer that can be decoded for each caller: an answer may be changed by who gets it."""
    copy = call.again()
    copy.decode = as_answer
    return copy


def decoded(call: OutgoingCall, answer: Answer) -> Any:
    """The answer as this caller wants it."""
    return answer if call.decode is as_answer else call.decode(answer.body, answer.encoding)
