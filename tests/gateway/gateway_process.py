"""A gateway in a process of its own, in front of a node without a mesh: `python gateway_process.py [fd]`.

Prints its address once it listens. Leaves on a signal, as a real one does.
"""

from __future__ import annotations

import asyncio
import os
import sys

from gateway_fakes import FakeNode
from gateway_shop import open_shop

from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.gateway import app
from mesh.gateway.ports import Node


async def connect(settings: Settings) -> tuple[Node, str]:
    node = FakeNode()
    open_shop(node)
    return node, "mem://gateway"


def main() -> None:
    settings = Settings(
        mesh=MeshSettings(host="testhost"), gateway=GatewaySettings(drain_s=float(os.environ.get("DRAIN", "3")))
    )
    fd = int(sys.argv[1]) if len(sys.argv) > 1 else None
    asyncio.run(app.serve(settings, fd=fd, port=0, connect=connect, started=lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main()
