"""The errors for an unknown key and for a file that is not TOML.

Owns: their wording. Leaves to others: finding what is wrong (config.load), and where it stands (config.places).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mesh.suggest import suggest


def no_such(what: str, wrong: str, known: Iterable[str]) -> str:
    """The error for an unknown key or table, with the nearest known one, or else all of them."""
    known = list(known)
    return f"no such {what}; {suggest(wrong, known, 'known are ' + ', '.join(known))}"


def not_toml(shown_file: str, text: str, message: str) -> str:
    """An error of tomllib with file and line at its beginning, as in all other messages."""
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    line = int(match[1]) if match else text.count("\n") + 1
    return f"{shown_file}:{line}: not valid TOML: {message.split(' (at ')[0]}"
