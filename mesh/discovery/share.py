"""The share of calls that a new release gets, as its instances register it.

Owns: the names of these entries in `Instance.meta`, reading and writing them, and which declarations apply meanwhile.
Leaves to others: setting the share and its lease (worker.canary), choosing by it (calls.cohorts).

An instance with a share is a canary: it runs a new release that is on trial. One without belongs to the regular
release. The share travels in the instance's own record, so every caller learns a change from its hub, like any other
change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mesh.discovery.record import Instance

SHARE: Final = "mesh.share"
CANARY: Final = "mesh.canary"
MIRROR: Final = "mesh.mirror"
MIRRORED: Final = "mesh.mirrored"
#: The deployed release of an instance: the name of its directory.
RELEASE: Final = "mesh.release"

#: The longest list of methods in a record.
MOST_METHODS: Final = 100


class Share(NamedTuple):
    """The share of a canary.

    Attributes:
        share: which part of the calls goes to the canaries, 0.0 to 1.0. All of one roll have the same.
        canary: identifies the roll, so that another one begins with other users; "" before it has begun.
        mirror: which part of the calls that the regular release answers is sent to a canary too, 0.0 to 1.0.
        methods: which methods may be mirrored, besides those that only read.
    """

    share: float = 0.0
    canary: str = ""
    mirror: float = 0.0
    methods: frozenset[str] = frozenset()


NONE: Final = Share()


def share_of(meta: Mapping[str, str]) -> Share | None:
    """The share in a record; None for an instance of the regular release. Unreadable values count as 0."""
    written = meta.get(SHARE)
    if written is None:
        return None
    methods = meta.get(MIRRORED, "")
    return Share(
        _fraction(written),
        meta.get(CANARY, ""),
        _fraction(meta.get(MIRROR, "0")),
        frozenset(methods.split(",")[:MOST_METHODS]) if methods else frozenset(),
    )


def share_meta(share: Share) -> dict[str, str]:
    """The entries of a record for a share."""
    meta = {SHARE: f"{share.share:.6g}"}
    if share.canary:
        meta[CANARY] = share.canary
    if share.mirror:
        meta[MIRROR] = f"{share.mirror:.6g}"
    if share.methods:
        meta[MIRRORED] = ",".join(sorted(share.methods))
    return meta


def declaring(instances: Sequence[Instance]) -> Sequence[Instance]:
    """The instances that declare what applies to a service: those of the regular release, or all when there are none.

    A canary gets few of the calls; a changed parameter or a new route in its record must not apply to all of them.
    """
    if not any(SHARE in each.meta for each in instances):
        return instances
    return [each for each in instances if SHARE not in each.meta] or instances


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0  # NaN is neither
