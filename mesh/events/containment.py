"""Whether patterns of topics cover another pattern: each topic that it matches, one of them matches.

Owns: that question. Pure. Leaves to others: what patterns are (topics), who asks (engines.authorization).

A pattern is a small automaton: a position in its words, `#` stays where it is and may be passed without a word. To
cover is inclusion of languages: every state that the one pattern and the set of the others can reach together is
visited, and none may accept a topic in the first alone. Topics have endlessly many words, but all that no pattern names
behave alike, so one stands for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from mesh.events.topics import check_pattern

#: Some word that no pattern names; it is not a legal one.
_OTHER: Final = ""
#: States that are visited at most, some 50 ms: a pattern of 128 words has a few hundred with any usual rules. One that
#: needs more is taken as not covered.
MOST_STATES: Final = 2_000

_Words = tuple[str, ...]


def covers(patterns: Iterable[str], pattern: str) -> bool:
    """Whether every topic that `pattern` matches is matched by one of `patterns`: "order.#" covers "order.*.paid".

    Raises:
        BadTopic: one of them is malformed.
    """
    wanted = tuple(check_pattern(pattern).split("."))
    rules = [tuple(check_pattern(each).split(".")) for each in patterns]
    if wanted in rules or ("#",) in rules:
        return True
    # Where the pattern takes any word, only the rules tell words apart.
    alphabet = {word for words in rules for word in words if word not in ("*", "#")} | {_OTHER}
    start = frozenset(state for number, words in enumerate(rules) for state in _closed(words, number, 0))
    stack = [(at, start) for _, at in _closed(wanted, 0, 0)]
    seen = set(stack)
    while stack:
        at, allowed = stack.pop()
        if at == len(wanted):
            continue
        word = wanted[at]
        for symbol in alphabet if word in ("*", "#") else (word,):
            after = frozenset(_step(rules, allowed, symbol))
            for _, reached in _step([wanted], ((0, at),), symbol):
                # A topic has a word at least, and here one was read.
                if reached == len(wanted) and not any(place == len(rules[number]) for number, place in after):
                    return False
                state = (reached, after)
                if state not in seen:
                    if len(seen) >= MOST_STATES:
                        return False
                    seen.add(state)
                    stack.append(state)
    return True


def _closed(words: _Words, number: int, at: int) -> Iterable[tuple[int, int]]:
    """A position and those behind the `#` that stand there."""
    yield number, at
    while at < len(words) and words[at] == "#":
        at += 1
        yield number, at


def _step(rules: Sequence[_Words], states: Iterable[tuple[int, int]], symbol: str) -> Iterable[tuple[int, int]]:
    """Where a word leads from these positions."""
    for number, at in states:
        words = rules[number]
        if at == len(words):
            continue
        if words[at] == "#":
            yield from _closed(words, number, at)
        elif words[at] in ("*", symbol):
            yield from _closed(words, number, at + 1)
