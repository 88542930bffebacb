"""Finds the line of each key in a TOML text, which tomllib does not report.

Owns: `places`. It requires a text that tomllib has accepted: it only separates keys from values and validates nothing.
Leaves to others: reading the values (tomllib), and their meaning (config.load).
"""

from __future__ import annotations

import re

Key = tuple[str, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_LITERAL = re.compile(r"'([^'\n]*)'")
# Multi-line strings first: their closing quotes may follow up to two quotes that belong to the content.
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'", re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}#][^,\]}#\n]*")


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Key, int] = {}

    def peek(self, token: str) -> bool:
        return self.text.startswith(token, self.at)

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()

    def note(self, key: Key, at: int) -> None:
        # Keep the first mention of a table, where a reader expects it; a value is mentioned only once.
        self.found.setdefault(key, self.text.count("\n", 0, at) + 1)

    def key(self) -> Key:
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            for pattern, group in ((_BARE, 0), (_BASIC, 1), (_LITERAL, 1)):
                match = pattern.match(self.text, self.at)
                if match:
                    parts.append(match[group])
                    self.at = match.end()
                    break
            self.skip(_SPACE)
            if not self.peek("."):
                return tuple(parts)
            self.at += 1

    def pair(self, prefix: Key) -> Key:
        at = self.at
        key = self.key()
        for depth in range(1, len(key) + 1):
            self.note(prefix + key[:depth], at)
        self.at = self.text.index("=", self.at) + 1
        self.skip(_SPACE)
        self.value(prefix + key)
        return key

    def value(self, key: Key) -> None:
        if self.peek("["):
            self.items(key, "]")
        elif self.peek("{"):
            self.items(key, "}")
        else:
            match = _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at)
            if match is None:
                raise ValueError(f"no value at character {self.at}")
            self.at = match.end()

    def items(self, key: Key, closing: str) -> None:
        self.at += 1
        while True:
            self.skip(_BLANK)
            if self.peek(","):
                self.at += 1
            elif self.peek(closing):
                self.at += 1
                return
            elif closing == "}":
                self.pair(key)
            else:
                self.value(key)

    def document(self) -> dict[Key, int]:
        prefix: Key = ()
        numbered: Key = ()  # the current table of an array of tables: ("access", "allow", "0")
        counts: dict[Key, int] = {}
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text):
                return self.found
            if self.peek("["):
                at = self.at
                brackets = "[[" if self.peek("[[") else "["
                self.at += len(brackets)
                prefix = self.key()
                for depth in range(1, len(prefix) + 1):
                    self.note(prefix[:depth], at)
                numbered = ()
                if brackets == "[[":
                    counts[prefix] = counts.get(prefix, -1) + 1
                    numbered = (*prefix, str(counts[prefix]))
                    self.note(numbered, at)
                self.at += len(brackets)
            else:
                at = self.at
                key = self.pair(prefix)
                if numbered:
                    self.note((*numbered, *key), at)


def places(text: str) -> dict[Key, int]:
    """The line (from 1) of every table and key in `text`, which must be valid TOML.

    A key in an array of tables has an entry with the table's number, ("many", "0", "k"), and shares one without it,
    which is the line of the first such key. Escapes in quoted keys are not resolved.
    """
    return _Scan(text.replace("\r\n", "\n")).document()
