"""`mesh run --reload`: a child process runs the services, and is restarted whenever a source file changes.

Owns: the child, and watching files. The child drains as on every SIGTERM; a dead child is restarted at the next change.
Leaves to others: running the services (run, in the child).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from mesh.cli import exits
from mesh.cli.output import note
from mesh.errors import SetupError

if TYPE_CHECKING:
    from mesh.config import Settings

# Long enough for running calls during development; [worker] stop_timeout would delay each reload too much.
DRAIN_S = 5.0


def watch(words: Sequence[str], settings: Settings) -> int:
    """Run `mesh run` with `words` in a child until SIGTERM or Ctrl-C; the exit code.

    Raises:
        SetupError: watchfiles is not installed.
    """
    try:
        import watchfiles
    except ImportError:
        raise SetupError("--reload needs watchfiles: pip install 'zeromesh[reload]'") from None
    stop = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = [signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)]
    child = _start(words)
    try:
        changes = watchfiles.watch(
            settings.root,
            watch_filter=watchfiles.PythonFilter(extra_extensions=(".toml",)),
            stop_event=stop,
            raise_interrupt=False,
            # Often enough to notice a stop request and a dead child without a visible delay.
            rust_timeout=250,
            yield_on_timeout=True,
        )
        told_dead = False
        for found in changes:
            if found:
                names = sorted(path.removeprefix(f"{settings.root}/") for _, path in found)
                note(f"changed: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}; starting again")
                _end(child)
                child = _start(words)
                told_dead = False
            elif child.poll() is not None and not told_dead:
                note(f"it ended with {child.returncode}; waiting for a change")
                told_dead = True
    finally:
        _end(child)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    return exits.OK


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    # A separate session: Ctrl-C reaches only this process, which then makes the child drain.
    return subprocess.Popen([sys.executable, "-m", "mesh.cli.main", "run", *words], start_new_session=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            note(f"it did not drain within {DRAIN_S:.0f} s; killed")
            child.kill()
    child.wait()
    try:
        # The child leads its own session: kill the processes that it started and left behind, too.
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
