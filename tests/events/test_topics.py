"""Patterns against topics."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.events.topics import BadTopic, Matcher, check_pattern, check_topic, literal_prefix, matches


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.createdX", False),
        ("order.created", "order", False),
        ("order.*", "order.created", True),
        ("order.*", "order", False),
        ("order.*", "order.item.added", False),
        ("*.created", "order.created", True),
        ("order.#", "order", True),
        ("order.#", "order.item.added", True),
        ("order.#", "orders", False),
        ("#", "anything.at.all", True),
        ("#.created", "created", True),
        ("#.created", "a.b.created", True),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c.z", True),
        ("a.#.z", "a.b.c", False),
        ("a.#.#.z", "a.z", True),
        ("*.#.*", "a", False),
        ("*.#.*", "a.b", True),
        ("#.*", "a", True),
        ("#.a.#.a", "a", False),
        ("#.a.#.a", "a.b.a.a", True),
    ],
)
def test_wildcards(pattern, topic, expected):
    """`*` is one word, `#` none or more."""
    assert matches(pattern, topic) is expected


words = st.sampled_from(["a", "b", "c"])
patterns = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6).map(".".join)
topics = st.lists(words, min_size=1, max_size=6).map(".".join)


def _by_definition(pattern: list[str], topic: list[str]) -> bool:
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return _by_definition(pattern[1:], topic) or (bool(topic) and _by_definition(pattern, topic[1:]))
    return bool(topic) and pattern[0] in ("*", topic[0]) and _by_definition(pattern[1:], topic[1:])


@settings(deadline=None)
@given(st.lists(patterns, max_size=8), topics)
def test_the_matcher_agrees_with_the_definition(many, topic):
    """Many patterns at once give what each gives alone, in order, first ask and second."""
    matcher = Matcher([(pattern, number) for number, pattern in enumerate(many)])
    expected = tuple(n for n, p in enumerate(many) if _by_definition(p.split("."), topic.split(".")))
    assert matcher.match(topic) == expected
    assert matcher.match(topic) == expected


@settings(deadline=None)
@given(patterns, topics)
def test_what_matches_begins_with_the_literal_prefix(pattern, topic):
    """So a socket that subscribes to the prefix misses nothing."""
    if matches(pattern, topic):
        assert topic.startswith(literal_prefix(pattern))


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [("a.b", "a.b"), ("a.*", "a."), ("a.*.c", "a."), ("a.#", "a"), ("a.b.#.c", "a.b"), ("*", ""), ("#", "")],
)
def test_literal_prefixes(pattern, prefix):
    """As long as it can be, and no longer."""
    assert literal_prefix(pattern) == prefix


@pytest.mark.parametrize(
    "topic", ["", ".", "a..b", ".a", "a.", "a.*", "#", "a b", "ä", "a.b#", "x" * 256, "a\n", 5, None]
)
def test_bad_topics_are_refused(topic):
    """A topic is words, dots, and nothing else."""
    with pytest.raises(BadTopic):
        check_topic(topic)


@pytest.mark.parametrize("pattern", ["", "a..b", "a.b*", "**", "a.##", "a.#b", "x" * 256])
def test_bad_patterns_are_refused(pattern):
    """A wildcard is a whole word."""
    with pytest.raises(BadTopic):
        check_pattern(pattern)


def test_good_ones_pass():
    """Letters, digits, dashes, colons and more."""
    assert check_topic("order.item-7.v_1:x@y") == "order.item-7.v_1:x@y"
    assert check_pattern("order.*.#") == "order.*.#"


def test_a_hostile_pair_costs_no_time():
    """A walk never backtracks, however many wildcards there are."""
    pattern, topic = ".".join(["#", "a"] * 60), ".".join(["a"] * 120 + ["b"])
    begun = time.perf_counter()
    assert not matches(pattern, topic)
    assert time.perf_counter() - begun < 0.5


def test_what_is_remembered_is_bounded():
    """Topics with ids in them do not fill the memory."""
    matcher = Matcher([("order.*", 1)])
    for number in range(10_000):
        assert matcher.match(f"order.{number}") == (1,)
    assert len(matcher._known) <= 4096
