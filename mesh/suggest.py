"""Which known name was probably meant by one that is not known.

Owns: the wording "did you mean", its distance, and how much of a name is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Characters of a name that are compared: difflib takes quadratic time, and names come from strangers.
MOST_CHARS: Final = 100


def suggest(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error message about a name that is not known.

    Args:
        wrong: The name that was given.
        known: The names that exist.
        otherwise: What to return when none of them is similar.

    Example:
        >>> suggest("helo", ["hello", "goodbye"])
        'did you mean "hello"?'
    """
    import difflib  # a third of a millisecond that most processes never need

    near = difflib.get_close_matches(wrong[:MOST_CHARS], list(known), n=1)
    return f'did you mean "{near[0]}"?' if near else otherwise


def suggestion(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """`suggest` with "; " before it, for the end of a sentence; "" when there is nothing to add."""
    found = suggest(wrong, known, otherwise)
    return f"; {found}" if found else ""
