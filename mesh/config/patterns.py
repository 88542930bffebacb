"""Patterns of names in [access]: callers, services, principals, roles, locks and the like.

Owns: matching. Leaves to others: reading rules (access), patterns of topics (events.topics), decisions (policy.access).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def is_one(caller: str, names: Iterable[str]) -> bool:
    """Whether a name or pattern matches this caller, with or without its "@host"."""
    return matches_any(names, caller) or matches_any(names, caller.partition("@")[0])


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether a pattern matches this name: * is any text, ? any character, all else is literal."""
    # The sets of fnmatch, "[ab]", are not part of the syntax: a rule for the lock "job[1]" does not match "job1".
    return any(fnmatchcase(name, pattern.replace("[", "[[]")) for pattern in patterns)


def is_pattern(name: str) -> bool:
    """Whether the name may match others than itself."""
    return "*" in name or "?" in name
