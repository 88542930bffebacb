"""A process of its own for the contract suite: listens or dials over ZeroMQ until its stdin ends or it is killed.

    python transport_peer.py listen|dial|stall ipc|tcp RUN_DIR ENDPOINT [KEYS]

It prints one line when it stands: the endpoint it listens on, or "opened". A listener echoes every message.
"stall" dials, prints, and then stops reading for good, its process stopped, as one that hangs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from mesh.transport.curve.key_files import read_secret
from mesh.transport.curve.key_ring import Keyring
from mesh.transport.zmq_transport import ZmqTransport

BINDS = {"ipc": "ipc", "tcp": "tcp://127.0.0.1:*"}


class Echo:
    def __init__(self, channel, mode: str) -> None:
        self.channel = channel
        self.mode = mode
        self.out: list = []

    def opened(self) -> None:
        if self.mode != "listen":
            self.out.append([b"hello"])
            self.channel.wake()
            asyncio.get_running_loop().call_later(0.05, self.report)

    def report(self) -> None:
        print("opened", flush=True)
        if self.mode == "stall":
            os.kill(os.getpid(), signal.SIGSTOP)

    def receive(self, frames) -> None:
        if self.mode == "listen":
            self.out.append(frames)
            self.channel.wake()

    def data_to_send(self) -> list:
        out, self.out = self.out, []
        return out

    def lost(self, reason: str) -> None:
        pass


async def main(mode: str, kind: str, run_dir: str, endpoint: str, keys: str = "") -> None:
    ring = Keyring(Path(keys), read_secret(Path(keys), mode)) if keys else None
    transport = ZmqTransport(Path(run_dir), bind=BINDS[kind], ring=ring)
    try:
        if mode == "listen":
            listener = await transport.listen(endpoint, lambda channel: Echo(channel, mode))
            print(listener.endpoint, flush=True)
        else:
            transport.dial(endpoint, lambda channel: Echo(channel, mode))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    finally:
        await transport.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
