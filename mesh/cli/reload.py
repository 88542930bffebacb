"""`mesh run --reload` and `mesh dev`: a child process runs the services, and is restarted when a source file changes.

Owns: the child's life, and watching files. The child drains as on every SIGTERM; a dead child is restarted at the next
change.
Leaves to others: running the services (run and dev_process, in the child).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from mesh.cli import exits
from mesh.cli.output import note
from mesh.errors import SetupError

if TYPE_CHECKING:
    from mesh.config import Settings

# Long enough for running calls during development; [worker] stop_timeout would delay each reload too much.
DRAIN_S = 5.0
#: How often a stop request and a dead child are noticed: without a visible delay.
LOOK_MS: Final = 250

Child = subprocess.Popen[bytes]


def watch(words: Sequence[str], settings: Settings) -> int:
    """Run `mesh run` with `words` in a child until SIGTERM or Ctrl-C; the exit code.

    Raises:
        SetupError: watchfiles is not installed.
    """
    if not can_watch():
        raise SetupError("--reload needs watchfiles: pip install 'zeromesh[reload]'")
    return keep_running([settings.root], lambda: spawn("run", *words))


def can_watch() -> bool:
    """Whether watchfiles is installed."""
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        return False
    return True


def keep_running(
    roots: Sequence[Path] | None,
    start: Callable[[], Child],
    *,
    drain_s: float = DRAIN_S,
    ended: Callable[[int], bool] = lambda code: False,
) -> int:
    """Keep a child running until SIGTERM or Ctrl-C, and restart it whenever a file below `roots` changes.

    Args:
        roots: the directories to watch; None watches none, and a child that ends is the end.
        start: starts the child.
        drain_s: how long a child may take to end before it is killed.
        ended: called with the exit code of a child that ended by itself, before waiting for a change; True gives up.

    Returns:
        0 after a signal; the child's exit code when it was the end.
    """
    stop = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = [signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)]
    child = start()
    try:
        told_dead = False
        for changed in _changes(roots, stop):
            if changed:
                note(f"changed: {_listed(changed)}; starting again")
                _end(child, drain_s)
                child = start()
                told_dead = False
            elif child.poll() is not None and not told_dead:
                if ended(child.returncode) or roots is None:
                    return child.returncode if child.returncode >= 0 else exits.FAILED
                note(f"exit status {child.returncode}; waiting for a change")
                told_dead = True
    finally:
        _end(child, drain_s)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    return exits.OK


def _changes(roots: Sequence[Path] | None, stop: threading.Event) -> Iterator[list[str]]:
    """The changed files, each time that some changed; and often an empty list; until `stop` is set."""
    if roots is None:
        while not stop.wait(LOOK_MS / 1000):
            yield []
        return
    import watchfiles

    changes = watchfiles.watch(
        *roots,
        watch_filter=watchfiles.PythonFilter(extra_extensions=(".toml",)),
        stop_event=stop,
        raise_interrupt=False,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
    )
    for found in changes:
        yield sorted(os.path.relpath(path) for _, path in found)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"


def spawn(*words: str, pass_fds: Iterable[int] = ()) -> Child:
    """A `mesh` command in a child with a session of its own: Ctrl-C reaches only this process, which then makes the
    child drain."""
    return subprocess.Popen(
        [sys.executable, "-m", "mesh.cli.main", *words], start_new_session=True, pass_fds=tuple(pass_fds)
    )


def _end(child: Child, drain_s: float) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(drain_s)
        except subprocess.TimeoutExpired:
            note(f"it did not drain within {drain_s:.0f} s; killed")
            child.kill()
    child.wait()
    try:
        # The child leads its own session: kill the processes that it started and left behind, too.
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
