"""A mesh of its own for one benchmark: hub, workers and gateways as processes, in a directory that goes away.

Owns: starting what `mesh` starts, in the way its users do, and a client process beside it.
Leaves to others: what is measured.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import ROOT, Child, ChildFailed, Children, free_ports, python, wait_for_port

MESH = "mesh.cli.main"
SERVICES = "benchmarks.service"


def missing() -> list[str]:
    """What a mesh needs and this checkout lacks."""
    parts = (ROOT / "mesh" / "node" / "node.py", ROOT / "mesh" / "cli" / "main.py")
    return [str(path.relative_to(ROOT)) for path in parts if not path.exists()]


class Stage:
    """Processes of one mesh; made by `stage()`."""

    def __init__(self, directory: Path, children: Children) -> None:
        self.directory = directory
        self.children = children
        self._count = 0

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self._count}"

    async def mesh(self, *arguments: str, env: dict[str, str] | None = None) -> Child:
        """Start `mesh ARGUMENTS…`; returns at once."""
        return await self.children.start(self._name(arguments[0]), python(MESH, *arguments), env=env)

    async def hub(self) -> Child:
        return await self.mesh("hub")

    async def worker(self, *services: str) -> Child:
        """A worker with these classes of benchmarks.service."""
        return await self.mesh("run", *(f"{SERVICES}:{name}" for name in services))

    async def gateway(self) -> tuple[Child, int]:
        """A gateway on a free port, which accepts connections when this returns."""
        (port,) = free_ports(1)
        child = await self.mesh("gateway", env={"MESH_GATEWAY_HOST": "127.0.0.1", "MESH_GATEWAY_PORT": str(port)})
        await wait_for_port(port, 15)
        return child, port

    async def client(self) -> Child:
        """A process that is connected to this mesh and does what `benchmarks.asker` knows."""
        return await self.children.start_client(self._name("client"), python("benchmarks.asker"))

    async def found(self, client: Child, service: str, instances: int = 1, timeout: float = 20.0) -> dict[str, Any]:
        """Wait until the client knows so many instances."""
        question = {"verb": "wait", "service": service, "instances": instances, "timeout": timeout}
        return await client.ask(question, timeout + 5)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """An empty mesh: nothing runs yet.

    Raises:
        ChildFailed: this checkout has no mesh that could run.
    """
    if lacks := missing():
        raise ChildFailed(f"mesh cannot run yet: {', '.join(lacks)} is missing")
    async with contextlib.AsyncExitStack() as stack:
        # /tmp, not TMPDIR: a socket's path may have 107 characters.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp")))
        (directory / "mesh.toml").touch()
        yield Stage(directory, await stack.enter_async_context(Children(directory)))
