"""Many workers in one process: `python -m benchmarks.many COUNT`, in the directory of their mesh.

Owns: registering more instances than a machine should have processes for. What a caller pays for their number is the
    same: a record and a link each.
Leaves to others: measuring (instances).

The one place here that looks behind mesh's public face, which runs one worker in a process.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from benchmarks.host import end_with_stdin, run
from benchmarks.service import Echo
from mesh import config
from mesh.worker.worker import Worker


async def serve(count: int) -> None:
    """Run so many until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    settings = config.load()
    workers = [Worker([Echo], settings) for _ in range(count)]
    await asyncio.gather(*(worker.start() for worker in workers))
    await stopping.wait()
    await asyncio.gather(*(worker.drain() for worker in workers))
    await asyncio.gather(*(worker.stop() for worker in workers))


if __name__ == "__main__":
    end_with_stdin()
    run(serve(int(sys.argv[1])), uvloop=True)
