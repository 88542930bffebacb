"""Whether the operations on one key can be explained as if each had happened at one instant (linearizability).

The algorithm is that of Wing and Gong with Lowe's memoization, run along the history ("just-in-time linearization"):
after each completion it knows every **configuration** that explains the history so far: the value, and which of the
open operations have already taken effect. Where no operation is open only the value is left, so the history falls
apart into windows by itself. Keys are independent of each other (linearizability is local), so each is checked alone.

An ambiguous operation stays open until the history's barrier and need not take effect. Of two configurations that
differ only in ambiguous operations, one that has used fewer of them can do all that the other can; the other is
dropped. That keeps their number linear in the ambiguous operations instead of exponential.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from .history import NEVER, Operation

#: Configurations of one key; more are not looked through, and the key counts as undecided, which is no success.
MOST_CONFIGURATIONS: Final = 50_000

ABSENT: Final = None


@dataclass(frozen=True)
class Step:
    """An operation as the model knows it.

    Attributes:
        verb: "read" `value` · "write" `value` · "swap" `expected` for `value` · "differs": it is not `expected`.
        required: whether it took effect for certain; else it may have.
    """

    verb: Literal["read", "write", "swap", "differs"]
    began_at: float
    ended_at: float
    id: str = ""
    value: Any = ABSENT
    expected: Any = ABSENT
    required: bool = True


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    ok: whether an explanation exists; None when the search was given up.
    failed: the operation that no configuration could explain; `values`: what the key can have held then.
    """

    ok: bool | None
    failed: Step | None = None
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Resolution:
    """What the history proves of its ambiguous operations.

    Attributes:
        happened, not_happened: ids of those that must have, and that cannot have taken effect.
        open: ids of those of which either explains the history.
    """

    happened: tuple[str, ...]
    not_happened: tuple[str, ...]
    open: tuple[str, ...]


def steps(operations: Iterable[Operation], barrier_at: float = NEVER) -> list[Step]:
    """The operations of one key, for `check`. Reads without an answer and refused writes say nothing."""
    found = []
    for each in operations:
        ended_at = each.ended_at if each.ended_at < NEVER else max(barrier_at, each.began_at)
        kept = Step("read", each.began_at, ended_at, each.id)
        match each.do, each.status:
            case "read", "ok":
                found.append(replace(kept, value=each.result[0]))
            case (("set" | "delete"), ("ok" | "info")):
                value = each.value if each.do == "set" else ABSENT
                found.append(replace(kept, verb="write", value=value, required=each.status == "ok"))
            case "swap", ("ok" | "info"):
                expected, value = each.value
                required = each.status == "ok"
                found.append(replace(kept, verb="swap", expected=expected, value=value, required=required))
            case "swap", "conflict":
                found.append(replace(kept, verb="differs", expected=each.value[0]))
    return found


def check(history: Sequence[Step]) -> Verdict:
    """Look for an explanation. The key is absent at the beginning."""
    happenings: list[tuple[float, int, int]] = []
    for number, step in enumerate(history):
        # What ends at the instant at which another begins overlaps it.
        happenings.append((step.began_at, 0, number))
        if step.ended_at < NEVER:
            happenings.append((step.ended_at, 1, number))
    happenings.sort()
    ambiguous = sum(1 << number for number, step in enumerate(history) if not step.required)
    # The configurations: (value, bits of the open operations that have taken effect).
    configurations: set[tuple[Any, int]] = {(ABSENT, 0)}
    open_: dict[int, Step] = {}
    for _, ends, number in happenings:
        step = history[number]
        if not ends:
            open_[number] = step
            continue
        bit = 1 << number
        reached = _closure(configurations, open_, number, ambiguous)
        if len(reached) > MOST_CONFIGURATIONS:
            return Verdict(None, step)
        del open_[number]
        # An ambiguous operation that can have no effect any more has had one, or none.
        after = {(value, done & ~bit) for value, done in reached if done & bit or not step.required}
        if not after:
            values = tuple(sorted({value for value, _ in configurations}, key=repr))
            return Verdict(False, step, values)
        configurations = after
    return Verdict(True)


def _closure(
    configurations: set[tuple[Any, int]], open_: dict[int, Step], wanted: int, ambiguous: int
) -> list[tuple[Any, int]]:
    """What the configurations can become before `wanted` ends, without those that another one makes needless.

    Where it has taken effect nothing else need be tried: what can be done now can be done later, too.
    """
    stop = 0 if ambiguous & 1 << wanted else 1 << wanted
    looks = [(1 << number, step) for number, step in open_.items() if step.verb in ("read", "differs")]
    writes = [(1 << number, step) for number, step in open_.items() if step.verb in ("write", "swap")]
    # (value, required operations that are done) -> the least sets of ambiguous ones that lead there.
    found: dict[tuple[Any, int], list[int]] = {}
    waiting = deque(sorted(configurations, key=_by_ambiguous(ambiguous)))
    count = 0
    while waiting and count <= MOST_CONFIGURATIONS:
        value, done = waiting.popleft()
        # Looking changes nothing, so what can be explained now is explained now.
        for mark, step in looks:
            if not done & mark and (step.value == value if step.verb == "read" else step.expected != value):
                done |= mark
        used = done & ambiguous
        least = found.setdefault((value, done & ~ambiguous), [])
        if any(other & used == other for other in least):
            continue
        least.append(used)
        count += 1
        if done & stop:
            continue
        for mark, step in writes:
            if not done & mark and (step.verb == "write" or step.expected == value):
                waiting.append((step.value, done | mark))
    return [(value, done | used) for (value, done), least in found.items() for used in least]


def _by_ambiguous(ambiguous: int) -> Callable[[tuple[Any, int]], int]:
    """Fewest ambiguous operations first, so that what is needless is seldom tried."""
    return lambda configuration: (configuration[1] & ambiguous).bit_count()


def resolve(history: Sequence[Step], barrier_at: float) -> Resolution:
    """Decide each ambiguous operation of a history that `check` accepts: does it also explain itself without the
    operation, and does it with the operation having taken effect before the barrier?"""
    happened, not_happened, open_ = [], [], []
    for number, step in enumerate(history):
        if step.required:
            continue
        without = check([*history[:number], *history[number + 1 :]])
        if without.ok is False:
            happened.append(step.id)
            continue
        certain = replace(step, required=True, ended_at=min(step.ended_at, barrier_at))
        with_it = check([*history[:number], certain, *history[number + 1 :]])
        (not_happened if with_it.ok is False else open_).append(step.id)
    return Resolution(tuple(happened), tuple(not_happened), tuple(open_))
