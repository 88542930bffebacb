"""Hostile peers against real processes: who of them dies, what they hold afterwards, and what their neighbours notice.

    python -m tests.chaos.hostile --tries 200                      # make hostile
    python -m tests.chaos.hostile --tries 20 --target worker --link curve --attack bundles

Starts a hub, a store, a worker and a gateway in a directory of its own, over ipc or over tcp with CURVE keys. Each try
is one connection that says hello, sends as much as it can for `--seconds`, reads nothing and closes. The gateway is
also made to dial a worker that behaves so. While that goes on, a neighbour calls the worker. Exit code 1 when a process
died, or a call of the neighbour failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

import mesh
from mesh.config import load
from mesh.transport.curve import key_store

from .hostile_peers import ATTACKS, Attack, HostileWorker, KeyedPeer, Peer, RawPeer, attack

MESH: Final = str(Path(sys.executable).parent / "mesh")
#: Process -> the command that starts it, and the name of its key.
PROGRAMS: Final = {
    "hub": (("hub",), "hub"),
    "store": (("store",), "mesh-store"),
    "worker": (("run", "victim.py"), "victim"),
    "gateway": (("gateway",), "gateway"),
}
VICTIM: Final = """\
import mesh

class Victim(mesh.Service):
    @mesh.rpc
    async def echo(self, text: str) -> str:
        return text
"""
PATIENCE_S: Final = 60.0
AT_ONCE: Final = 4


@dataclass
class Found:
    """What became of the tries against one process."""

    tries: int = 0
    deaths: int = 0
    exit_codes: list[int] = field(default_factory=list)
    cut_after_s: list[float] = field(default_factory=list)
    before_mb: float = 0.0
    most_mb: float = 0.0
    after_mb: float = 0.0
    calls: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.deaths and not self.failed

    def line(self) -> str:
        cut = sorted(self.cut_after_s)[len(self.cut_after_s) // 2] if self.cut_after_s else 0.0
        return (
            f"{self.deaths} deaths in {self.tries} tries; cut after {cut:.2f} s; "
            f"memory {self.before_mb:.0f} MB, at most {self.most_mb:.0f}, then {self.after_mb:.0f}; "
            f"neighbour: {len(self.failed)} of {self.calls} failed"
        )


class Victims:
    """Four processes of one mesh; one that dies is started again, and that is counted."""

    def __init__(self, root: Path, link: str) -> None:
        self.root = root
        self.keyed = link == "curve"
        self.port = free_port()
        hub_port = free_port()
        self.hub = f"tcp://127.0.0.1:{hub_port}" if self.keyed else f"ipc://{root}/run/hub.sock"
        (root / "victim.py").write_text(VICTIM)
        text = f'[mesh]\nrun_dir = "{root}/run"\nhubs = ["{self.hub}"]\n'
        if self.keyed:
            text += 'bind = "tcp://127.0.0.1:*"\n[keys]\ndir = "keys"\n'
            for name in ("hub", "mesh-store", "victim", "gateway", "client", "hostile"):
                key_store.make(root / "keys", name)
        text += f'[gateway]\nport = {self.port}\n[store]\ndir = "{root}/data"\n'
        (root / "mesh.toml").write_text(text)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Victims:
        for name in PROGRAMS:
            self.start(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for process in reversed(self._running.values()):
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str) -> None:
        """Start one and wait until it is ready."""
        log = self.root / f"{name}.log"
        log.write_bytes(b"")
        with log.open("ab") as out:
            self._running[name] = subprocess.Popen(
                [MESH, *PROGRAMS[name][0]],
                cwd=self.root,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={key: value for key, value in os.environ.items() if not key.startswith("MESH_")},
            )
        self._until(lambda: b"ready" in log.read_bytes() or bool(self.endpoint_of(name)), f"{name} is ready")

    def _until(self, condition, what: str) -> None:  # type: ignore[no-untyped-def]
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"not within {PATIENCE_S:g} s: {what}; see {self.root}")
            time.sleep(0.02)

    def dead(self, name: str) -> int | None:
        """The exit code of one that died."""
        return self._running[name].poll()

    def memory_mb(self, name: str) -> float:
        """What it holds now."""
        try:
            text = Path(f"/proc/{self._running[name].pid}/smaps_rollup").read_text()
        except (OSError, ProcessLookupError):
            return 0.0
        found = re.search(r"^Rss:\s+(\d+) kB$", text, re.MULTILINE)
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def endpoint_of(self, name: str) -> str:
        """Where its ROUTER listens; "" while that is not known."""
        if name == "hub":
            return self.hub
        if self.keyed:
            pid = self._running[name].pid
            mine = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                words = line.split()
                port = int(words[1].rpartition(":")[2], 16)
                if words[3] == "0A" and f"socket:[{words[9]}]" in mine and port != self.port:
                    return f"tcp://127.0.0.1:{port}"
            return ""
        pid = str(self._running[name].pid)
        found = [path for path in (self.root / "run").glob("*.sock") if path.name.split("-")[-2:-1] == [pid]]
        return f"ipc://{min(found)}" if found else ""

    def connect(self, name: str) -> Peer:
        """A hostile connection to it."""
        endpoint = self.endpoint_of(name)
        if self.keyed:
            return KeyedPeer(endpoint, self.root / "keys", "hostile", PROGRAMS[name][1])
        return RawPeer(endpoint.removeprefix("ipc://"))

    def summon(self) -> None:
        """Make the gateway dial `ghost`."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/rpc/ghost/boo", b"{}", {"Content-Type": "application/json"}
        )
        request.add_header("X-Request-Timeout", "1")
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except (urllib.error.URLError, OSError):
            pass  # it answers nothing, of course


class Neighbour:
    """Calls the worker, the store and the hub's registry all the time."""

    def __init__(self, victims: Victims) -> None:
        self._victims = victims
        self.calls = 0
        self.failed: list[str] = []

    async def call_until(self, over: asyncio.Event) -> None:
        settings = load(self._victims.root / "mesh.toml", env={})
        async with mesh.connect(settings=settings) as n:
            await n.wait_for("victim", timeout=PATIENCE_S)
            while not over.is_set():
                self.calls += 1
                try:
                    await n.call("victim.echo", "here", timeout=5.0)
                except mesh.MeshError as exc:
                    self.failed.append(f"{exc.code}: {exc}")
                await asyncio.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


@contextmanager
def victims(link: str) -> Iterator[Victims]:
    """A mesh in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mesh-hostile-") as directory, Victims(Path(directory), link) as made:
        yield made


async def assail(
    made: Victims, name: str, how: Sequence[Attack], tries: int, seconds: float, at_once: int = AT_ONCE
) -> Found:
    """So many tries against one process, the attacks taken in turn."""
    loop = asyncio.get_running_loop()
    found = Found(before_mb=made.memory_mb(name))
    neighbour = Neighbour(made)
    over = asyncio.Event()
    calling = asyncio.create_task(neighbour.call_until(over))
    with ThreadPoolExecutor(at_once) as pool:
        while found.tries < tries:
            some = min(at_once, tries - found.tries)
            trying = [
                loop.run_in_executor(
                    pool, attack, lambda: made.connect(name), how[(found.tries + i) % len(how)], seconds
                )
                for i in range(some)
            ]
            while not all(each.done() for each in trying):
                found.most_mb = max(found.most_mb, made.memory_mb(name))
                await asyncio.sleep(0.05)
            found.cut_after_s += [each.result() for each in trying]
            found.tries += some
            await _count_dead(made, name, found)
    await asyncio.sleep(1.5)  # an abort comes with the next heartbeat
    await _count_dead(made, name, found)
    over.set()
    await calling
    found.after_mb = made.memory_mb(name)
    found.calls, found.failed = neighbour.calls, neighbour.failed
    return found


async def haunt(made: Victims, tries: int, seconds: float) -> Found:
    """The gateway dials a worker that behaves so, again and again."""
    loop = asyncio.get_running_loop()
    found = Found(before_mb=made.memory_mb("gateway"))
    neighbour = Neighbour(made)
    over = asyncio.Event()
    calling = asyncio.create_task(neighbour.call_until(over))
    ghost = HostileWorker(made.root / "run", made.hub.removeprefix("ipc://"), seconds)
    end = time.monotonic() + tries * (seconds + 3.0)
    try:
        while ghost.served < tries and time.monotonic() < end:
            await loop.run_in_executor(None, made.summon)
            found.most_mb = max(found.most_mb, made.memory_mb("gateway"))
            await _count_dead(made, "gateway", found)
    finally:
        ghost.close()
    await asyncio.sleep(1.5)
    await _count_dead(made, "gateway", found)
    over.set()
    await calling
    found.tries = ghost.served
    found.after_mb = made.memory_mb("gateway")
    found.calls, found.failed = neighbour.calls, neighbour.failed
    return found


async def _count_dead(made: Victims, name: str, found: Found) -> None:
    code = made.dead(name)
    if code is not None:
        found.deaths += 1
        found.exit_codes.append(code)
        await asyncio.get_running_loop().run_in_executor(None, made.start, name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.hostile", description=__doc__)
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.5, help="how long a try sends before it closes")
    parser.add_argument("--target", choices=[*PROGRAMS, "dialled"], action="append", help="default: all")
    parser.add_argument("--link", choices=("ipc", "curve"), action="append", help="default: both")
    parser.add_argument("--attack", choices=list(ATTACKS), action="append", help="default: bundles and pings")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="tries at the same time")
    options = parser.parse_args(argv)
    good = True
    for link in options.link or ("ipc", "curve"):
        with victims(link) as made:
            for target in options.target or (*PROGRAMS, "dialled"):
                if target == "dialled":
                    if link == "curve":
                        continue  # a hub takes no record from the keyless, and a key's holder is attacked as any link
                    found = asyncio.run(haunt(made, options.tries, options.seconds))
                    print(f"{link:5} {target:8} {'bundles':8} {found.line()}", flush=True)
                    good = good and found.good
                    continue
                names = options.attack or ["bundles", "pings"]
                for each in names:
                    tries = -(-options.tries // len(names))
                    how = [ATTACKS[each]]
                    found = asyncio.run(assail(made, target, how, tries, options.seconds, options.at_once))
                    print(f"{link:5} {target:8} {each:8} {found.line()} {found.exit_codes or ''}", flush=True)
                    for failed in found.failed[:3]:
                        print(f"      {failed}")
                    good = good and found.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
