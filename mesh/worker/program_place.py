"""The place where a program listens: a free port or a socket, who listens there, and who is connected.

Owns: choosing it, and what the kernel tells about it.
Leaves to others: its form in the registry (discovery.http_address), starting the program (program_process).

The kernel's tables are read because the program is not under our control: that it is this program which listens, and
not another process that was given the port meanwhile, decides whether requests may be sent there; and the number of
open connections shows when the last gateway has left. Where the kernel does not tell, both are unknown.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mesh.config.edge_programs import UNIX
from mesh.discovery.http_address import HttpAddress
from mesh.errors import SetupError
from mesh.transport.endpoints import IPC_PATH_BYTES
from mesh.worker import program_sockets

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
# Columns of /proc/net/unix. Source: proc(5), and the kernel's net.h.
_UNIX_CONNECTED: Final = "03"
_ACCEPTS: Final = 1 << 16


class Place(NamedTuple):
    """Where one copy listens.

    Attributes:
        address: as others reach it.
        values: the placeholders of its command, and what they stand for.
    """

    address: HttpAddress
    values: Mapping[str, str]

    def fill(self, text: str) -> str:
        """`text` with the placeholders replaced; all other braces are left alone."""
        return _PLACEHOLDER.sub(lambda found: self.values.get(found[1], found[0]), text)


def choose(http: str, identity: str, *, own: str, run_dir: Path) -> Place:
    """A free place.

    Args:
        http: the setting: "127.0.0.1:{port}", "{host}:{port}" or "unix:{socket}".
        identity: of the process, unique on this machine.
        own: the address of this machine for others, a literal one; for "{host}".
        run_dir: the directory for sockets.

    Raises:
        SetupError: no port is free at this address, or the socket's path is too long.
    """
    if http == UNIX:
        path = run_dir / f"{identity}.http"
        if len(os.fsencode(path)) > IPC_PATH_BYTES:
            raise SetupError(f"{path} is too long for a socket; set mesh.run_dir to a shorter directory")
        return Place(HttpAddress(socket=str(path)), {"socket": str(path), "host": "", "port": "", "instance": identity})
    host = http.removesuffix(":{port}").strip("[]")
    host = {"{host}": own, "localhost": "127.0.0.1"}.get(host, host)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Gateways do not resolve names, which could lead elsewhere.
        raise SetupError(
            f'this host is advertised as "{host}": for {{host}}, set mesh.advertise or mesh.bind to a literal address',
            details={"key": "http"},
        ) from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    except OSError as exc:
        raise SetupError(
            f"no port is free at {host}: {exc.strerror}; correct `http` of the service", details={"key": "http"}
        ) from exc
    return Place(HttpAddress(host, port), {"port": str(port), "host": host, "socket": "", "instance": identity})


def listeners(address: HttpAddress) -> set[str] | None:
    """The inodes of the sockets that listen there; None when unknown."""
    if address.socket:
        rows = _unix_rows(address.socket)
        return None if rows is None else {row[6] for row in rows if int(row[3], 16) & _ACCEPTS}
    found = program_sockets.tcp(address.port)
    return None if found is None else {row.inode for row in found if row.state == program_sockets.LISTEN}


def connections(address: HttpAddress) -> int | None:
    """The number of connections that clients hold open there; None when unknown."""
    if address.socket:
        rows = _unix_rows(address.socket)
        return None if rows is None else sum(row[5] == _UNIX_CONNECTED for row in rows)
    found = program_sockets.tcp(address.port)
    return None if found is None else sum(row.state == program_sockets.ESTABLISHED for row in found)


def owned(inodes: Collection[str], pids: Collection[int]) -> bool:
    """Whether one of these processes holds one of these sockets."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return any(_holds(pid, wanted) for pid in pids)


def _holds(pid: int, wanted: Collection[str]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{directory}/{name}") in wanted:
                return True
        except OSError:
            continue  # closed meanwhile
    return False


def _unix_rows(path: str) -> list[list[str]] | None:
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as lines:
            rows = [line.rstrip("\n").split(maxsplit=7) for line in lines]
    except OSError:
        return None
    return [row for row in rows[1:] if len(row) == 8 and row[7] == path]
