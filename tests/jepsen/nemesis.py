"""What goes wrong in a run: kills, freezes, clock jumps, a full disk, a pulled cable. By a seed, and written down."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from .cable import Cable
from .history import Event, Recorder
from .processes import Processes

#: Faults that may overlap.
AT_ONCE: Final = 3
#: How much likelier one kind of process is to be chosen than another.
TARGETS: Final = {"store": 3, "worker": 3, "client": 3, "gateway": 2, "hub": 1}


class Nemesis:
    """Attributes:
    kinds: the faults that it can make here.
    """

    def __init__(
        self,
        processes: Processes,
        recorder: Recorder,
        *,
        seed: int,
        freeze_s: tuple[float, float],
        gap_s: tuple[float, float],
        cable: Cable | None,
        clock: Path | None,
        disk: Path | None,
    ) -> None:
        """Args:
        freeze_s: the shortest and the longest freeze; cuts and full disks are as long.
        gap_s: between the beginnings of two faults.
        clock: libfaketime's file of the store; disk: the store's, which is small.
        """
        self._processes = processes
        self._recorder = recorder
        self._rng = random.Random(f"nemesis/{seed}")
        self._freeze_s = freeze_s
        self._gap_s = gap_s
        self._cable = cable
        self._clock = clock
        self._disk = disk
        self._busy: set[str] = set()
        all_: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill": (4, self._kill),
            "freeze": (5, self._freeze),
        }
        if clock is not None:
            all_["clock"] = (1, self._jump)
        if disk is not None:
            all_["disk"] = (1, self._fill)
        if cable is not None:
            all_["cut"] = (2, self._cut)
        self.kinds: Mapping[str, tuple[int, Callable[[], Awaitable[None]]]] = all_

    async def run(self, wanted: list[str], until_at: float) -> None:
        """Make faults until then, and undo the last ones."""
        kinds = [kind for kind in wanted if kind in self.kinds]
        weights = [self.kinds[kind][0] for kind in kinds]
        async with asyncio.TaskGroup() as group:
            while kinds:
                await asyncio.sleep(self._rng.uniform(*self._gap_s))
                if time.monotonic() >= until_at:
                    break
                if len(self._busy) < AT_ONCE:
                    (kind,) = self._rng.choices(kinds, weights)
                    group.create_task(self.kinds[kind][1](), name=f"nemesis {kind}")
        if self._clock is not None:
            self._clock.write_text("+0")

    def _note(self, kind: str, target: str, what: str, seconds: float = 0.0) -> None:
        self._recorder.write(
            Event(
                time.monotonic(), "fault", do=kind, key=target, value=what, error=f"{seconds:.1f} s" if seconds else ""
            )
        )

    def _target(self) -> str:
        kinds = list(TARGETS)
        while True:
            (kind,) = self._rng.choices(kinds, [TARGETS[each] for each in kinds])
            name = self._processes.choose(self._rng, kind)
            if name not in self._busy:
                return name

    async def _kill(self) -> None:
        name = self._target()
        self._note("kill", name, name.partition("-")[0])
        self._processes.kill(name)

    async def _freeze(self) -> None:
        name = self._target()
        seconds = self._rng.uniform(*self._freeze_s)
        self._note("freeze", name, name.partition("-")[0], seconds)
        self._busy.add(name)
        thaw = self._processes.freeze(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            thaw()
            self._busy.discard(name)

    async def _jump(self) -> None:
        """The store's wall clock, there and, with the next jump, elsewhere."""
        assert self._clock is not None
        by = self._rng.choice((-1, 1)) * self._rng.uniform(*self._freeze_s)
        self._note("clock", f"{by:+.1f} s", "forward" if by > 0 else "back")
        new = self._clock.with_suffix(".new")
        new.write_text(f"{by:+.3f}")
        os.replace(new, self._clock)

    async def _cut(self) -> None:
        assert self._cable is not None
        if "cable" in self._busy:
            return
        seconds = self._rng.uniform(*self._freeze_s)
        self._note("cut", "cable", "", seconds)
        self._busy.add("cable")
        self._cable.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._cable.join()
            self._busy.discard("cable")

    async def _fill(self) -> None:
        assert self._disk is not None
        if "disk" in self._busy:
            return
        seconds = min(self._rng.uniform(*self._freeze_s), 15.0)
        self._note("disk", "store", "full", seconds)
        self._busy.add("disk")
        filler = self._disk / "filler"
        try:
            await asyncio.to_thread(_take_all, filler)
            await asyncio.sleep(seconds)
        finally:
            filler.unlink(missing_ok=True)
            self._busy.discard("disk")


def _take_all(filler: Path) -> None:
    """Fill the disk to its last block."""
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
