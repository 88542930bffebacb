"""The store's process, from its start to its exit code.

Owns: ending it when the file turns out to be damaged. Leaves to others: a worker's life (service.worker).
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from mesh.config import Settings
from mesh.service import worker
from mesh.service.worker import Worker
from mesh.store.service import Store

#: Of the store's program in supervisord.conf.
STARTSECS: Final = 1.0


async def run(settings: Settings, wait_s: float = 0.0) -> int:
    """Run a store until SIGTERM or SIGINT, which drain it; the exit code.

    Args:
        wait_s: how long to wait for a folder that another store has.

    Raises:
        Damaged: the file is not as it was written; the message says what to do.
        MeshError: it could not start.
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
    """Before exit code 5: supervisor takes an end within `startsecs` for a failed start, and tries again whatever
    the code was."""
    if os.environ.get("SUPERVISOR_ENABLED"):
        time.sleep(STARTSECS + 0.5)


def _leave() -> None:
    """As if told by supervisor: what can still be answered is, and links are closed in order."""
    os.kill(os.getpid(), signal.SIGTERM)
