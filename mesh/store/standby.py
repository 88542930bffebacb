"""A store that waits until another one releases the folder.

Owns: retrying until the folder is free, and announcing that this store waits.
Leaves to others: the lock (engines.sqlite.folder), and the handover (deploy.store_handover).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from mesh.clock import Clock
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.folder import NEXT_FILE, FolderTaken, waits_for
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.store")

#: A try costs 20 µs; writers wait for this long in addition to the old store's end and the new store's start.
EVERY_S: Final = 0.005


async def open_in_turn(core: Core, wait_s: float, clock: Clock) -> None:
    """Open the store's file; while another store has it, try again for `wait_s`.

    Raises:
        SetupError: as Core.open.
    """
    sign = core.path.parent / NEXT_FILE
    until = clock.now() + wait_s
    said = False
    try:
        while True:
            try:
                core.open()
            except FolderTaken as exc:
                if clock.now() >= until:
                    raise
                if not said:
                    log.info("store.waiting", reason=exc.message, wait_s=wait_s)
                    _write(sign)
                    said = True
            else:
                return
            await clock.sleep(EVERY_S)
    finally:
        if said and waits_for(sign.parent) == os.getpid():
            with contextlib.suppress(OSError):
                sign.unlink()


def _write(sign: Path) -> None:
    new = sign.with_name(f".{sign.name}.new")
    new.touch(mode=0o600)
    new.write_text(f"{os.getpid()}\n", "ascii")
    os.replace(new, sign)
