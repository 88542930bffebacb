"""Whether a mesh can run on this machine: directories, disk, open files, the backlog, the port.

Owns: these checks. Leaves to others: other values in mesh.toml (values), running processes (doctor).
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mesh.config import Settings
from mesh.doctor.finding import BAD, GOOD, ODD, Finding

#: A link takes five files; a gateway with a thousand connections and twenty workers takes 1,100.
FILES: Final = 4096
#: The backlog that supervisor requests for the gateways' socket.
BACKLOG: Final = 4096
#: With less free space, logs and the store's files soon fill the disk.
FREE_BYTES: Final = 500 * 2**20
#: The longest suffix of a socket name in the run directory: "NAME-1f8fcb51-events.sock", NAME the name of a service.
SOCKET_NAME: Final = len("-12345678-events.sock")
PATH_BYTES: Final = 107


def machine(settings: Settings) -> Iterator[Finding]:
    """Make all checks except that of the port."""
    yield from _run_dir(settings)
    for about, directory in (("logs", settings.mesh.log_dir), ("store", settings.store.dir)):
        yield from _room(about, directory)
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except ImportError:
        return
    if hard != resource.RLIM_INFINITY and hard < FILES:
        yield Finding(
            ODD, "open files", f"at most {hard} in one process", "raise LimitNOFILE, or `ulimit -Hn`, to 65536"
        )
    else:
        yield Finding(GOOD, "open files", "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}")
    try:
        backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return
    if backlog < BACKLOG:
        mend = f"sysctl -w net.core.somaxconn={BACKLOG}"
        yield Finding(ODD, "backlog", f"the kernel queues at most {backlog} connections for a gateway", mend)


def _run_dir(settings: Settings) -> Iterator[Finding]:
    path = settings.mesh.run_dir
    longest = max((len(name) for name in settings.services), default=0)
    length = len(os.fsencode(path)) + 1 + max(longest, len("gateway")) + SOCKET_NAME
    if length > PATH_BYTES:
        mend = "set mesh.run_dir to a directory with a shorter path"
        yield Finding(
            BAD,
            "run directory",
            f"{path}: paths of its sockets have {length} bytes, at most {PATH_BYTES} are possible",
            mend,
        )
        return
    try:
        found = path.stat()
    except FileNotFoundError:
        yield Finding(GOOD, "run directory", f"{path}: does not exist yet; `mesh up` creates it")
        return
    except OSError as exc:
        yield Finding(BAD, "run directory", f"{path}: {exc.strerror}", "set mesh.run_dir to a directory of your own")
        return
    if found.st_uid != os.geteuid():
        mend = f"run commands as that user, or `chown {os.geteuid()} {path}`"
        yield Finding(BAD, "run directory", f"{path} belongs to user {found.st_uid}, you are {os.geteuid()}", mend)
    elif found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        yield Finding(BAD, "run directory", f"{path} is accessible to other users (mode {mode})", f"chmod 700 {path}")
    else:
        yield Finding(GOOD, "run directory", str(path))


def _room(about: str, directory: Path) -> Iterator[Finding]:
    there = next(each for each in (directory, *directory.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        yield Finding(
            BAD, about, f"{free // 2**20} MiB are free at {there}", "free some space, or name another directory"
        )
    elif directory.exists() and not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(BAD, about, f"{directory} cannot be written to", f"chown it to user {os.geteuid()}")
    else:
        yield Finding(GOOD, about, f"{directory}, {free / 2**30:.1f} GiB free")


def port(settings: Settings) -> Finding:
    """Whether the gateways could listen; for when none runs."""
    gateway = settings.gateway
    if gateway.unix is not None:
        return Finding(GOOD, "HTTP", f"on the Unix socket {gateway.unix}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((gateway.host, gateway.port))
        except OSError as exc:
            told = f"{gateway.host}:{gateway.port}: {exc.strerror}"
            return Finding(BAD, "HTTP", told, "stop the process that listens there, or change gateway.port")
    return Finding(GOOD, "HTTP", f"{gateway.host}:{gateway.port} is free")
