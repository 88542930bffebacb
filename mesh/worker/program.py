"""The lifecycle of a program that speaks HTTP: an instance of the mesh that gateways send requests to.

Owns: the order of starting and stopping, and registering by health.
Leaves to others: signals and the exit code (program_runner), the process (program_process), where it listens
(program_place), one check (program_check), the rules of health (policy.program_health), requests
(gateway.mounts.programs).

Start: listen for the mesh → choose a port → start the command → wait until it is healthy → register.
Stop:  deregister → wait until no client is connected → SIGTERM → SIGKILL to what is left → close.

The process that runs this code, the supervisor's child, answers the control methods of every worker (`$worker.info`,
`$worker.metrics`) and no others. So `mesh ps`, `mesh top`, `mesh roll` and the autoscaler treat it as a worker.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from enum import Enum
from typing import Final

from mesh import ids
from mesh.config import ServiceSettings, Settings
from mesh.config.edge_programs import UNIX
from mesh.discovery.http_address import META
from mesh.discovery.record import Instance
from mesh.errors import SetupError
from mesh.node.node import Node
from mesh.policy.liveness import EXIT_MEMORY, EXIT_START, EXIT_UNHEALTHY
from mesh.policy.program_health import ProgramHealth
from mesh.telemetry.identity import this_process
from mesh.telemetry.logs import get_logger
from mesh.transport.endpoints import ensure_run_dir, parse
from mesh.worker.program_check import check
from mesh.worker.program_place import Place, choose, connections, listeners, owned
from mesh.worker.program_process import MARK, ProgramProcess

log = get_logger("mesh.program")

#: While it starts, it is checked so often: a start takes 0.1 to some seconds.
START_CHECK_S: Final = 0.05
#: While it starts, checks fail until it listens; they are logged when it takes longer than this.
SLOW_START_S: Final = 10.0
#: After it has left the registry, gateways have this long to notice, even when none is connected. A hub notifies them
#: in milliseconds; a busy gateway reads the message some hundred milliseconds later.
NOTICE_S: Final = 1.0
#: How often to look whether clients are connected.
CONNECTED_EVERY_S: Final = 0.1
#: Of the time to stop, the share for clients to leave; the program needs the rest to end.
CLIENTS_SHARE: Final = 0.5
MEMORY_EVERY_S: Final = 2.0


class Stage(Enum):
    """The state of a program's instance."""

    NEW = "new"
    STARTING = "starting"
    SERVING = "serving"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    STOPPED = "stopped"


#: (stage, request) -> stage; a missing key is an error.
LIFE: Final[dict[tuple[Stage, str], Stage]] = {
    (Stage.NEW, "start"): Stage.STARTING,
    (Stage.STARTING, "join"): Stage.SERVING,
    (Stage.SERVING, "leave"): Stage.UNHEALTHY,
    (Stage.UNHEALTHY, "join"): Stage.SERVING,
    (Stage.SERVING, "drain"): Stage.DRAINING,
    (Stage.UNHEALTHY, "drain"): Stage.DRAINING,
    (Stage.NEW, "stop"): Stage.STOPPED,
    (Stage.STARTING, "stop"): Stage.STOPPED,
    (Stage.SERVING, "stop"): Stage.STOPPED,
    (Stage.UNHEALTHY, "stop"): Stage.STOPPED,
    (Stage.DRAINING, "stop"): Stage.STOPPED,
}


class Program:
    """One copy of a program.

    Args:
        name: of the service.
        service: its settings.
        limits: of the program's processes: "memory", "memory_soft", "files", "nice"; see `mesh program --limit`.

    Attributes:
        stage: its state.
        node: the endpoint of this process in the mesh.
        instance_id: of its latest registration; "" before the first.
    """

    def __init__(
        self, name: str, service: ServiceSettings, settings: Settings, limits: Mapping[str, int] | None = None
    ) -> None:
        self.name = name
        self.stage = Stage.NEW
        self.identity = ids.instance_id(name)
        self.node = Node(settings, identity=self.identity)
        self._service = service
        self._settings = settings
        self._limits = dict(limits or {})
        self._soft_bytes = self._limits.pop("memory_soft", 0)
        self._health = ProgramHealth(service.health_failures)
        self._endpoint = ""
        self.instance_id = ""
        self._place: Place | None = None
        self._process: ProgramProcess | None = None

    def _step(self, asked: str) -> None:
        try:
            self.stage = LIFE[self.stage, asked]
        except KeyError:
            raise SetupError(f"program {self.identity} is {self.stage.value}: it cannot {asked}") from None

    # --- starting -----------------------------------------------------------------------------------------

    async def start(self) -> ProgramProcess:
        """Start the command. It does not answer yet.

        Raises:
            SetupError: it cannot be started, or there is no place where it may listen.
        """
        self._step("start")
        settings, service = self._settings, self._service
        await self.node.start()
        self._endpoint = await self.node.listen()
        where = parse(self._endpoint)
        own = where.address.strip("[]") if where.kind == "tcp" else "127.0.0.1"
        if service.http == UNIX:
            ensure_run_dir(settings.mesh.run_dir)
        place = self._place = choose(service.http, self.identity, own=own, run_dir=settings.mesh.run_dir)
        command = [place.fill(word) for word in service.command]
        process = self._process = await ProgramProcess.start(command, self._environment(place), self._limits)
        self._measure(process)
        log.info("program.started", program=self.name, pid=process.pid, http=place.address.text, command=command[0])
        return process

    def _environment(self, place: Place) -> dict[str, str]:
        """The environment of the program: that of this process, and where it is in the mesh."""
        settings = self._settings
        gateway = settings.gateway
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(gateway.host, gateway.host)
        environment = dict(os.environ)
        for name, text in self._service.environment.items():
            # Under supervisor it is set already: that of the release which the program file belongs to.
            environment[name] = place.fill(environment.get(name, text))
        environment["MESH_SERVICE"] = self.name
        environment[MARK] = self.identity
        environment["MESH_GATEWAY"] = (
            f"http://[{host}]:{gateway.port}" if ":" in host else f"http://{host}:{gateway.port}"
        )
        if settings.file is not None:
            environment["MESH_CONFIG"] = str(settings.file)
        if place.address.socket:
            environment["SOCKET"] = place.address.socket
        else:
            environment["HOST"], environment["PORT"] = place.address.host, str(place.address.port)
        return environment

    def _measure(self, process: ProgramProcess) -> None:
        gauge, place = self.node.recorder.gauge, self._place
        assert place is not None
        gauge(
            "program_healthy",
            lambda: float(self._health.state in ("healthy", "doubtful")),
            "Whether the program passes its health checks.",
            service=self.name,
        )
        gauge(
            "program_connections",
            lambda: float(connections(place.address) or 0),
            "Connections that clients hold open at the program.",
            service=self.name,
        )
        gauge(
            "program_memory_bytes",
            lambda: float(process.memory_bytes()),
            "Private memory of the program's processes.",
            service=self.name,
        )

    # --- health -------------------------------------------------------------------------------------------

    async def checked(self) -> int:
        """Check the program periodically, and register it while it is healthy.

        Returns:
            The exit code, when the program must be replaced.
        """
        clock, service = self.node.clock, self._service
        start_s = service.start_timeout_s or self._settings.worker.start_timeout_s
        began = clock.now()
        told = ""
        while True:
            began_at = clock.now()
            why = await self._check()
            action = self._health.note(not why)
            if why and why != told and (self._health.state != "starting" or began_at - began > SLOW_START_S):
                told = why
                log.warning("program.check_failed", program=self.name, reason=why, failed=self._health.failed)
            if action == "join":
                told = ""
                self._join()
            elif action == "leave":
                await self._leave(why)
            elif action == "replace":
                log.error("program.unhealthy", program=self.name, reason=why, failed=self._health.failed)
                return EXIT_UNHEALTHY
            starting = self._health.state == "starting"
            if starting and start_s and clock.now() - began >= start_s:
                log.error("program.start_timeout", program=self.name, seconds=start_s, reason=why)
                return EXIT_START
            every_s = START_CHECK_S if starting else service.health_every_s
            await clock.sleep(max(0.0, every_s - (clock.now() - began_at)))

    async def _check(self) -> str:
        process, place, service = self._process, self._place, self._service
        assert process is not None
        assert place is not None
        why = await check(place.address, service.health, service.health_timeout_s)
        if why or self.stage is Stage.SERVING:
            return why
        # In a thread: on a machine with very many processes and connections this may take some time.
        if not await asyncio.to_thread(self._listens, process, place):
            # Another process has been given the port since it was chosen, perhaps that of another user.
            return f"{place.address.text} belongs to another process"
        return ""

    def _listens(self, process: ProgramProcess, place: Place) -> bool:
        """Whether the program itself listens at its place, as far as the kernel tells."""
        sockets = listeners(place.address)
        return sockets is None or owned(sockets, process.members())

    def _join(self) -> None:
        self._step("join")
        assert self._place is not None
        # An instance that has left does not come back under its id; the first one has that of the process.
        self.instance_id = ids.instance_id(self.name) if self.instance_id else self.identity
        self.node.agent.register(
            Instance(
                service=self.name,
                id=self.instance_id,
                epoch=self.node.epoch,
                worker=self.identity,
                version=self._service.version or this_process().release,
                host=self._settings.mesh.host,
                pid=os.getpid(),
                endpoint=self._endpoint,
                meta={META: self._place.address.text},
            )
        )
        log.info("program.ready", program=self.name, instance=self.instance_id, http=self._place.address.text)

    async def _leave(self, why: str) -> None:
        self._step("leave")
        log.warning("program.left", program=self.name, instance=self.instance_id, reason=why)
        await self.node.agent.leave(self.instance_id)

    async def exhausted(self) -> int:
        """Return an exit code when the program's memory exceeds `memory_soft`; never without such a limit."""
        process = self._process
        assert process is not None
        while True:
            await self.node.clock.sleep(MEMORY_EVERY_S)
            used = process.memory_bytes() if self._soft_bytes else 0
            if used > self._soft_bytes > 0:
                log.error("program.memory_low", program=self.name, used=used, soft=self._soft_bytes)
                return EXIT_MEMORY

    # --- stopping -----------------------------------------------------------------------------------------

    async def drain(self, reason: str, stop_s: float) -> bool:
        """Leave the registry, let clients finish, and end the program; whether it ended by itself in time."""
        if self.stage is Stage.STARTING:
            return await self._end(stop_s)
        self._step("drain")
        began = self.node.clock.now()
        if self.node.server is not None:
            self.node.server.goodbye(reason)
        await self.node.agent.leave(self.instance_id)
        await self._clients_gone(stop_s * CLIENTS_SHARE)
        return await self._end(max(1.0, stop_s - (self.node.clock.now() - began)))

    async def _clients_gone(self, patience_s: float) -> None:
        """Wait until no client is connected: a program that ends at once would cut off its answers."""
        process, place, clock = self._process, self._place, self.node.clock
        assert process is not None
        assert place is not None
        began = quiet_since = clock.now()
        while process.running:
            left = await asyncio.to_thread(connections, place.address)
            now = clock.now()
            if left:
                # A gateway that has not noticed yet may connect again: the wait begins anew.
                quiet_since = now
            elif now - quiet_since >= min(NOTICE_S, patience_s):
                return
            if now - began >= patience_s:
                log.warning("program.clients_remain", program=self.name, connections=left)
                return
            await clock.sleep(CONNECTED_EVERY_S)

    async def _end(self, patience_s: float) -> bool:
        assert self._process is not None
        clean = await self._process.end(patience_s)
        if not clean:
            log.warning("program.killed", program=self.name, seconds=round(patience_s, 1))
        return clean

    async def stop(self) -> None:
        """End whatever still runs, and close everything. A second call has no effect."""
        if self.stage is Stage.STOPPED:
            return
        self._step("stop")
        if self._process is not None:
            await self._process.kill()
        if self._place is not None and self._place.address.socket:
            try:
                os.unlink(self._place.address.socket)
            except FileNotFoundError:
                pass
        await self.node.close()
