"""Whether a set of topic patterns covers another pattern: every topic that it matches, one of the set matches.

Owns: that test. Pure. Leaves to others: the syntax of patterns (topics), its use (engines.authorization).

A pattern is a small automaton: its state is a position in the words; `#` keeps the position for any word and may be
skipped without a word. Covering is language inclusion: all states that the pattern and the set can reach together are
visited, and in none may only the pattern accept. There are infinitely many possible words, but all words that no
pattern names behave alike, so one represents them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from mesh.events.topics import check_pattern

#: Represents every word that no pattern names; it is not a legal word.
_OTHER: Final = ""
#: Maximum number of visited states, some 50 ms: a pattern of 128 words has a few hundred with any usual rules. If more
#: are needed, the pattern counts as not covered.
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
    # Where the pattern accepts any word, only the rules distinguish words.
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
                # A topic has at least one word, and here one was read.
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
    """A position, and the positions after the `#` words that follow it."""
    yield number, at
    while at < len(words) and words[at] == "#":
        at += 1
        yield number, at


def _step(rules: Sequence[_Words], states: Iterable[tuple[int, int]], symbol: str) -> Iterable[tuple[int, int]]:
    """The positions that a word leads to from these positions."""
    for number, at in states:
        words = rules[number]
        if at == len(words):
            continue
        if words[at] == "#":
            yield from _closed(words, number, at)
        elif words[at] in ("*", symbol):
            yield from _closed(words, number, at + 1)
