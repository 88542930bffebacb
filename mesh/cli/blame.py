"""Finds the origin of an exception that ended a command: the code of a service, or mesh itself.

Owns: telling the two apart, and the output for each; a reached memory limit is the fault of neither.
Leaves to others: errors that mesh raises on purpose (report), exit codes (exits), the limit itself (confine).

The most common fault is a service that cannot be imported, or that raises in `started`. Its author needs the usual
traceback; the frames from the command line to the first line of the service are left out.
"""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
from pathlib import Path
from traceback import FrameSummary, StackSummary, TracebackException
from typing import Final, NamedTuple

import mesh
from mesh.cli.confine import has_room, memory_limit

_MESH: Final = str(Path(mesh.__file__).parent) + os.sep
#: The functions of mesh that call a service's code: importing its module, creating the service, and running `started`.
_DOORS: Final = {
    (_MESH + os.path.join("cli", "loading.py"), "_module"),
    (_MESH + os.path.join("calls", "importing.py"), "load_file"),
    (_MESH + os.path.join("service", "service.py"), "make"),
    (_MESH + os.path.join("service", "service.py"), "run_hook"),
}
#: Directories of the standard library: its frames are never at fault; the code that called them is.
_PYTHON: Final = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Messages of Python's threads and of the dynamic linker when memory is exhausted.
_NO_MEMORY: Final = ("can't start new thread", "failed to map segment", "cannot allocate memory")


class Place(NamedTuple):
    """A line of a service's own code.

    Attributes:
        file: its path, relative to the current directory if below it.
        function: the function that contains the line; "" at the top of a module.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f", in {self.function}" if self.function else "")


def tell(error: Exception) -> bool:
    """Write the error to stderr, the summary last; whether a service's own code, or its memory limit, caused it."""
    told = TracebackException.from_exception(error)
    frames = _behind_the_door(told.stack)
    place = _place(frames, error)
    # When Python's compiler is out of memory, it reports a syntax error. Errors from a service's own code are trusted.
    limit = memory_limit() if _starved(error) or (place is None and not has_room()) else ""
    if place is not None:
        told.stack = StackSummary.from_list(frames)
    lines = "".join(f"      {line}\n" for line in "".join(told.format()).splitlines())
    words = (error.msg if isinstance(error, SyntaxError) else str(error)) or "without a word"
    what = f"{type(error).__name__}: {words}"
    if limit:
        what = f"{type(error).__name__}: it needs more memory than {limit}"
    elif place is None:
        what += "; this is a bug in mesh"
    # In one write: readers who follow the log must not see half of it.
    sys.stderr.write(lines + (f"mesh: {place}: {what}\n" if place is not None else f"mesh: {what}\n"))
    return place is not None or bool(limit)


def _starved(error: BaseException) -> bool:
    """Whether the error, in one of the known forms, reports that there is no memory left."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        if any(words in str(seen) for words in _NO_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _behind_the_door(stack: StackSummary) -> list[FrameSummary]:
    """The frames from the first line of a service on; empty when no service code was called."""
    door = max((at for at, frame in enumerate(stack) if (frame.filename, frame.name) in _DOORS), default=None)
    if door is None:
        return []
    behind = list(stack[door + 1 :])
    while behind and _is_python(behind[0]):
        del behind[0]
    return [] if behind and behind[0].filename.startswith(_MESH) else behind


def _place(frames: list[FrameSummary], error: BaseException) -> Place | None:
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith((_MESH, *_PYTHON)):
        return Place(_shown(error.filename), error.lineno or 1, "")
    own = [frame for frame in frames if not _is_python(frame) and not frame.filename.startswith(_MESH)]
    # Prefer the last frame outside installed packages: it called the library. But services may be installed, too.
    last = next((frame for frame in reversed(own) if not any(each in frame.filename for each in _INSTALLED)), None)
    if last is None:
        if not own:
            return None
        last = own[0]
    return Place(_shown(last.filename), last.lineno or 0, "" if last.name == "<module>" else last.name)


def _is_python(frame: FrameSummary) -> bool:
    installed = any(each in frame.filename for each in _INSTALLED)
    return frame.filename.startswith(("<", *_PYTHON)) and not installed


def _shown(file: str) -> str:
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative
