"""The service that the command line is tried with, and how a command line is run in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping

SERVICE = '''
from collections.abc import AsyncIterator

import mesh
from mesh import Event, on, rpc


class OutOfStock(mesh.ServiceError):
    code = "out_of_stock"


class Greeting(mesh.Service):
    """Says hello."""

    name = "greeting"

    @rpc
    async def hello(self, name: str) -> str:
        """A greeting."""
        return f"Hello, {name}!"

    @rpc
    async def add(self, a: int, b: int, timeout: int = 0) -> dict[str, int]:
        return {"sum": a + b, "timeout": timeout}

    @rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @rpc
    async def reverse(self, body: bytes) -> bytes:
        return body[::-1]

    @rpc
    async def fail(self) -> None:
        raise OutOfStock("no more greetings")
'''

#: How a command line is run: one that a user types, in a process of its own.
Mesh = Callable[..., subprocess.CompletedProcess[str]]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mesh.cli.main", *words]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    # The project of a test, not the one that this checkout is.
    return {**clean, "PYTHONUNBUFFERED": "1", "TERM": "xterm", **(extra or {})}


def free_port() -> int:
    """A TCP port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
