"""Locality: instances on the caller's own host are preferred while they are healthy.

Owns: when an instance loses this preference, and which instances are preferred.
Leaves to others: the host of an instance (discovery), which links are open (pool), choosing among the preferred ones
(balance), counting calls in flight and timeouts (the caller).

Of the callable instances, those on the caller's host are preferred. One of them loses the preference

==========================  ============================================================  ============================
when                        how the caller detects it                                     until
==========================  ============================================================  ============================
it drains or is gone        its link: a goodbye, the end of the connection                it can be called again
it has no place left        the caller's own calls in flight there have reached the       one of them is answered
                            places of the instance, or the credit of the link
it is busy with the calls   its load in the registry is `BUSY` or more                    the load is below `AT_EASE`
of other callers
it does not answer          `MISSES` consecutive calls were not answered in time          it answers one
==========================  ============================================================  ============================

When no instance is preferred, all instances of the service are treated alike, including those on the caller's host: so
work that exceeds one host is spread over all, and an instance that did not answer is tried again from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

#: The load from which an instance is busy. Not higher: hubs report a load only when it has changed by more than 0.1
#: (discovery.registry.LOAD_STEP), so a rise from 0.9 to 1.0 is not reported.
BUSY: Final = 0.9
#: The load below which a busy instance stops being busy. Far below BUSY to prevent oscillation: calls that go elsewhere
#: free its places at once.
AT_EASE: Final = 0.6
#: One late answer may be a slow request, and two a pause; three in a row without an answer between them are a fault.
MISSES: Final = 3
#: The places of an instance that does not declare them.
ANY: Final = 2**31 - 1


def busy(load: float, was: bool) -> bool:
    """Whether an instance is busy.

    Args:
        load: its load in the registry: admitted calls as a share of its places, 0.0 to 1.0.
        was: whether it was busy before.
    """
    return load >= (AT_EASE if was else BUSY)


def prefer(ready: Sequence[T], is_near: Callable[[T], bool]) -> Sequence[T]:
    """The preferred instances of `ready`; `ready` itself, the same object, when all or none are preferred.

    Args:
        is_near: whether an instance is on the caller's host, and healthy.
    """
    near = [each for each in ready if is_near(each)]
    return near if 0 < len(near) < len(ready) else ready


def has_place(in_flight: int, places: int) -> bool:
    """Whether an instance with `in_flight` calls of this caller can begin one more at once."""
    return in_flight < places
