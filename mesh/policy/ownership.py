"""Which process of several owns a name: rendezvous hashing.

Owns: the owner of a name, and dividing a number among all processes. Pure, and the same in every process that knows the
same members. When a member comes or goes, only the names that it gets or had change their owner.
Leaves to others: who the members are.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

#: Names of which the owner is remembered.
MOST_NAMES: Final = 8192

_MASK: Final = 2**64 - 1
#: An odd number with well distributed bits: 2**64 divided by the golden ratio.
_MIX: Final = 0x9E3779B97F4A7C15


class Owners:
    """The owners of names.

    Args:
        me: this process: the owner of everything while there are no members.
    """

    __slots__ = ("_known", "_me", "_seeds", "members")

    def __init__(self, me: str) -> None:
        self._me = me
        self._known: dict[str, str] = {}
        self._seeds: tuple[tuple[int, str], ...] = ()
        self.members: tuple[str, ...] = ()

    def change(self, members: Iterable[str]) -> None:
        """Set the members."""
        self.members = tuple(sorted(set(members)))
        self._seeds = tuple((_digest(member), member) for member in self.members)
        self._known.clear()

    def of(self, name: str) -> str:
        """The owner of a name."""
        owner = self._known.get(name)
        if owner is None:
            if len(self._known) >= MOST_NAMES:
                self._known.clear()
            owner = self._known[name] = self._find(name)
        return owner

    def _find(self, name: str) -> str:
        if not self._seeds:
            return self._me
        hashed = _digest(name)
        return max(self._seeds, key=lambda seed: (_mixed(hashed ^ seed[0]), seed[1]))[1]

    def share(self, name: str, whole: int) -> int:
        """The part of `whole` that this process has for a name; those of all members add up to `whole`."""
        members = self.members if self._me in self.members else (*self.members, self._me)
        part, rest = divmod(whole, len(members))
        # The rest goes to different members for different names.
        rank = (members.index(self._me) + _digest(name)) % len(members)
        return part + (rank < rest)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _mixed(value: int) -> int:
    value = (value ^ (value >> 32)) * _MIX & _MASK
    value = (value ^ (value >> 29)) * _MIX & _MASK
    return value ^ (value >> 32)
