"""The lock of a host: only one deployment at a time changes the mesh on it.

Two files below the prefix, both locked by flock(2), so that a lock ends with the process that holds it:

- `.deployment`, exclusive: held for the whole deployment by a small process on the host (the keeper), which every
  module of that deployment refers to by its token. The file's text identifies the deployment. The keeper ends when the
  text changes, or when the control machine has not touched the file for LEASE_S.
- `.deployment.work`, shared: held by each command or module while it makes changes, also by `mesh roll` and other
  commands that are called by hand (mesh.deploy.deployment_lock). A deployment begins, and its keeper ends, only
  when no process holds this lock. So work that continues after a lost connection is still protected.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any, TextIO

from ansible.module_utils.mesh_place import Refused

LOCK = ".deployment"
WORK = ".deployment.work"
#: The environment variable with the token of the deployment of a module or command.
VARIABLE = "MESH_DEPLOYMENT"
#: The control machine touches the file four times as often.
LEASE_S = 60.0
LOOK_EVERY_S = 0.2


class Alone:
    """The lock of one host.

    Args:
        prefix: the installation directory of the mesh.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.path = os.path.join(prefix, LOCK)
        self._work = os.path.join(prefix, WORK)

    def holder(self) -> dict[str, Any]:
        """The deployment that holds the lock; empty when there is none."""
        try:
            with open(self.path, encoding="utf-8") as file:
                if _locks(file, fcntl.LOCK_SH):
                    return {}
                text = file.read()
        except OSError:
            return {}
        return {"what": "a deployment", **_read(text)}

    def take(self, token: str, about: dict[str, Any]) -> str:
        """Take the lock for a deployment, or check it again; returns why the deployment cannot begin yet, or "".

        Args:
            about: `who`, `what` and `since`, to show to waiting deployments.
        """
        if self.holder().get("token") != token:
            file = self._open(self.path)
            if not _locks(file, fcntl.LOCK_EX):
                file.close()
                return tell(self.holder())
            file.truncate(0)
            file.write(json.dumps({"token": token, **about}))
            file.flush()
            os.utime(self.path)
            self._keep(file, token)
            file.close()
        # The deployment cannot begin while work continues that began before it had the lock.
        with self._open(self._work) as work:
            return "" if _locks(work, fcntl.LOCK_EX) else self._command()

    def leave(self, token: str) -> None:
        """End the keeper of this deployment."""
        if self.holder().get("token") == token:
            with open(self.path, "r+", encoding="utf-8") as file:
                file.truncate(0)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Hold the work lock while making changes for the deployment named in the environment.

        Raises:
            Refused: the deployment does not hold the lock of this host (any more).
        """
        token = os.environ.get(VARIABLE, "")
        # On a bare host the group of the file did not exist yet when the lock was taken.
        self._open(self.path).close()
        with self._open(self._work) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            holder = self.holder()
            if not token or holder.get("token") != token:
                now = f"; {tell(holder)}" if holder else ""
                raise Refused(
                    f"this deployment does not hold the lock of {self._prefix}: it was silent for {LEASE_S:g} s, or "
                    f"the playbook does not import alone.yml{now}. This step changed nothing"
                )
            yield

    # --- inside -------------------------------------------------------------------------------------------

    def _open(self, path: str) -> TextIO:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - its owner closes it
        # The mesh's own user reads this file, too; its group is that of the run directory.
        with contextlib.suppress(OSError):
            os.fchmod(file.fileno(), 0o640)
            os.fchown(file.fileno(), -1, os.stat(os.path.join(self._prefix, "run")).st_gid)
        return file

    def _command(self) -> str:
        """The name of the command that currently holds the work lock."""
        try:
            with open(os.path.join(self._prefix, "run/programs/.lock"), encoding="utf-8") as file:
                said = "" if _locks(file, fcntl.LOCK_SH) else file.read().strip()
        except OSError:
            said = ""
        return f"{said or 'a command or an interrupted deployment'} is changing the processes"

    def _keep(self, file: TextIO, token: str) -> None:
        """Start the keeper, which holds the lock for as long as the deployment lasts."""
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        try:
            os.setsid()
            if os.fork() == 0:
                os.chdir("/")
                null = os.open(os.devnull, os.O_RDWR)
                for each in (0, 1, 2):
                    os.dup2(null, each)
                # Keep only the lock: neither ansible's pipes nor other files of the module.
                lock = os.dup2(file.fileno(), 3)
                os.closerange(4, 4096)
                _stay(lock, token, self._work)
        finally:
            os._exit(0)


def _stay(lock: int, token: str, work: str) -> None:
    heard, touched = time.monotonic(), 0
    while True:
        time.sleep(LOOK_EVERY_S)
        about = os.fstat(lock)
        if about.st_mtime_ns != touched:
            # Measure with the monotonic clock: the host's wall clock may be set meanwhile.
            heard, touched = time.monotonic(), about.st_mtime_ns
        own = _read(os.pread(lock, 65536, 0).decode("utf-8", "replace")).get("token") == token
        if own and about.st_nlink and time.monotonic() - heard < LEASE_S:
            continue
        with open(work, "a+", encoding="utf-8") as file:
            if _locks(file, fcntl.LOCK_EX):
                return


def tell(holder: dict[str, Any]) -> str:
    """A readable description of the deployment."""
    who = f" of {holder['who']}" if holder.get("who") else ""
    since = f", since {holder['since']}" if holder.get("since") else ""
    return f"{holder.get('what', 'a deployment')}{who} is in progress{since}"


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _locks(file: TextIO, how: int) -> bool:
    """Lock a file without waiting; whether this succeeded. The lock ends when the file is closed."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def working(module: Any, prefix: str) -> contextlib.AbstractContextManager[None]:
    """`Alone.work` for a module: a check run changes nothing, and needs no lock."""
    if module.check_mode:
        return contextlib.nullcontext()
    return _or_fail(module, prefix)


@contextlib.contextmanager
def _or_fail(module: Any, prefix: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Alone(prefix).work())
        except (Refused, OSError) as exc:
            module.fail_json(msg=str(exc))
        yield


__all__ = ["LEASE_S", "LOCK", "VARIABLE", "WORK", "Alone", "tell", "working"]
