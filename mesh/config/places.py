"""Which line of a TOML text a key stands on, because tomllib does not tell.

Owns: `places`. It trusts that tomllib has accepted the text, so it only tells keys from values and never judges.
Leaves to others: reading the values (tomllib), and what they mean (config.load).
"""

from __future__ import annotations

import re

Key = tuple[str, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_LITERAL = re.compile(r"'([^'\n]*)'")
# The longest strings first: a triple quote may end in up to two more quotes of its own content.
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
        # The first mention of a table is where a reader looks for it; a value has only one.
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
        numbered: Key = ()  # of the array's table that we are in: ("access", "allow", "0")
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

    Keys inside arrays of tables have an entry with their number, ("many", "0", "k"), and share one without it: the
    line of the first. Escapes in quoted keys are not resolved.
    """
    return _Scan(text.replace("\r\n", "\n")).document()
