"""Replaces the store with almost no interruption.

Owns: which process holds the store's folder while its program is replaced.
Leaves to others: waiting for the folder (store.standby), going back to a release (static_programs).

Only one process at a time can hold the folder. If a store were stopped and then started, writers would wait for as long
as Python takes to start; so the next store is started beforehand, and waits for the folder with everything imported and
the hubs found. supervisor cannot rename a process, so this happens twice: a spare store, which runs from the new
release, takes over from the old one; then the program `store` is started again, waits in the same way, and takes over
from the spare. A store that cannot start at all is detected while the old one still serves.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mesh.config import Settings
from mesh.deploy.halt import Halt
from mesh.deploy.processes import Crew
from mesh.deploy.static_programs import Standing, command, current, section
from mesh.engines.sqlite.folder import owner, waits_for
from mesh.supervisord.layout import Layout, Program

#: The option that makes `mesh store` wait for the folder instead of ending.
WAIT: Final = "--wait"


class StoreRelay(Standing):
    """The program `store` during a roll."""

    def __init__(
        self,
        crew: Crew,
        layout: Layout,
        settings: Settings,
        program: Program,
        patience_s: float,
        settle_s: float,
        halt: Halt,
    ) -> None:
        super().__init__(crew, layout, program, patience_s, settle_s, halt)
        self._layout = layout
        self._dir = settings.store.dir
        self._log_dir = settings.mesh.log_dir
        self._spare = f"{program.name}_spare"
        self._spared = False

    async def forward(self) -> int:
        """As Standing.forward, with a spare store in between."""
        if len(self.ran) != 1 or not all(self.ran.values()) or self.program.group != self.program.name:
            return await super().forward()
        self.halt.check()
        await self._prepare()
        return await super().forward()

    async def replace(self, name: str) -> None:
        """Hand the folder from the old store to the spare one, and from the spare one to the new store."""
        if not self._spared:
            await super().replace(name)
            return
        crew, stop_s = self.crew, self.program.stop_s
        await crew.end([name], stop_s)
        spare = await self.answer([self._spare])
        self._let_wait(self.name)
        crew.begin([name])
        await self._waits(name)
        # By now the spare store has held the folder for as long as a start takes.
        await crew.running(spare)
        await crew.end([self._spare], stop_s)
        self._pids |= await self.answer([name])
        self._forget_spare()
        self.let_go()

    async def back(self, *, sound: bool = False) -> str:
        """Go back; the spare store leaves first, as it holds the folder or waits for it."""
        if self._spared:
            await self.crew.end([self._spare], self.program.stop_s)
            self._forget_spare()
            if not self.pinned:
                # The earlier code is gone. The program itself may start at the next try, as the spare one did.
                self.let_go()
                self.crew.begin(self.ran)
        return await super().back(sound=sound)

    # --- inside -------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Start the spare store, and check that it can do everything except open the file."""
        self._spared = True
        log = f"{self._log_dir}/{self._spare}.log"
        self._let_wait(self._spare, autorestart="false", stdout_logfile=log.replace("%", "%%"))
        await self._waits(self._spare)

    def _let_wait(self, program: str, **keys: str) -> None:
        """Configure a program like the store of the new release, with a command that waits for the folder."""
        release = current(self._layout, self.program)
        words = f"{command(self.program, release)} {WAIT} {self.patience_s + self.program.stop_s:.0f}"
        text = section(self.program, release, name=program, command=words, **keys)
        self.crew.roster.pin(program, text)
        self.crew.control.sync(program)

    async def _waits(self, name: str) -> None:
        async def missing(pids: Collection[int]) -> Collection[int]:
            # It holds the folder at once if the other store has just died.
            return set(pids) - {waits_for(self._dir), owner(self._dir)}

        await self.crew.until(
            [name], self.patience_s, missing, lambda pid: "it does not start to wait for the directory of the store"
        )

    def _forget_spare(self) -> None:
        self._spared = False
        self.crew.roster.unpin(self._spare)
        self.crew.control.sync(self._spare)
