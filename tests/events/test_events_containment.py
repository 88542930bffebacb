"""Patterns that cover a pattern: every topic of it, and not just some."""

from __future__ import annotations

import itertools
import random

import pytest

from mesh.events.containment import covers
from mesh.events.topics import BadTopic, Matcher, matches


@pytest.mark.parametrize(
    ("patterns", "pattern", "covered"),
    [
        (["order.#"], "order.*", True),
        (["order.#"], "order", True),
        (["order.#"], "order.#", True),
        (["order.*"], "order.made", True),
        (["order.*"], "order.#", False),
        (["order.*"], "*.made", False),
        (["order.#"], "#", False),
        (["*.#"], "#", True),
        (["a.b", "a.*.#"], "a.#", False),
        (["a", "a.*", "a.*.*.#"], "a.#", True),
        (["#.paid"], "order.*.paid", True),
        (["#.paid"], "order.#", False),
        ([], "order.made", False),
    ],
)
def test_all_topics_must_be_covered(patterns: list[str], pattern: str, covered: bool) -> None:
    """By one rule, or by several together."""
    assert covers(patterns, pattern) is covered


def test_it_agrees_with_matching_every_topic() -> None:
    """Over all short topics, some hundred drawn rules."""
    rng = random.Random(3)
    topics = [".".join(words) for count in range(1, 5) for words in itertools.product("abc", repeat=count)]

    def drawn(most: int) -> str:
        return ".".join(rng.choice("ab*#") for _ in range(rng.randint(1, most)))

    for _ in range(400):
        pattern, rules = drawn(4), [drawn(3) for _ in range(rng.randint(0, 3))]
        allowed = Matcher((rule, None) for rule in rules)
        expected = all(allowed.match(topic) for topic in topics if matches(pattern, topic))
        assert covers(rules, pattern) is expected, (rules, pattern)


def test_what_takes_too_long_is_not_covered() -> None:
    """A caller's pattern costs a bounded time, whatever it is."""
    assert covers(["order.#", "#.paid"], ".".join(["order", *(["#", "x"] * 60)])) is True
    assert covers(["#.a" + ".*" * 40], "#.a" + ".*" * 40 + ".b") is False


def test_a_malformed_pattern_is_told() -> None:
    """As everywhere."""
    with pytest.raises(BadTopic):
        covers(["order.#"], "order.x*")
