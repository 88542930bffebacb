"""The programs of `mesh dev`: those that mesh.toml declares, one copy each, as children of its process.

Owns: starting them, waiting until they are healthy, and stopping them.
Leaves to others: one program (worker.program).
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from mesh.config import ServiceSettings, Settings
from mesh.config.env_file import read_env_file
from mesh.errors import Unavailable
from mesh.worker.program import Program, Stage

#: How long a program may take to become healthy; a saved file starts everything again, so it may also be broken now.
READY_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.02


def declared(settings: Settings) -> list[str]:
    """The services that are programs."""
    return [name for name, service in settings.services.items() if service.command]


class DevPrograms:
    """The programs of one `mesh dev`.

    Args:
        names: of the services.

    Attributes:
        instance_ids: of the programs that are registered.
    """

    def __init__(self, names: list[str], settings: Settings) -> None:
        self._settings = settings
        self._programs = [Program(name, _own_service(name, settings), settings) for name in names]
        self._tasks: list[asyncio.Task[int]] = []
        self.instance_ids: list[str] = []

    async def start(self) -> None:
        """Start all of them; returns when each is healthy.

        Raises:
            SetupError: one cannot be started.
            Unavailable: one ended, or did not become healthy.
        """
        await asyncio.gather(*map(self._start, self._programs))

    async def _start(self, program: Program) -> None:
        process = await program.start()
        checks = asyncio.create_task(program.checked(), name=f"mesh.program.{program.name}")
        self._tasks.append(checks)
        for _ in range(int(READY_S / _LOOK_EVERY_S)):
            if program.stage is Stage.SERVING:
                self.instance_ids.append(program.instance_id)
                return
            if process.ended.done() or checks.done():
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        raise Unavailable(f"the program {program.name} does not become healthy; its output shows why")

    async def stop(self) -> None:
        """Drain and end all of them. A second call has no effect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*map(self._stop, self._programs))
        self._tasks, self._programs = [], []

    async def _stop(self, program: Program) -> None:
        if program.stage not in (Stage.NEW, Stage.STOPPED):
            await program.drain("stopping", self._settings.worker.stop_timeout_s)
        await program.stop()


def _own_service(name: str, settings: Settings) -> ServiceSettings:
    """Its settings, with the variables of its env_file, which otherwise only its own process reads."""
    service = settings.services[name]
    if not service.env_file:
        return service
    variables = read_env_file(settings.root / service.env_file)
    return msgspec.structs.replace(service, environment={**service.environment, **variables})
