"""What is recorded of an exception: its message, its traceback, its code.

Owns: their maximum lengths, and protection against exceptions with methods that raise.
Leaves to others: the text (calls.failures), storing it (a settlement), deciding on a retry (verdicts).
"""

from __future__ import annotations

import traceback
from typing import Final

from mesh.calls.failures import text_of
from mesh.errors import MeshError

#: Characters of a traceback that are kept, from its end: that is where the error is.
MOST_TRACEBACK: Final = 8000
MOST_ERROR: Final = 2000


def sentence(exc: BaseException) -> str:
    """Type and message: `ValueError: no such order`."""
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
    """The code for metrics: that of a MeshError, else "handler_error"."""
    return exc.code if isinstance(exc, MeshError) else "handler_error"


def _text(text: str) -> str:
    """The text without lone surrogates (file names may have them), so that every reader can decode it."""
    return text.encode("utf-8", "replace").decode()
