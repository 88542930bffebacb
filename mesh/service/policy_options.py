"""What callers of a method do when it is slow or fails: the options of `@rpc` with the words of [policies].

Owns: the options, rejected at once when invalid.
Leaves to others: the record that carries them (discovery.record), the policies (mesh.resilience), the same words in
mesh.toml (config.policies).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from mesh.calls.declared import BadDeclaration
from mesh.config.entries import POLICY
from mesh.config.policies import PolicySettings
from mesh.config.values import DURATION, SIZE, read_seconds
from mesh.service.edge_options import OPTIONS as EDGE_OPTIONS
from mesh.suggest import suggest

Seconds = float | str


class PolicyOptions(TypedDict, total=False):
    """The options of `@rpc` for callers; mesh.toml of a caller, [policies], has the last word. See docs/resilience.md.

    Attributes:
        attempt_timeout: how long one attempt may take; seconds, or text like "300ms".
        retries: further attempts of a call that failed.
        retry_on: codes of errors to retry; absent: all that may pass by themselves.
        backoff, backoff_most: the wait before the first retry, and the longest one.
        hedge: send an idempotent call a second time when its answer takes longer: "p95", or "50ms".
        breaker, breaker_slow: the shares of failed and of slow calls at which the breaker opens, such as 0.5.
        breaker_slow_after: when a call counts as slow.
        breaker_window, breaker_minimum: how long calls count, and how many must count.
        breaker_open, breaker_probes: how long it stays open, and how many successful calls close it.
        bulkhead, bulkhead_queue: concurrent calls from one process, and calls that may wait for a place.
        coalesce: identical calls at the same time become one.
        cache_for, cache_stale, cache_size: how long an answer is kept, how long it is given while a call asks for a new
            one, and the memory for answers. (`cache` is the Cache-Control header of gateways.)
        fallback: the answer when the call fails.
    """

    attempt_timeout: Seconds
    retries: int
    retry_on: Sequence[str]
    backoff: Seconds
    backoff_most: Seconds
    hedge: str
    breaker: float
    breaker_slow: float
    breaker_slow_after: Seconds
    breaker_window: Seconds
    breaker_minimum: int
    breaker_open: Seconds
    breaker_probes: int
    bulkhead: int
    bulkhead_queue: int
    coalesce: bool
    cache_for: Seconds
    cache_stale: Seconds
    cache_size: str | int
    fallback: Any


#: The names of all options.
OPTIONS: Final = frozenset(PolicyOptions.__annotations__)


def read_policy(what: str, options: Mapping[str, Any]) -> PolicySettings | None:
    """The policy of a decorator's options; None when none is given.

    Args:
        what: the decorator, for errors.

    Raises:
        BadDeclaration: an option is unknown or has an invalid value.
    """
    found = {}
    for name, value in options.items():
        entry = POLICY.get(name) if name in OPTIONS else None
        if entry is None:
            known = [*OPTIONS, *EDGE_OPTIONS]
            remedy = suggest(name, known, f"the options are {', '.join(sorted(known))}")
            raise BadDeclaration(f'{what}: there is no option "{name}"; {remedy}')
        try:
            found[entry.attribute] = _read(entry.kind, value)
        except (ValueError, OverflowError) as exc:
            more = f": {exc}" if str(exc).startswith("it ") else ""
            raise BadDeclaration(f"{what}: {name}={value!r:.100} is not {entry.kind.wanted}{more}") from None
    return PolicySettings(**found) if found else None


def _read(kind: Any, value: Any) -> Any:
    if kind is DURATION:
        seconds = read_seconds(value)
        if seconds <= 0:
            raise ValueError
        return seconds
    if kind is SIZE and isinstance(value, int) and not isinstance(value, bool):
        return kind.read(f"{value}B")
    return kind.read(value)
