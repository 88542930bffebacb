"""The store's process, from its start to its exit code.

Owns: stopping it when the file turns out to be corrupt. Leaves to others: the worker's life cycle (worker.worker).
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from mesh.config import Settings
from mesh.store.service import Store
from mesh.worker import worker
from mesh.worker.worker import Worker

#: `startsecs` of the store's program in supervisord.conf.
STARTSECS: Final = 1.0


async def run(settings: Settings, wait_s: float = 0.0) -> int:
    """Run a store until SIGTERM or SIGINT, which drain it; return the exit code.

    Args:
        wait_s: how long to wait for a folder that another store has locked.

    Raises:
        Damaged: the file is corrupt; the message describes the remedy.
        MeshError: the store could not start.
    """
    stores: list[Store] = []

    def ready(running: Worker) -> None:
        for service in running.services:
            if isinstance(service, Store):
                stores.append(service)
                service.on_fatal = _leave
                if service.fatal is not None:
                    _leave()

    # The process runs one store.
    Store.wait_s = wait_s
    code = await worker.run([Store], settings, on_ready=ready)
    for store in stores:
        if store.fatal is not None:
            raise store.fatal
    return code


def outlast_start() -> None:
    """Delay exit code 5: supervisor treats an exit within `startsecs` as a failed start, and restarts the program
    whatever the exit code."""
    if os.environ.get("SUPERVISOR_ENABLED"):
        time.sleep(STARTSECS + 0.5)


def _leave() -> None:
    """Stop as on supervisor's SIGTERM: remaining requests are answered, and links are closed in order."""
    os.kill(os.getpid(), signal.SIGTERM)
