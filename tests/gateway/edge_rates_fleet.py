"""Several gateways, each in a process of its own, in front of one worker and one hub in the process of the test."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

import mesh
from mesh import config, http
from mesh.clock import LoopClock
from mesh.discovery.hub import Hub
from mesh.policy.ownership import Owners
from mesh.transport.zmq_transport import from_settings
from mesh.worker.worker import Worker
from tests.patience import PATIENCE_S


class Till(mesh.Service):
    """Counts what reaches it."""

    @http.get("/fifty", limit="50/m")
    async def fifty(self) -> int:
        return 1

    @http.get("/nine", limit="9/h")
    async def nine(self) -> int:
        return 1

    @http.get("/quick", limit="20/s")
    async def quick(self) -> int:
        return 1


class Gate:
    """One gateway."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.address = address
        self.session = session
        self.id = ""

    async def get(self, path: str, caller: str = "") -> int:
        async with self.session.get(self.address + path, headers={"X-Caller": caller}) as answer:
            await answer.read()
            return answer.status

    async def status(self) -> dict[str, Any]:
        async with self.session.get(f"{self.address}/mesh") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def metric(self, name: str, label: str = "") -> float:
        """The sum of this gateway's series of a metric, of those with a label."""
        async with self.session.get(f"{self.address}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = [line for line in lines if line.startswith(name) and self.id in line and label in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    async def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        await self.process.wait()


class Fleet:
    """The gateways."""

    def __init__(self, run_dir: Path, session: aiohttp.ClientSession, flags: dict[str, str]) -> None:
        self.run_dir = run_dir
        self.session = session
        self.flags = flags
        self.gates: list[Gate] = []
        self.started: list[Gate] = []

    async def start(self, count: int) -> None:
        """Start more gateways; returns when all gateways know all of them, and the worker."""
        self.started += await asyncio.gather(*(self._start() for _ in range(count)))
        self.gates += self.started[-count:]
        await self.until_known(len(self.gates))

    async def _start(self) -> Gate:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).parent / "edge_rates_process.py"),
            str(self.run_dir),
            *(f"{key}={value}" for key, value in self.flags.items()),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            address = (await process.stdout.readline()).decode().strip()
        assert address.startswith("http://"), "the gateway did not start"
        return Gate(process, address, self.session)

    async def until_known(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for gate in self.gates:
                while True:
                    status = await gate.status()
                    gate.id = status["gateway"]["id"]
                    services = {each["name"]: each["instances"] for each in status["services"]}
                    if len(services.get("gateway", [])) == count and services.get("till"):
                        break
                    await asyncio.sleep(0.01)

    def callers_of(self, gate: Gate, count: int, *, first: int = 0) -> list[str]:
        """Names of callers that a gateway owns."""
        owners = Owners("")
        owners.change(each.id for each in self.gates)
        names = (f"caller-{number}" for number in range(first, 100_000))
        return [name for name, _ in zip((n for n in names if owners.of(f"principal {n}") == gate.id), range(count))]  # noqa: B905

    async def flood(self, path: str, caller: str, count: int, gates: list[Gate] | None = None) -> list[int]:
        """Send requests of one caller to all gateways at once; how many each of them admitted."""
        targets = gates if gates is not None else self.gates

        async def one(gate: Gate) -> int:
            return sum(
                [status == 200 for status in await asyncio.gather(*(gate.get(path, caller) for _ in range(count)))]
            )

        return await asyncio.gather(*(one(gate) for gate in targets))


@asynccontextmanager
async def fleet(count: int, **flags: str) -> AsyncIterator[Fleet]:
    with TemporaryDirectory(prefix="mesh-") as directory:
        own = {key: value for key, value in flags.items() if key != "ASK_S"}
        settings = config.load(Path("/dev/null"), env={}, flags={**own, "mesh.run_dir": directory})
        transport = from_settings(settings)
        hub = Hub(transport, LoopClock(), lease_s=settings.discovery.lease_s, identity="hub", epoch=1)
        await hub.start(settings.mesh.hubs[0])
        worker = Worker([Till], settings)
        await worker.start()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            found = Fleet(Path(directory), session, flags)
            try:
                await found.start(count)
                yield found
            finally:
                for gate in found.started:
                    if gate.process.returncode is None:
                        await gate.end(signal.SIGTERM)
        await worker.stop()
        await hub.stop()
        await transport.close()
