"""Splitting a text, cleaning it, counting its words, adding up: plain functions.

Owns: what a word is. Leaves to others: who counts which piece (service).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from typing import Final

from services.textstats.shapes import Counts, Report, WordCount

#: Letters, digits and _, with apostrophes inside: "don't" is one word.
_WORD: Final = re.compile(r"\w+(?:['’]\w+)*")
_SPACE: Final = re.compile(r"\s")
_TAG: Final = re.compile(r"<[^<>]*>")
_BLANK_LINES: Final = re.compile(r"\n\s*\n")


def split(text: str, pieces: int) -> list[str]:
    """At most `pieces` pieces of about the same length, which joined are the text again.

    A cut is made only before white space, and no word holds any: counts of the pieces add up to those of the whole.
    There are fewer pieces when there is too little white space, and always one.
    """
    found = []
    begin = 0
    for number in range(1, pieces):
        space = _SPACE.search(text, max(begin, len(text) * number // pieces))
        if space is None:
            break
        if space.start() > begin:
            found.append(text[begin : space.start()])
            begin = space.start()
    return [*found, text[begin:]]


def count(text: str) -> Counts:
    """The counts of one piece."""
    words = Counter(word.casefold() for word in _WORD.findall(text))
    return Counts(characters=len(text), lines=text.count("\n"), words=dict(words))


def merge(pieces: Iterable[Counts]) -> Counts:
    """The counts of all pieces together."""
    words: Counter[str] = Counter()
    characters = lines = 0
    for piece in pieces:
        characters += piece.characters
        lines += piece.lines
        words.update(piece.words)
    return Counts(characters, lines, dict(words))


def report(counts: Counts, top: int) -> Report:
    """The counts, told. Words of the same frequency come in alphabetical order."""
    most = nsmallest(top, counts.words.items(), key=lambda item: (-item[1], item[0]))
    return Report(
        characters=counts.characters,
        lines=counts.lines,
        words=sum(counts.words.values()),
        distinct=len(counts.words),
        top=[WordCount(word, times) for word, times in most],
    )


def clean(text: str) -> str:
    """The text without markup: tags out, `&amp;` and its like resolved, typographic variants of a letter made one."""
    return unicodedata.normalize("NFKC", html.unescape(_TAG.sub(" ", text)))


def paragraphs(text: str) -> Iterator[str]:
    """What stands between blank lines."""
    begin = 0
    for blank in _BLANK_LINES.finditer(text):
        if text[begin : blank.start()].strip():
            yield text[begin : blank.start()]
        begin = blank.end()
    if text[begin:].strip():
        yield text[begin:]
