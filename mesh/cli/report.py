"""Error output for users: one line, advice, and no traceback.

Owns: the form of an error on stderr, as text and with --json.
Leaves to others: the exit code (exits), the message (the code that raised the error).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mesh import errors
from mesh.errors import MeshError

#: Advice by class; that of the nearest base class applies; an error's own advice takes precedence.
_ADVICE: Final[dict[type[MeshError], str]] = {
    errors.ConfigError: "`mesh config` shows every key and where its value comes from",
    errors.NotOffered: "`mesh engines` shows what each engine offers",
    errors.Unavailable: "`mesh ps` shows what runs; `mesh up` starts everything",
    errors.Overloaded: "it is at its limit; try again later, or run more instances",
    errors.UnknownService: "`mesh ps` lists the services that run",
    errors.UnknownMethod: "`mesh ps --methods` lists the methods of each service",
}


@contextmanager
def more_time(option: str) -> Iterator[None]:
    """When a deadline is exceeded inside the block, advise the user to set this option of the command."""
    try:
        yield
    except errors.DeadlineExceeded as exc:
        exc.add_note(f"{option} sets a longer timeout")
        raise


def advice_for(error: MeshError) -> str:
    """One line on what to do, or ""."""
    if error.advice:
        return error.advice
    if notes := getattr(error, "__notes__", None):
        return str(notes[0])
    return next((_ADVICE[kind] for kind in type(error).__mro__ if kind in _ADVICE), "")


def colourful() -> bool:
    """Whether to colour stderr: it is a terminal, and NO_COLOR is not set (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell(error: MeshError, as_json: bool) -> None:
    """Write `error` to stderr."""
    if as_json:
        sys.stderr.write(json.dumps({"error": error.to_wire()}, default=str) + "\n")
        return
    red, dim, plain = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if colourful() else ("", "", "")
    lines = str(error).splitlines() or [error.code]
    sys.stderr.write(f"{red}mesh: {lines[0]}{plain}\n")
    for line in lines[1:]:
        sys.stderr.write(f"{red}      {line}{plain}\n")
    if rule := error.details.get("rule"):
        sys.stderr.write(f"{dim}      to allow it, add {rule}{plain}\n")
    tail = error.details.get("tail")
    if tail:
        sys.stderr.write(f"the end of {error.details.get('log', 'its log')}:\n")
        for line in tail:
            sys.stderr.write(f"{dim}  | {line}{plain}\n")
    if advice := advice_for(error):
        sys.stderr.write(f"{dim}      {advice}{plain}\n")
