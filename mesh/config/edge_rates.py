"""The settings of rate limits, [gateway.limits], and the syntax of limits.

Owns: the table, and reading "100/m by principal" and "50 by tenant".
Leaves to others: counting (policy.rate_window), the limits that decorators declare (service.edge_options), enforcing
both (gateway.edge.rates).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, cast, get_args

import msgspec
from msgspec import Struct

from mesh.config.values import Kind, choice, list_of, whole

#: What a limit counts by.
By = Literal["address", "principal", "key", "tenant", "route"]
#: Where requests are counted: over all gateways of the mesh, or in each gateway on its own.
Scope = Literal["mesh", "local"]

_BY: Final = "|".join(get_args(By))
#: "100/m", "10/5s by tenant".
RATE: Final = re.compile(rf"([1-9]\d{{0,8}})/([1-9]\d{{0,5}})?(s|m|h|d)(?: by ({_BY}))?")
_CONCURRENCY: Final = re.compile(rf"([1-9]\d{{0,8}})(?: by ({_BY}))?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Limit(msgspec.Struct, frozen=True):
    """One limit as it was written.

    Attributes:
        text: as written, without a difference in spaces.
        most: requests; of a concurrency limit, requests that are answered at the same time.
        window_s: the window in which `most` requests are admitted; 0 for a concurrency limit.
        by: what it counts by.
    """

    text: str
    most: int
    window_s: int
    by: By


def read_rate(value: Any) -> Limit:
    """Read "100/m by principal".

    Raises:
        ValueError: it is not a rate.
    """
    match = RATE.fullmatch(_spaced(value))
    if match is None:
        raise ValueError
    most, times, unit, by = match.groups()
    return Limit(match[0], int(most), int(times or 1) * _SECONDS[unit], _by(by))


def read_concurrency(value: Any) -> Limit:
    """Read "50 by tenant".

    Raises:
        ValueError: it is not a concurrency limit.
    """
    match = _CONCURRENCY.fullmatch(_spaced(value))
    if match is None:
        raise ValueError
    return Limit(match[0], int(match[1]), 0, _by(match[2]))


def _by(word: str | None) -> By:
    # The patterns above allow these words only.
    return cast(By, word or "principal")


def _spaced(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return " ".join(value.split())


_RATES: Final = list_of(
    Kind("", lambda value: read_rate(value).text), 'rates like "100/m by principal" or "1000/s by address"'
)
_CONCURRENCIES: Final = list_of(
    Kind("", lambda value: read_concurrency(value).text), 'numbers of requests like "50 by tenant"'
)


class LimitSettings(Struct, frozen=True, kw_only=True):
    """[gateway.limits]: how many requests callers may send. See docs/rate-limits.md."""

    rate: Annotated[list[str], _RATES, 'rate limits of all requests together, such as "1000/s by address"'] = []
    concurrency: Annotated[
        list[str], _CONCURRENCIES, 'requests that one gateway answers at the same time, such as "50 by tenant"'
    ] = []
    scope: Annotated[
        Scope, choice("mesh", "local"), "mesh counts over all gateways, local counts in each gateway on its own"
    ] = "mesh"
    keys: Annotated[int, whole(1024), "callers that one gateway counts at the same time, for all limits together"] = (
        65_536
    )
