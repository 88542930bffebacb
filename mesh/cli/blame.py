"""Whose exception it was that ended a command: of a service's own code, or of mesh.

Owns: telling the two apart, and what is shown of each; a limit of memory that was reached is the fault of neither.
Leaves to others: errors that mesh raises on purpose (report), exit codes (exits), the limit itself (confine).

A service that cannot be imported, or whose `started` raises, is the commonest fault of all, and its author needs what
Python always shows: the lines that led there. The way from the command line to the service's first line is left out.
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
#: Where mesh hands over to a service: importing its module, making it, and its `started`.
_DOORS: Final = {
    (_MESH + os.path.join("cli", "loading.py"), "_module"),
    (_MESH + os.path.join("calls", "importing.py"), "load_file"),
    (_MESH + os.path.join("service", "service.py"), "make"),
    (_MESH + os.path.join("service", "service.py"), "run_hook"),
}
#: Python's own: on the way to whoever uses it, and never at fault.
_PYTHON: Final = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Of Python's threads, and of the dynamic linker.
_NO_MEMORY: Final = ("can't start new thread", "failed to map segment", "cannot allocate memory")


class Place(NamedTuple):
    """A line of a service's own code.

    Attributes:
        file: as it is seen from here.
        function: what it is in; "" at the top of a module.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f", in {self.function}" if self.function else "")


def tell(error: Exception) -> bool:
    """Write to stderr what happened, the line to repeat last; whether it was a service's own fault, or its limit's."""
    told = TracebackException.from_exception(error)
    frames = _behind_the_door(told.stack)
    place = _place(frames, error)
    # Python's compiler, out of memory, complains of what it read. A service's own words are believed.
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
    # At once: whoever follows the log shall not read half of it.
    sys.stderr.write(lines + (f"mesh: {place}: {what}\n" if place is not None else f"mesh: {what}\n"))
    return place is not None or bool(limit)


def _starved(error: BaseException) -> bool:
    """Whether it says, in one of the ways in which that is said, that there is no memory left."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        if any(words in str(seen) for words in _NO_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _behind_the_door(stack: StackSummary) -> list[FrameSummary]:
    """The frames from a service's first line on; none when mesh had not handed over to one."""
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
    # A library is called by somebody; but services may be installed as well.
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
