"""What is kept of an exception: its sentence, its traceback, its code.

Owns: their length, and that an exception whose own methods raise cannot break the telling of it.
Leaves to others: the text (calls.failures), where it is kept (a settlement), and what follows from it (verdicts).
"""

from __future__ import annotations

import traceback
from typing import Final

from mesh.calls.failures import text_of
from mesh.errors import MeshError

#: What is kept of a traceback, from its end: that is where the error is.
MOST_TRACEBACK: Final = 8000
MOST_ERROR: Final = 2000


def sentence(exc: BaseException) -> str:
    """`ValueError: no such order`."""
    text = text_of(exc)
    name = exc.type_name if isinstance(exc, MeshError) else type(exc).__name__
    return _text(f"{name}: {text}")[:MOST_ERROR]


def trace(exc: BaseException) -> str:
    """The traceback as text."""
    try:
        text = "".join(traceback.format_exception(exc))
    except BaseException as own:
        text = f"(its traceback cannot be shown: {type(own).__name__})"
    return _text(text)[-MOST_TRACEBACK:]


def code(exc: BaseException) -> str:
    """For counters: that of a MeshError, else the one of all handlers' own failures."""
    return exc.code if isinstance(exc, MeshError) else "handler_error"


def _text(text: str) -> str:
    """Text that any reader can take: no lone surrogates (file names have them)."""
    return text.encode("utf-8", "replace").decode()
