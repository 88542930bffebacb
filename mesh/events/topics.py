"""Topics and the patterns that match them: dotted words, `*` for one, `#` for none or more.

Owns: the syntax of topics and patterns, and matching them. Pure.
Leaves to others: subscriptions (discovery), carrying events (bus, inbox).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Generic, TypeVar

from mesh.errors import BadRequest

Item = TypeVar("Item")

#: A topic travels with every event and is matched by every subscriber.
MOST_BYTES: Final = 255
_WORD: Final = re.compile(r"[A-Za-z0-9_\-:@$]+")
# There are many topics that contain ids, and each is used only a few times: enough for a burst, at some 100 bytes each.
_REMEMBERED: Final = 4096


class BadTopic(BadRequest):
    """A topic or a pattern is not dotted words."""

    code = "bad_topic"


@lru_cache(_REMEMBERED)
def check_topic(topic: str) -> str:
    """The topic itself.

    Raises:
        BadTopic: it is not one to MOST_BYTES letters, digits and `_-:@$` in words with single dots between.
    """
    return _check(topic, "topic", wild=False)


def check_pattern(pattern: str) -> str:
    """The pattern itself: a topic in which whole words may be `*` or `#`.

    Raises:
        BadTopic: it is malformed.
    """
    return _check(pattern, "pattern", wild=True)


def _check(text: str, noun: str, *, wild: bool) -> str:
    if not isinstance(text, str) or not text:
        raise BadTopic(f"a {noun} consists of words separated by dots, not {text!r}"[:200])
    if len(text) > MOST_BYTES:
        raise BadTopic(f"{noun} {text[:40]!r}… is {len(text)} characters long; the limit is {MOST_BYTES}")
    for word in text.split("."):
        if wild and word in ("*", "#"):
            continue
        if not word:
            raise BadTopic(f"{noun} {text!r} has an empty word: separate words by single dots")
        if not _WORD.fullmatch(word):
            allowed = "letters, digits and _-:@$" + (", or * or # alone" if wild else "")
            raise BadTopic(f"{noun} {text!r}: {word!r} is not a word ({allowed})")
    return text


def literal_prefix(pattern: str) -> str:
    """The longest common prefix of all topics that the pattern matches: the subscription of a SUB socket.

    "order.*" → "order.", "order.#" → "order" (the `#` may match no word, then without the dot), "#" → "".
    """
    head: list[str] = []
    for word in pattern.split("."):
        if word == "#":
            return ".".join(head)
        if word == "*":
            return "".join(f"{part}." for part in head)
        head.append(word)
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether the pattern matches; for many patterns or topics, use a Matcher."""
    return bool(Matcher([(pattern, None)]).match(topic))


class _Node:
    """The possible continuations after some words of a pattern."""

    __slots__ = ("items", "loops", "rest", "star", "words")

    def __init__(self, *, loops: bool = False) -> None:
        self.words: dict[str, _Node] = {}
        self.star: _Node | None = None
        #: The node behind a `#`: reached without reading a word.
        self.rest: _Node | None = None
        #: A `#` ends here: any word leads back to this node.
        self.loops = loops
        self.items: list[int] = []


class Matcher(Generic[Item]):
    """Many patterns, each with an item, matched in one walk over the topic's words.

    The walk keeps the set of nodes reachable by the words so far, so it costs at most words × nodes and never
    backtracks.
    """

    def __init__(self, patterns: Iterable[tuple[str, Item]] = (), *, distinct: bool = False) -> None:
        """Compile (pattern, item) pairs.

        Args:
            distinct: give an item once, however many of its patterns match; it must be hashable then.

        Raises:
            BadTopic: a pattern is malformed.
        """
        self._root = _Node()
        self._distinct = distinct
        self._items: list[Item] = []
        self._known: dict[str, tuple[Item, ...]] = {}
        for pattern, item in patterns:
            self._add(check_pattern(pattern), item)

    def _add(self, pattern: str, item: Item) -> None:
        node = self._root
        for word in pattern.split("."):
            if word == "#":
                # "#.#" is equivalent to "#".
                if not node.loops:
                    node.rest = node = node.rest or _Node(loops=True)
            elif word == "*":
                node.star = node = node.star or _Node()
            else:
                node = node.words.setdefault(word, _Node())
        node.items.append(len(self._items))
        self._items.append(item)

    def match(self, topic: str) -> tuple[Item, ...]:
        """The items with a matching pattern, in the given order. A repeated topic costs one look-up."""
        found = self._known.get(topic)
        if found is None:
            # Clearing the whole cache now and then is cheaper than an LRU order.
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[topic] = self._walk(topic)
        return found

    def _walk(self, topic: str) -> tuple[Item, ...]:
        nodes = _with_rest([self._root])
        for word in topic.split("."):
            reached: list[_Node] = []
            for node in nodes:
                if node.loops:
                    reached.append(node)
                if node.star is not None:
                    reached.append(node.star)
                if (literal := node.words.get(word)) is not None:
                    reached.append(literal)
            nodes = _with_rest(reached)
        found = [self._items[number] for number in sorted(n for node in nodes for n in node.items)]
        return tuple(dict.fromkeys(found) if self._distinct else found)

    def __bool__(self) -> bool:
        return bool(self._items)


def _with_rest(nodes: list[_Node]) -> dict[_Node, None]:
    """The nodes and those behind their `#`, each once."""
    found = dict.fromkeys(nodes)
    for node in nodes:
        if node.rest is not None:
            found[node.rest] = None
    return found
