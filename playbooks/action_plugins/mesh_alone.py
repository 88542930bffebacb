"""The control machine's half of a host's lock: waits for it, and releases it when ansible-playbook ends.

A separate process beside ansible-playbook renews the lock, and releases it when the playbook ends, also by Ctrl-C or
SIGKILL. The module of the same name does the work on the host.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

LOOK_EVERY_S = 0.5
#: How often a waiting deployment repeats its message.
SAY_EVERY_S = 15.0


class ActionModule(ActionBase):
    """See library/mesh_alone.py."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> Any:
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        args["who"] = f"{_user()}@{socket.gethostname()} (pid {os.getppid()})"
        args["since"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
        host, said = (task_vars or {}).get("inventory_hostname", ""), 0.0
        while True:
            done = self._execute_module(module_name="mesh_alone", module_args=args, task_vars=task_vars)
            if done.get("failed") or not done.get("why"):
                break
            if time.time() >= float(args["deadline"]):
                leave = {**args, "leave": True}
                self._execute_module(module_name="mesh_alone", module_args=leave, task_vars=task_vars)
                why = f"{host}: {done['why']}; nothing was changed. mesh_wait_s sets how long to wait"
                result.update(failed=True, msg=why)
                return result
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                Display().display(f"{host}: waiting; {done['why']}")
            time.sleep(LOOK_EVERY_S)
        if done.get("path"):
            self._keep(done["path"], str(args["token"]), float(done["lease_s"]))
        result.update(done)
        return result

    def _keep(self, path: str, token: str, lease_s: float) -> None:
        """Start a process that runs as long as ansible-playbook."""
        playbook = os.getppid()
        began = _began(playbook)
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        try:
            os.setsid()
            if os.fork() == 0:
                null = os.open(os.devnull, os.O_RDWR)
                for each in (0, 1, 2):
                    os.dup2(null, each)
                self._stay(playbook, began, shlex.quote(path), shlex.quote(token), lease_s)
        finally:
            os._exit(0)

    def _stay(self, playbook: int, began: str, path: str, token: str, lease_s: float) -> None:
        touched = time.monotonic()
        while _alive(playbook, began):
            time.sleep(LOOK_EVERY_S)
            if time.monotonic() - touched > lease_s / 4:
                touched = time.monotonic()
                self._tell(f"grep -qs {token} {path} && touch {path}")
        self._tell(f"grep -qs {token} {path} && : > {path}")

    def _tell(self, command: str) -> None:
        try:
            self._low_level_execute_command(command, sudoable=True)
        except Exception:
            return  # a connection may raise anything; the lock on the host expires by itself


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _began(pid: int) -> str:
    """The start time of a process in /proc; "" without /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(pid: int, began: str) -> bool:
    if began:
        return _began(pid) == began
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
