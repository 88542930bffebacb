"""How a wrong key or file is told, with the nearest right one.

Owns: these words. Leaves to others: finding what is wrong (config.load), and where it stands (config.places).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(message: str, wrong: str, known: Iterable[str]) -> str:
    """`message`, and which of `known` may have been meant."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"{message}; did you mean {near[0]}?" if near else message


def no_such(what: str, wrong: str, known: Iterable[str]) -> str:
    """Of a key or table that there is not: which may have been meant, or else which there are."""
    known = list(known)
    message = nearest(f"no such {what}", wrong, known)
    return message if "did you mean" in message else f"{message}; known are {', '.join(known)}"


def not_toml(shown_file: str, text: str, message: str) -> str:
    """What tomllib says of a file, with the line in front, as in all other complaints."""
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    line = int(match[1]) if match else text.count("\n") + 1
    return f"{shown_file}:{line}: not valid TOML: {message.split(' (at ')[0]}"
