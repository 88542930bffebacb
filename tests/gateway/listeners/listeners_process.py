"""A gateway in a process of its own, on uvloop: `python listeners_process.py MESH_TOML [fd]`.

Prints its public address once it listens. Leaves on a signal, as a real one does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway_fakes import FakeNode
from gateway_shop import open_shop

from mesh.config import Settings, load
from mesh.gateway import app
from mesh.gateway.ports import Node


async def connect(settings: Settings) -> tuple[Node, str]:
    node = FakeNode()
    open_shop(node)
    return node, "mem://gateway"


def main() -> None:
    settings = load(Path(sys.argv[1]), {})
    fd = int(sys.argv[2]) if len(sys.argv) > 2 else None
    uvloop.run(app.serve(settings, fd=fd, connect=connect, started=lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main()
