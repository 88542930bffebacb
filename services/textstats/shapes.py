"""What TextStats answers.

Owns: the shapes, which become the schemas of /openapi.json. Leaves to others: filling them (counting, service).
"""

from __future__ import annotations

import msgspec


class Counts(msgspec.Struct):
    """What was counted in one piece of text; those of two pieces add up.

    Attributes:
        characters: Unicode code points.
        lines: line ends.
        words: how often each word stands there, without regard to case.
    """

    characters: int = 0
    lines: int = 0
    words: dict[str, int] = {}


class WordCount(msgspec.Struct):
    """A word and how often it stands there."""

    word: str
    count: int


class Share(msgspec.Struct):
    """One instance's share of the work.

    Attributes:
        instance: who was given it.
        characters: how long it was.
    """

    instance: str
    characters: int


class Report(msgspec.Struct):
    """What a text consists of.

    Attributes:
        characters: Unicode code points.
        lines: line ends, as `wc -l` counts them.
        words: how many there are.
        distinct: how many different ones, without regard to case.
        top: the most frequent words, the most frequent first.
        shares: who counted what; empty when the work was not split.
    """

    characters: int
    lines: int
    words: int
    distinct: int
    top: list[WordCount]
    shares: list[Share] = []


class Progress(msgspec.Struct):
    """How far a text has been counted.

    Attributes:
        paragraphs, words: so far.
        distinct: different words so far.
    """

    paragraphs: int
    words: int
    distinct: int
