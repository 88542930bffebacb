"""[policies."orders.*"]: what callers do about a service that is slow, fails, or is overloaded.

Owns: the keys, and which table applies to a method.
Leaves to others: the policies themselves (mesh.resilience), the same words as options of decorators
(service.policy_options).

Each table names a method, or a pattern of methods: * is any text, ? any character. A key that several tables set has
the value of the most specific one; a key that none sets has the value that the method declares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct, field

from mesh.config.patterns import is_pattern, matches_any
from mesh.config.values import DURATION, FLAG, SIZE, TEXTS, Kind, number, read_duration, whole

#: The name of a method, or a pattern of names.
TARGET: Final = re.compile(r"[A-Za-z0-9_*?-]+(?:\.[A-Za-z0-9_*?-]+)*")
_PERCENTILE: Final = re.compile(r"p(\d{2}(?:\.\d+)?)")


def _read_hedge(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if _PERCENTILE.fullmatch(text) is None and read_duration(value) <= 0:
        raise ValueError
    return text


def percentile_of(hedge: str) -> float | None:
    """0.95 of "p95"; None when the text is a duration."""
    found = _PERCENTILE.fullmatch(hedge)
    return None if found is None else float(found[1]) / 100


def _read_value(value: Any) -> bytes:
    """Any value of the file, encoded as JSON. In text form it is JSON already."""
    if isinstance(value, bytes):
        return value
    try:
        return msgspec.json.encode(value)
    except TypeError:
        raise ValueError from None


HEDGE: Final = Kind('a percentile like "p95", or a duration like "50ms"', _read_hedge)
VALUE: Final = Kind("a value that JSON can hold", _read_value, msgspec.json.decode)
SHARE: Final = number(0.01, 1)


class PolicySettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What callers do about one method, or about several. None: not set."""

    timeout_s: Annotated[float | None, DURATION, "the deadline of a call without one, over all its attempts"] = field(
        default=None, name="timeout"
    )
    attempt_timeout_s: Annotated[float | None, DURATION, "how long one attempt may take"] = field(
        default=None, name="attempt_timeout"
    )
    retries: Annotated[int | None, whole(0, 10), "further attempts of a call that failed"] = None
    retry_on: Annotated[
        list[str] | None, TEXTS, "codes of errors to retry; when absent, all that may pass by themselves"
    ] = None
    backoff_s: Annotated[float | None, DURATION, "the wait before the first retry; it doubles with each"] = field(
        default=None, name="backoff"
    )
    backoff_most_s: Annotated[float | None, DURATION, "the longest wait before a retry"] = field(
        default=None, name="backoff_most"
    )
    hedge: Annotated[
        str | None, HEDGE, "send an idempotent call a second time when its answer takes longer than this"
    ] = None
    breaker: Annotated[float | None, SHARE, "the share of failed calls at which the breaker opens"] = None
    breaker_slow: Annotated[float | None, SHARE, "the share of slow calls at which the breaker opens"] = None
    breaker_slow_after_s: Annotated[float | None, DURATION, "when a call counts as slow"] = field(
        default=None, name="breaker_slow_after"
    )
    breaker_window_s: Annotated[float | None, DURATION, "how long a call counts"] = field(
        default=None, name="breaker_window"
    )
    breaker_minimum: Annotated[int | None, whole(1), "calls in the window below which the breaker stays closed"] = None
    breaker_open_s: Annotated[float | None, DURATION, "how long the breaker stays open before it tries again"] = field(
        default=None, name="breaker_open"
    )
    breaker_probes: Annotated[int | None, whole(1, 1000), "successful calls that close it again"] = None
    bulkhead: Annotated[int | None, whole(1), "concurrent calls from one process"] = None
    bulkhead_queue: Annotated[int | None, whole(0), "calls that may wait for one of these places"] = None
    coalesce: Annotated[bool | None, FLAG, "identical calls at the same time become one"] = None
    cache_s: Annotated[float | None, DURATION, "how long an answer is kept and given again"] = field(
        default=None, name="cache_for"
    )
    cache_stale_s: Annotated[
        float | None, DURATION, "how long after that it is still given, while one call asks for a new one"
    ] = field(default=None, name="cache_stale")
    cache_bytes: Annotated[int | None, SIZE, "memory for kept answers, in each process"] = field(
        default=None, name="cache_size"
    )
    fallback: Annotated[bytes | None, VALUE, "the answer when the call fails"] = None


NO_POLICY: Final = PolicySettings()
_FIELDS: Final = [each.name for each in msgspec.structs.fields(PolicySettings)]


def matching(tables: Mapping[str, PolicySettings], target: str) -> list[PolicySettings]:
    """The tables for a method, the most specific first: exact names, then patterns with more literal characters."""
    found = [pattern for pattern in tables if matches_any((pattern,), target)]
    found.sort(key=lambda pattern: (is_pattern(pattern), -len(pattern.replace("*", "").replace("?", ""))))
    return [tables[pattern] for pattern in found]


def merged(policies: list[PolicySettings]) -> PolicySettings:
    """One policy of several; the first that sets a key decides."""
    if len(policies) == 1:
        return policies[0]
    values = {}
    for name in _FIELDS:
        for policy in policies:
            value = getattr(policy, name)
            if value is not None:
                values[name] = value
                break
    return PolicySettings(**values)
