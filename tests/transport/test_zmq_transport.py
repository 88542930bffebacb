"""What only the ZeroMQ transport does: sweeping after the dead, options from the configuration."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from mesh.config import load
from mesh.transport.zmq_transport import LARGEST_SNAPSHOT, ZmqTransport, from_settings

DIES = """
import asyncio, os, pathlib, sys
from mesh.transport.zmq_transport import ZmqTransport

class Deaf:
    def opened(self): pass
    def receive(self, frames): pass
    def data_to_send(self): return []
    def lost(self, reason): pass

async def main():
    transport = ZmqTransport(pathlib.Path(sys.argv[1]))
    await transport.listen(transport.endpoint("dead"), lambda channel: Deaf())
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_the_next_listener_sweeps_up_after_the_killed():
    """A socket whose owner was killed with -9 is gone when another process of the directory has started."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        run = Path(directory) / "run"
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, str(run))
        assert await killed.wait() == -9
        assert [path.suffix for path in sorted(run.iterdir())] == [".sock", ".lock"]
        transport = ZmqTransport(run)
        subscriber = transport.subscriber(transport.endpoint("alive"), lambda topic, frame: None)
        assert [path.name.partition("-")[0] for path in run.iterdir()] == ["alive", "alive"]
        subscriber.close()
        await transport.close()
        assert list(run.iterdir()) == []


async def test_a_small_body_limit_leaves_room_for_a_hubs_snapshot():
    """calls.max_body bounds bodies; what a hub tells of everybody is not one."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        settings = load(None, env={}, flags={"mesh.run_dir": f"{directory}/run", "calls.max_body": 1024})
        transport = from_settings(settings)
        assert transport._options.max_message_bytes > LARGEST_SNAPSHOT
        await transport.close()
