"""`mesh up --foreground`: keep running, show the logs of all processes, and stop everything on SIGTERM or Ctrl-C.

For containers and for process managers that watch a single process. As the first process of a container it also
reaps orphaned processes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from mesh.cli import exits
from mesh.cli.commands import logs
from mesh.cli.output import note
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.supervisord.journal import Journal
    from mesh.supervisord.layout import Layout

#: How often to check supervisord itself.
LOOK_EVERY_S: Final = 1.0


class Foreground:
    """Created before anything is started, so that the output of starting processes is shown, too."""

    def __init__(self, conf: str | None) -> None:
        from mesh.supervisord.journal import Journal

        self._conf = conf
        self._stopping = threading.Event()
        paths = logs.paths(conf, quiet=True)
        self._journal: Journal = Journal(paths)
        self._journal.last(0)

    def give_up(self, layout: Layout, run_dir: Path) -> None:
        """Stop what has started: something failed to start, or a signal arrived during the start."""
        from mesh.deploy.down import take_down

        self._show()
        take_down(layout, run_dir)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def follow(self, layout: Layout, run_dir: Path) -> int:
        """Show the logs until a signal arrives or supervisord ends; then stop everything.

        Returns:
            The exit code: 0 after a signal, 1 when supervisord ended by itself or something could not be stopped.
        """
        from mesh.deploy.down import take_down
        from mesh.supervisord import process_tree

        # Not earlier: while everything starts, a signal aborts the start (loop.run), and `give_up` follows.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        pid = process_tree.recorded(layout.pidfile)
        look_at = time.monotonic() + LOOK_EVERY_S
        code = exits.OK
        while not self._stopping.wait(logs.EVERY_S):
            self._show()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_EVERY_S
                _reap()
                if not process_tree.alive(pid):
                    # `supervisorctl reload` keeps the pid; `mesh down && mesh up` in another terminal does not.
                    pid = process_tree.recorded(layout.pidfile)
                    if not pid:
                        note("supervisord has ended; stopping the remaining processes")
                        code = exits.FAILED
                        break
        trouble: list[MeshError] = []

        def stop() -> None:
            try:
                take_down(layout, run_dir)
            except MeshError as exc:
                trouble.append(exc)

        stopper = threading.Thread(target=stop, name="mesh-down")
        stopper.start()
        while stopper.is_alive():
            stopper.join(logs.EVERY_S)
            self._show()
            _reap()
        self._show()
        if trouble:
            raise trouble[0]
        note("down")
        return code

    def _show(self) -> None:
        found = logs.paths(self._conf, quiet=True)
        width = max((len(name) for name in found), default=0)
        logs.write(self._journal.new(found), width)


def _reap() -> None:
    """Reap ended processes: supervisord is a daemon, and in a container the first process inherits orphans."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass
