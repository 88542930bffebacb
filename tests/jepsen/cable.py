"""Two hosts as network namespaces of this machine, with a cable between them that can be pulled.

They share files and processes with this machine: only what they send to each other is cut. Hosts with disks and users
of their own are in tests/hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from typing import Final

#: For tests of networks (RFC 2544); not those of tests/hosts, which may run beside this.
ADDRESSES: Final = {"a": "198.18.9.1", "b": "198.18.9.2"}


def missing() -> str:
    """What this machine lacks for it; "" when nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        return "missing: apt install iproute2"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"network namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Cable:
    """Hosts "a" and "b". What is between them lies in a namespace of its own, so that a pulled cable takes no address
    from either."""

    def __init__(self) -> None:
        tag = f"j{os.getpid()}"
        self._switch = f"{tag}-switch"
        self.spaces = {name: f"{tag}-{name}" for name in ADDRESSES}
        try:
            for space in (self._switch, *self.spaces.values()):
                _ip("netns", "add", space)
                _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", self._switch, "link", "add", "name", "hub0", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "hub0", "up")
            for name, space in self.spaces.items():
                ends = ["name", name, "type", "veth", "peer", "name", "eth0", "netns", space]
                _ip("-n", self._switch, "link", "add", *ends)
                _ip("-n", self._switch, "link", "set", "dev", name, "master", "hub0", "up")
                _ip("-n", space, "address", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
                _ip("-n", space, "link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise

    def inside(self, name: str) -> list[str]:
        """What stands before a command that is to run on this host."""
        return ["nsenter", f"--net=/run/netns/{self.spaces[name]}"]

    def cut(self) -> None:
        _ip("-n", self._switch, "link", "set", "dev", "b", "down")

    def join(self) -> None:
        _ip("-n", self._switch, "link", "set", "dev", "b", "up")

    def close(self) -> None:
        for space in (*self.spaces.values(), self._switch):
            with suppress(RuntimeError):
                _ip("netns", "delete", space)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
