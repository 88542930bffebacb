"""Restores deleted files and directories that a running supervisord needs.

supervisord opens its logs, its control socket and its pid file once. After `rm -rf logs` it cannot start any process
("error making dispatchers"), and after `rm -rf run` no command finds it, although everything still serves. This module
runs inside supervisord (see plugin) and restores missing files.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class RuntimeFiles:
    """The runtime files of one supervisord."""

    def __init__(self, supervisord: Any, write_programs: Callable[[], None]) -> None:
        """
        Args:
            write_programs: writes the program files again, from mesh.toml.
        """
        self._supervisord = supervisord
        self._options = supervisord.options
        self._write_programs = write_programs

    def prepare(self, process: Any) -> None:
        """Make the directories of a process's logs, just before it starts."""
        for path in _logs(process):
            _make_directory(Path(path).parent)

    def check(self) -> None:
        """Restore missing files; called every few seconds."""
        self._logs()
        self._pidfile()
        self._control_sockets()

    def _logs(self) -> None:
        options = self._options
        groups = self._supervisord.process_groups.values()
        for process in (each for group in groups for each in group.processes.values()):
            if process.pid and any(not os.path.exists(path) for path in _logs(process)):
                self.prepare(process)
                process.reopenlogs()
        if options.logfile and not os.path.exists(options.logfile):
            _make_directory(Path(options.logfile).parent)
            options.reopenlogs()
            options.logger.warn("the log directory was deleted; created it again")

    def _pidfile(self) -> None:
        pidfile = Path(self._options.pidfile)
        if not pidfile.exists():
            _make_directory(pidfile.parent)
            self._options.write_pidfile()

    def _control_sockets(self) -> None:
        for config, server in self._options.httpservers:
            if config["family"] == socket.AF_UNIX and not os.path.exists(config["file"]):
                _make_directory(Path(config["file"]).parent)
                _listen_again(config, server)
                self._write_programs()
                self._options.logger.warn(f"the control socket {config['file']} was deleted; created it again")


def _listen_again(config: dict[str, Any], server: Any) -> None:
    path = config["file"]
    temporary = f"{path}.{os.getpid()}"
    fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh.setblocking(False)
    fresh.bind(temporary)
    # Use a temporary name until it listens with the right permissions, as supervisor itself does.
    os.chmod(temporary, config["chmod"])
    fresh.listen(1024)
    os.rename(temporary, path)
    server.del_channel()
    server.socket.close()
    server.set_socket(fresh)


def _logs(process: Any) -> Iterable[str]:
    paths = (process.config.stdout_logfile, process.config.stderr_logfile)
    return [path for path in paths if isinstance(path, str)]


def _make_directory(directory: Path) -> None:
    # 0700, as in `mesh up`: a user who can open the control socket controls all processes.
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
