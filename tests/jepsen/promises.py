"""What a history must show of tasks, order, locks and the ledger. Each function returns the violations it finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .history import NEVER, History, Operation

Stored = Any


class Violation(NamedTuple):
    """Attributes:
    kind: "lost task", "two holders", …; what the table counts.
    text: which operations show it.
    """

    kind: str
    text: str


def tasks(operations: Iterable[Operation], done: Sequence[Sequence[str]], dead: Sequence[str]) -> list[Violation]:
    """Every confirmed task was done, each key once, and nothing that was refused.

    Args:
        operations: those of `defer`; `key` is the task's key, a confirmed one's `result` the id of its job. A key may
            be deferred several times.
        done: (key, job id) of every job that is done; dead: keys of dead letters.
    """
    found = [Violation("dead task", f"task {key} is a dead letter") for key in dead]
    jobs: dict[str, list[str]] = defaultdict(list)
    for key, job in done:
        jobs[key].append(job)
    found += [
        Violation("double task", f"task {key} was done {len(ids)} times: {ids}")
        for key, ids in jobs.items()
        if len(ids) > 1
    ]
    for key, tries in _by_key(operations).items():
        confirmed = {each.result for each in tries if each.status == "ok"}
        if len(confirmed) > 1:
            found.append(
                Violation("double task", f"task {key} was confirmed as {len(confirmed)} jobs: {sorted(confirmed)}")
            )
        if confirmed and key not in jobs and key not in dead:
            found.append(Violation("lost task", f"task {key} was confirmed as {confirmed} and not done"))
        if confirmed and key in jobs and not confirmed & set(jobs[key]):
            found.append(Violation("lost task", f"task {key} was confirmed as {confirmed}, but {jobs[key]} was done"))
        if key in jobs and all(each.status == "fail" for each in tries):
            found.append(Violation("refused task", f"task {key} was refused each time and done"))
    return found


def order(operations: Iterable[Operation], heard: Sequence[Any]) -> list[Violation]:
    """What one key was handled in: each confirmed thing once, after everything that was confirmed before it began.

    Args:
        operations: those that put `value` into the key.
        heard: the values in the order in which their handlers took effect.
    """
    found: list[Violation] = []
    by_value: dict[Any, list[Operation]] = {}
    for each in operations:
        by_value.setdefault(each.value, []).append(each)
    found += [
        Violation("double delivery", f"{value} took effect {count} times: {heard}")
        for value, count in Counter(heard).items()
        if count > 1
    ]
    seen = set(heard)
    for value, tries in by_value.items():
        name = f"{tries[0].do} {tries[0].key}/{value}"
        if value not in seen and any(each.status == "ok" for each in tries):
            found.append(Violation("lost delivery", f"{name} was confirmed and never took effect"))
        if value in seen and all(each.status == "fail" for each in tries):
            found.append(Violation("refused delivery", f"{name} was refused and took effect"))
    latest_at, latest = 0.0, None
    for value in heard:
        if value not in by_value:
            found.append(Violation("unknown delivery", f"{value} took effect, and was never sent"))
            continue
        began_at = min(each.began_at for each in by_value[value])
        ended_at = min(each.ended_at if each.status == "ok" else NEVER for each in by_value[value])
        if ended_at < latest_at:
            found.append(
                Violation("reordered", f"{value} was confirmed before {latest} was sent, and took effect after it")
            )
        if began_at > latest_at:
            latest_at, latest = began_at, value
    return found


def etags(operations: Iterable[Operation]) -> list[Violation]:
    """One key: a value that was written once has one etag, and no other value has that.

    Args:
        operations: whose `read` has [value, etag] as its result, and `swap` and `set` the new etag.
    """
    pairs: set[tuple[str | None, str]] = set()
    key = ""
    for each in operations:
        if each.status == "ok" and each.do != "delete":
            key = each.key
            value = each.value[1] if each.do == "swap" else each.value
            pairs.add(tuple(each.result) if each.do == "read" else (value, each.result))
    values, tags = Counter(value for value, _ in pairs), Counter(tag for _, tag in pairs)
    return [
        Violation("etag", f"{key}: {name!r} goes with {count} different ones")
        for name, count in (*values.items(), *tags.items())
        if count > 1
    ]


def locks(operations: Sequence[Operation]) -> list[Violation]:
    """One lock: tokens that only grow, and no holder that goes on when another has it.

    A holder acts ("touch") again and again while it believes to hold the lock. One that was frozen cannot know better
    before it has run: its first touch after another was granted the lock is no violation, its second is.
    """
    grants = sorted((each for each in operations if each.status == "ok"), key=lambda each: each.result)
    found: list[Violation] = []
    for one, other in pairwise(grants):
        if one.result == other.result:
            found.append(Violation("token", f"{one.id} and {other.id} hold {one.key} with one token, {one.result}"))
    # In the order of the tokens; each must not have ended before one with a smaller token began.
    ended_at = NEVER
    later: Operation | None = None
    for each in reversed(grants):
        if later is not None and ended_at < each.began_at:
            found.append(
                Violation(
                    "token",
                    f"{each.key}: {each.id} was granted token {each.result} after {later.id} had had {later.result}",
                )
            )
        if each.ended_at < ended_at:
            ended_at, later = each.ended_at, each
    granted_at, holder = NEVER, None
    for each in reversed(grants):
        if holder is not None:
            late = [at for at in each.touches if at > granted_at]
            if len(late) > 1:
                found.append(
                    Violation(
                        "two holders",
                        f"{each.key}: {each.id} (token {each.result}) acted {len(late)} times, until "
                        f"{late[-1] - granted_at:.3f} s after {holder.id} had been granted token {holder.result}",
                    )
                )
        if each.ended_at < granted_at:
            granted_at, holder = each.ended_at, each
    return found


def fences(operations: Iterable[Operation]) -> list[Violation]:
    """Writes to what one lock guards, in real time: none with a smaller token after one with a larger.

    Args:
        operations: swaps of (old, new), where each is "token:serial".
    """
    done = sorted((each for each in operations if each.status == "ok"), key=lambda each: each.ended_at)
    found: list[Violation] = []
    for each in done:
        before, after = (token_of(value) for value in each.value)
        if after < before:
            found.append(Violation("old token", f"{each.key}: {each.id} wrote with token {after} over token {before}"))
    largest, by = 0, None
    ends = iter(done)
    ahead = next(ends, None)
    for each in sorted(done, key=lambda each: each.began_at):
        while ahead is not None and ahead.ended_at < each.began_at:
            if token_of(ahead.value[1]) > largest:
                largest, by = token_of(ahead.value[1]), ahead
            ahead = next(ends, None)
        token = token_of(each.value[1])
        if by is not None and token < largest:
            found.append(
                Violation("old token", f"{each.key}: {each.id} wrote with token {token} after {by.id} with {largest}")
            )
    return found


def token_of(value: str | None) -> int:
    """The token in what a guarded key holds; 0 when it is absent."""
    return int(value.partition(":")[0]) if value else 0


def ledger(operations: Iterable[Operation], entries: Iterable[str], balances: dict[str, int]) -> list[Violation]:
    """Each transfer is there as a whole or not at all, and the balances are exactly what the transfers make them.

    Args:
        operations: those of `transfer` (`key` names the entry, `value` is [from, to, amount]), and of `sums`, whose
            result is every balance as of one instant.
        entries: those that are stored at the end, and balances then.
    """
    entries = list(entries)
    found: list[Violation] = []
    found += [
        Violation("double entry", f"entry {entry} was booked {count} times")
        for entry, count in Counter(entries).items()
        if count > 1
    ]
    there = set(entries)
    wanted: Counter[str] = Counter()
    transfers: dict[str, list[Operation]] = {}
    for each in operations:
        if each.do == "sums":
            total = sum((each.result or {}).values()) if each.status == "ok" else 0
            if total:
                found.append(Violation("sum", f"{each.id} saw balances that add up to {total}: {each.result}"))
        else:
            transfers.setdefault(each.key, []).append(each)
    for entry, tries in transfers.items():
        if entry in there:
            source, target, amount = tries[0].value
            wanted[source] -= amount
            wanted[target] += amount
            if all(each.status == "fail" for each in tries):
                found.append(Violation("refused entry", f"transfer {entry} was refused and booked"))
        elif any(each.status == "ok" for each in tries):
            found.append(Violation("lost entry", f"transfer {entry} was confirmed and is not booked"))
    found += [Violation("unknown entry", f"entry {entry} was never asked for") for entry in there - transfers.keys()]
    for account in sorted({*wanted, *balances}):
        if wanted[account] != balances.get(account, 0):
            found.append(
                Violation(
                    "sum", f"{account} holds {balances.get(account, 0)}; its transfers add up to {wanted[account]}"
                )
            )
    return found


def exits(history: History) -> list[Violation]:
    """Processes that ended although nothing had ended them."""
    return [Violation("crash", f"{each.key} ended by itself: {each.value}") for each in history.exits]


def _by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for each in operations:
        found.setdefault(each.key, []).append(each)
    return found
