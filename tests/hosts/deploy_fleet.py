"""Bare hosts and an inventory of them, as a user of the playbooks has.

Owns: the inventory, running playbooks on the control host over SSH, and asking the gateways of all hosts.
Leaves to others: the hosts and their network (host_network), the project that is deployed (tests.deploy).
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.deploy.deploy_project import BIN, ROOT, Project, bundle, environment

from .host_network import Host, Network

PORT = 8080
PREFIX = "/srv/mesh"

#: What a user writes into group_vars/mesh; see inventory/production.
VARIABLES = """\
ansible_user: {login}
mesh_prefix: {prefix}
ansible_ssh_private_key_file: {root}/id
ansible_ssh_common_args: -o UserKnownHostsFile={root}/known_hosts -o IdentitiesOnly=yes
mesh_project: {project}
mesh_build: {build}
mesh_backups: {root}/backups
mesh_extras: ""
mesh_releases_kept: 3
mesh_keys_source: {root}/keys
mesh_keys: [hub, gateway, client, mesh-store, greeting]
mesh_settings:
  mesh:
    bind: tcp://{{{{ mesh_address }}}}:*
    hubs: {hubs}
  gateway:
    host: 0.0.0.0
    port: {port}
"""


class Played(NamedTuple):
    """One run of a playbook."""

    code: int
    text: str
    seconds: float

    def count(self, what: str) -> dict[str, int]:
        """One of the recap's numbers (changed, failed, unreachable, …), by host."""
        lines = re.findall(rf"^(\w+) +: .*?\b{what}=(\d+)", self.text, re.MULTILINE)
        return {host: int(number) for host, number in lines}

    def last(self, lines: int = 20) -> str:
        return "\n".join(self.text.splitlines()[-lines:])

    def good(self) -> Played:
        assert self.code == 0, self.text
        return self


class Load(NamedTuple):
    """What wrk saw at one gateway."""

    requests: int
    refused: int
    errors: str
    text: str

    def assert_spotless(self) -> None:
        assert self.requests > 100, self.text
        assert not self.refused, self.text
        assert not self.errors, self.text


def wrk_missing() -> str:
    return "" if shutil.which("wrk") else "wrk is missing: apt install wrk"


class Fleet:
    """Hosts with nothing on them yet; the first one is to have the store.

    Args:
        build: where wheels are that were built before.
        hosts: they are on the network already.
        login: the user that Ansible logs in as.
        prefix: the directory on the hosts that it is deployed to.

    Attributes:
        project: what is deployed; tests may change it.
    """

    def __init__(
        self, network: Network, build: Path, hosts: Sequence[Host], login: str = "root", prefix: str = PREFIX
    ) -> None:
        self.network = network
        self.root = network.root
        self.project = Project(self.root / "project")
        self.hosts = list(hosts)
        self._prefix = prefix
        self._inventory = self.root / "inventory/two"
        variables = self._inventory / "group_vars/mesh"
        variables.mkdir(parents=True)
        hubs = json.dumps([f"tcp://{host.address}:7000" for host in hosts])
        (variables / "main.yml").write_text(
            VARIABLES.format(
                root=self.root,
                project=self.project.root,
                build=build,
                port=PORT,
                hubs=hubs,
                login=login,
                prefix=prefix,
            )
        )
        # The control host has no way out, so that nothing is downloaded while hosts are deployed to.
        bundle(self.project, build)
        by_name = {
            host.name: {
                "ansible_host": host.address,
                "mesh_address": host.address,
                "mesh_programs": ["hub"] if host is not self.hosts[0] else ["hub", "store"],
            }
            for host in hosts
        }
        (self._inventory / "hosts.yml").write_text(json.dumps({"mesh": {"hosts": by_name}}))

    def elsewhere(self) -> Fleet:
        """The same hosts as another control machine has them: in another order, and with a project of its own."""
        other = copy.copy(self)
        other.project = Project(self.root / "elsewhere")
        other._inventory = self.root / "inventory/elsewhere/two"
        shutil.copytree(self._inventory, other._inventory)
        hosts = json.loads((self._inventory / "hosts.yml").read_text())["mesh"]["hosts"]
        turned = {"mesh": {"hosts": dict(reversed(hosts.items()))}}
        (other._inventory / "hosts.yml").write_text(json.dumps(turned))
        main = other._inventory / "group_vars/mesh/main.yml"
        main.write_text(
            main.read_text().replace(f"mesh_project: {self.project.root}", f"mesh_project: {other.project.root}")
        )
        return other

    def play(self, name: str, *options: str, **variables: Any) -> Played:
        """Run a playbook on the control host, which has no way out; it may fail."""
        return self.begin(name, *options, **variables)()

    def begin(self, name: str, *options: str, **variables: Any) -> Callable[[], Played]:
        """Start a playbook; what is returned waits for its end."""
        words = [str(BIN / "ansible-playbook"), "-i", str(self._inventory), f"playbooks/{name}.yml", *options]
        if variables:
            words += ["-e", json.dumps(variables)]
        began = time.monotonic()
        running = self.network.popen(
            words,
            cwd=ROOT,
            env=environment(self.root / "ansible"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def end() -> Played:
            try:
                text, _ = running.communicate(timeout=400)
            except BaseException:
                os.killpg(running.pid, signal.SIGKILL)
                raise
            return Played(running.returncode, text, time.monotonic() - began)

        return end

    def get(self, host: Host, path: str) -> Any:
        """What a host's gateway answers, asked from the control host."""
        ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"
        done = self.network.run([sys.executable, "-c", ask, f"http://{host.address}:{PORT}{path}"])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def answers(self) -> list[str]:
        return [self.get(host, "/hello/ujun") for host in self.hosts]

    def mesh(self, host: Host, *words: str) -> str:
        """What a command of the current release prints on a host."""
        done = host.run(f"{self._prefix}/bin/mesh", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def current(self, host: Host) -> str:
        """The name of the release that runs, "" without one."""
        link = host.root / self._prefix.lstrip("/") / "current"
        return link.readlink().name if link.is_symlink() else ""

    @contextmanager
    def load(self) -> Iterator[list[Load]]:
        """wrk against all gateways all the while; what it saw is in the list afterwards.

        Each of its connections waits a little between two requests: this machine is the hosts, the one that deploys,
        and wrk at once, and a deployment that starves shows nothing.
        """
        seen: list[Load] = []
        script = self.root / "load.lua"
        script.write_text("function delay() return 20 end\n")
        words = ["wrk", "-t1", "-c8", "-d900s", "--timeout", "10s", "-s", str(script)]
        running = [
            self.network.popen([*words, f"http://{host.address}:{PORT}/hello/ujun"], stdout=subprocess.PIPE)
            for host in self.hosts
        ]
        try:
            yield seen
        finally:
            seen += _ended(running)


def _ended(running: Iterable[subprocess.Popen[str]]) -> Iterator[Load]:
    for each in running:
        each.send_signal(signal.SIGINT)
    for each in running:
        text, _ = each.communicate(timeout=60)
        requests = re.search(r"(\d+) requests in", text)
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        errors = re.search(r"Socket errors: (.*)", text)
        yield Load(
            int(requests[1]) if requests else 0, int(refused[1]) if refused else 0, errors[1] if errors else "", text
        )
