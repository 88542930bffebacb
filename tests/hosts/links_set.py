"""A mesh over several hosts, without supervisord: keys, a mesh.toml for each host, and single processes.

Owns: what lies on the hosts, starting processes, and waiting until the registry is whole.
Leaves to others: the hosts and their cables (host_network), what runs (links_services), load (links_load).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from mesh.transport.curve import key_store

from .host_network import Host, Network

HERE: Final = Path(__file__).parent
MESH: Final = str(Path(sys.executable).parent / "mesh")
#: Keys are made once for all tests: what costs time is not what they are about.
NAMES: Final = ("hub", "client", "shared", "lonely", "narrow", "chores", "mesh-store", "gateway")
PATIENCE_S: Final = 20.0
#: Answers from which on a load is one.
FLOWING: Final = 20

_TOML: Final = """\
[mesh]
bind = "{bind}"
hubs = [{hubs}]
{more}
[keys]
dir = "keys"
"""


class Answer(NamedTuple):
    """One line of links_load."""

    target: str
    began_at: float
    took_s: float
    code: str
    host: str

    @property
    def ended_at(self) -> float:
        return self.began_at + self.took_s


class Load:
    """Callers on one host; they are answered when this is made."""

    def __init__(self, host: Host, callers: int, deadline_s: float, targets: Sequence[str], **env: str) -> None:
        self._out = (host.root / f"srv/mesh/load-{time.monotonic_ns()}").open("w+")
        words = [sys.executable, str(HERE / "links_load.py"), str(callers), str(deadline_s), *targets]
        with (host.root / "srv/mesh/log").open("a") as log:
            self._process = host.popen(*words, stdout=self._out, stderr=log, **_where(**env))
        for target in targets:
            until(partial(self._answered, target.partition(":")[0]), f"{target} is answered")

    def _answered(self, target: str) -> bool:
        """Whether each caller has had its answers; so what follows really happens under load."""
        lines = Path(self._out.name).read_text().splitlines(keepends=True)
        answers = [Answer(*json.loads(line)) for line in lines if line.endswith("\n")]
        return sum(1 for answer in answers if answer.target == target and not answer.code) >= FLOWING

    def end(self) -> list[Answer]:
        """Stop calling; everything that was answered, in the order of the answers."""
        end(self._process)
        self._out.seek(0)
        with self._out:
            # The last line of a host that was killed may be torn.
            return [Answer(*json.loads(line)) for line in self._out if line.endswith("\n")]


class Site:
    """The mesh on the hosts of one network."""

    def __init__(self, network: Network, names: Sequence[str], *, bind: str = "tcp://eth0:*", more: str = "") -> None:
        self.network = network
        self.hosts = {name: network.hosts.get(name) or network.host(name) for name in names}
        self.processes: list[subprocess.Popen[str]] = []
        #: For a test that ends it.
        self.hub_of_a: subprocess.Popen[str]
        keys = network.root / "keys"
        if not keys.exists():
            for name in NAMES:
                key_store.make(keys, name)
        self.hubs = [f"tcp://{host.address}:7000" for host in self.hosts.values()]
        for host in self.hosts.values():
            place = host.root / "srv/mesh"
            subprocess.run(["rm", "-rf", str(place)], check=True)
            place.mkdir()
            subprocess.run(["cp", "-a", str(keys), str(place / "keys")], check=True)
            listed = ", ".join(f'"{hub}"' for hub in self.hubs)
            (place / "mesh.toml").write_text(_TOML.format(bind=bind, hubs=listed, more=more))

    def start(self, host: str, *words: str) -> subprocess.Popen[str]:
        """One process: `mesh hub`, `mesh run …`, `mesh store`. What it says is in its host's /srv/mesh/log."""
        with (self.hosts[host].root / "srv/mesh/log").open("a") as log:
            process = self.hosts[host].popen(MESH, *words, stdout=log, stderr=log, **_where())
        self.processes.append(process)
        return process

    def log(self, host: str) -> str:
        """What the processes of a host have said."""
        return (self.hosts[host].root / "srv/mesh/log").read_text()

    def heard(self, host: str) -> list[str]:
        """What the handlers on a host have written down."""
        file = self.hosts[host].root / "srv/mesh/heard"
        return file.read_text().splitlines() if file.exists() else []

    def run(self, host: str, *words: str) -> str:
        """A command to its end; what it wrote to stdout."""
        done = self.hosts[host].run(MESH, *words, **_where())
        assert done.returncode == 0, f"{host}: mesh {' '.join(words)}: {done.stdout}{done.stderr}{self.log(host)}"
        return done.stdout

    def python(self, host: str, code: str, options: str = "") -> str:
        """A few lines of Python with `n`, a node that `mesh.connect` made with these options; what they wrote to
        stdout."""
        text = f"import asyncio, mesh, sys, time\nasync def main():\n    async with mesh.connect({options}) as n:\n"
        text += "".join(f"        {line}\n" for line in code.strip().splitlines()) + "asyncio.run(main())\n"
        done = self.hosts[host].run(sys.executable, "-c", text, **_where())
        assert done.returncode == 0, f"{host}: {done.stdout}{done.stderr}{self.log(host)}"
        return done.stdout

    def load(
        self, host: str, targets: Sequence[str], *, callers: int = 4, deadline_s: float = 2.0, local: bool = True
    ) -> Load:
        """Callers on a host, until their `end`; not `local`: to whom all hosts are alike."""
        env = {"MESH_CALLS_PREFER_LOCAL": str(local)}
        return Load(self.hosts[host], callers, deadline_s, targets, **env)

    def until_known(self, instances: dict[str, int]) -> None:
        """Wait until every host lists so many instances of each service."""
        wanted = f"all(len(n.instances(name)) == count for name, count in {instances!r}.items())"
        for name in self.hosts:
            self.python(name, _UNTIL.format(condition=wanted))

    def close(self) -> None:
        """End what was started, and put every cable back."""
        for name, host in self.hosts.items():
            self.network.plug(name)
            host.run("ip", "link", "set", "eth0", "up")  # of a host that was killed, in vain
        for process in self.processes:
            end(process, signal.SIGKILL)
        self.processes.clear()


_UNTIL: Final = """\
for _ in range(400):
    if {condition}: break
    await asyncio.sleep(0.05)
else:
    sys.exit("not listed within 20 s: " + repr([(one.service, one.host) for one in n.table]))"""


def until(condition: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> float:
    """Return once it holds: how many seconds that took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


def _where(**env: str) -> dict[str, Any]:
    return {"where": "/srv/mesh", "env": {"PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", **env}}


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to what was started on a host, and wait until it has ended."""
    # What this machine started is nsenter, which waits for the command and passes nothing on.
    try:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), number)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended, perhaps with its host
    process.wait(PATIENCE_S)
