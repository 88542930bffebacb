"""Endpoints: their syntax, and exclusive claims to ipc paths.

Owns: parsing and checking endpoints, the private run directory, and the claim that ensures one listener per ipc path.
Leaves to others: binding and connecting (zmq_transport, memory), the endpoints of instances (discovery).
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mesh.errors import AddressInUse, BadEndpoint, SetupError

#: sockaddr_un.sun_path holds 108 bytes on Linux, the last one a zero. Source: unix(7).
IPC_PATH_BYTES = 107

LOCK_SUFFIX = ".lock"

#: Separates a tcp endpoint from the public key of its listener, in hexadecimal.
KEY_MARK = "?key="
_KEY = re.compile(r"[0-9a-f]{64}")

#: Addresses that mean "every address of this host" for bind, and that cannot be used to connect.
ANYWHERE = ("*", "0.0.0.0", "[::]")

_SHAPES = "write ipc:///absolute/path.sock, tcp://host:port, tcp://host:* or mem://name"
_REMEDY_PATH = "set mesh.run_dir to a shorter directory"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint.

    Attributes:
        kind: "ipc", "tcp" or "mem".
        address: the path of an ipc socket, the host of a tcp one, the name of a mem one.
        port: 1–65535 for tcp; None for any free port, and for the other kinds.
        key: for tcp, the public key of the listener, 64 hexadecimal digits; "" when the endpoint contains none.
    """

    kind: Literal["ipc", "tcp", "mem"]
    address: str
    port: int | None = None
    key: str = ""

    def __str__(self) -> str:
        return f"{self.where}{KEY_MARK}{self.key}" if self.key else self.where

    @property
    def where(self) -> str:
        """The endpoint without the key, as libzmq needs it."""
        if self.kind == "tcp":
            return f"tcp://{self.address}:{'*' if self.port is None else self.port}"
        return f"{self.kind}://{self.address}"

    @property
    def wildcard(self) -> bool:
        """Whether it means every address of the listening host."""
        return self.kind == "tcp" and self.address in ANYWHERE

    @property
    def exposed(self) -> bool:
        """Whether other hosts may reach it. Any host name other than localhost is taken as reachable."""
        if self.kind != "tcp" or self.address in ("localhost", "lo"):
            return False
        try:
            return not ipaddress.ip_address(self.address.strip("[]")).is_loopback
        except ValueError:
            return True


def parse(text: str, *, dialling: bool = False) -> Endpoint:
    """Parse and check an endpoint.

    Args:
        text: "ipc:///absolute/path", "tcp://host:port", "tcp://host:*" (IPv6 hosts in brackets), "mem://name". A tcp
            endpoint may end in "?key=" and 64 hexadecimal digits.
        dialling: whether the endpoint is used to connect; wildcards are then refused.

    Raises:
        BadEndpoint: it is malformed, or its ipc path is longer than 107 bytes.
    """
    kind, separator, rest = text.partition("://")
    if not separator:
        raise BadEndpoint(f"{text!r} has no scheme: {_SHAPES}")
    if any(ord(char) < 32 or ord(char) == 127 for char in rest):
        raise BadEndpoint(f"{text!r} contains a control character: {_SHAPES}")
    if kind == "ipc":
        # A path may contain spaces, for example that of a project in "My shop".
        return _parse_ipc(text, rest)
    if any(char.isspace() for char in rest):
        raise BadEndpoint(f"{text!r} contains white space: {_SHAPES}")
    if kind == "tcp":
        return _parse_tcp(text, rest, dialling=dialling)
    if kind == "mem":
        if not rest:
            raise BadEndpoint(f"{text!r} has no name: write mem://name")
        return Endpoint("mem", rest)
    raise BadEndpoint(f"{text!r}: {kind!r} is not a scheme of mesh: {_SHAPES}")


def _parse_ipc(text: str, path: str) -> Endpoint:
    if not path.startswith("/"):
        # A relative path depends on the current directory of each process; libzmq's "@abstract" names have no owner.
        raise BadEndpoint(f"{text!r}: an ipc path must be absolute: write ipc:///directory/name.sock")
    if path.endswith("/"):
        raise BadEndpoint(f"{text!r} names a directory: write ipc:///directory/name.sock")
    length = len(os.fsencode(path))
    if length > IPC_PATH_BYTES:
        raise BadEndpoint(
            f"{text!r}: the path has {length} bytes, but the operating system allows {IPC_PATH_BYTES}: {_REMEDY_PATH}",
            details={"bytes": length, "limit": IPC_PATH_BYTES},
        )
    return Endpoint("ipc", path)


def _parse_tcp(text: str, rest: str, *, dialling: bool) -> Endpoint:
    rest, marked, key = rest.partition(KEY_MARK)
    if marked and not _KEY.fullmatch(key):
        raise BadEndpoint(f"{text[:80]!r}: a key has 64 lower-case hexadecimal digits")
    host, separator, port = rest.rpartition(":")
    if not separator or not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise BadEndpoint(f"{text!r} needs a host and a port: write tcp://host:port, for IPv6 tcp://[::1]:port")
    if dialling and (host in ANYWHERE or port == "*"):
        raise BadEndpoint(f"{text!r} cannot be connected to: use the host and the port that it was bound to")
    if port == "*":
        return Endpoint("tcp", host, key=key)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise BadEndpoint(f"{text!r}: {port!r} is not a port: 1–65535, or * to listen on any free one")
    return Endpoint("tcp", host, int(port), key)


def ensure_run_dir(run_dir: Path) -> Path:
    """Make the directory for ipc sockets, with mode 0700, or check that the existing one can be trusted.

    Raises:
        SetupError: it cannot be made, is not a directory, belongs to another user, or others may write to it.
    """
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        run_dir.mkdir(mode=0o700, exist_ok=True)
        found = run_dir.stat()
    except OSError as exc:
        raise SetupError(
            f"run directory {run_dir}: {exc.strerror}: set mesh.run_dir to a directory that can be created"
        ) from exc
    if found.st_uid != os.geteuid():
        raise SetupError(
            f"run directory {run_dir} belongs to user {found.st_uid}, this process to user {os.geteuid()}: "
            f"set mesh.run_dir to a directory of this user"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SetupError(
            f"run directory {run_dir} can be written to by other users (mode {stat.S_IMODE(found.st_mode):04o}): "
            f"chmod 700 {run_dir}"
        )
    return run_dir


class Claim:
    """The exclusive right to bind one ipc path, until the listener is closed.

    libzmq unlinks any file at an ipc path before it binds, even the socket of a live listener. The claim is an flock on
    PATH.lock: the kernel frees it however its owner ends, even by kill -9.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._pid = os.getpid()

    @classmethod
    def take(cls, path: str | Path) -> Claim:
        """Claim `path`, and remove the socket of a dead owner.

        Raises:
            AddressInUse: a live process listens there; the message names its pid.
            BadEndpoint: a file that is not a socket is there, or the directory cannot be written.
        """
        path = os.fspath(path)
        try:
            fd = _lock(path + LOCK_SUFFIX)
        except OSError as exc:
            raise BadEndpoint(
                f"ipc://{path}: cannot write its lock file ({exc.strerror}): "
                f"set mesh.run_dir to a directory of this user"
            ) from exc
        if fd is None:
            pid = _owner(path + LOCK_SUFFIX)
            who = f"process {pid}" if pid else "another process"
            raise AddressInUse(
                f"ipc://{path}: {who} listens there: stop it, or choose another name",
                details={"pid": pid} if pid else None,
            )
        try:
            _remove_stale(path)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            _unlink(path + LOCK_SUFFIX)
            os.close(fd)
            raise
        return cls(path, fd)

    def release(self) -> None:
        """Remove the socket and the lock. Harmless when called again.

        Close the listener first: from now on another process may claim the path.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # A forked child shares the lock but does not own the path.
        if self._pid == os.getpid():
            _unlink(self.path)
            # Unlinked while locked: a process that has the old file open sees that it is no longer the one at the path.
            _unlink(self.path + LOCK_SUFFIX)
        os.close(fd)


@contextmanager
def claimed(path: str | Path) -> Iterator[Claim]:
    """`Claim.take` for the duration of a with-block."""
    claim = Claim.take(path)
    try:
        yield claim
    finally:
        claim.release()


def sweep(run_dir: Path) -> list[Path]:
    """Remove the sockets of dead owners in `run_dir`, with their locks, and return their paths.

    A socket without a lock file was not made by mesh (supervisor's own, for example) and is left alone.
    """
    removed = []
    for lock in sorted(run_dir.glob(f"*{LOCK_SUFFIX}")):
        path = str(lock)[: -len(LOCK_SUFFIX)]
        try:
            fd = _lock(str(lock), create=False)
        except OSError:
            continue  # removed meanwhile, or not accessible
        if fd is None:
            continue
        try:
            _remove_stale(path)
            _unlink(str(lock))
            removed.append(Path(path))
        except (AddressInUse, BadEndpoint):
            continue
        finally:
            os.close(fd)
    return removed


def _lock(lock: str, *, create: bool = True) -> int | None:
    """The descriptor of the file at `lock`, now locked; None if another process holds it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(lock, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine, there = os.fstat(fd), os.stat(lock)
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            os.close(fd)  # its owner released it between `open` and `flock`
            continue
        except BaseException:
            os.close(fd)
            raise
        if os.path.samestat(mine, there):
            return fd
        os.close(fd)


def _owner(lock: str) -> int | None:
    try:
        text = Path(lock).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def _remove_stale(path: str) -> None:
    """Unlink the socket at `path` if no process listens on it; the caller holds its lock."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise BadEndpoint(f"ipc://{path}: this file is not a socket: remove it, or choose another name")
    if _answers(path):
        raise AddressInUse(
            f"ipc://{path}: a process listens there without its lock file: stop it, or choose another name"
        )
    _unlink(path)


def _answers(path: str) -> bool:
    """Whether a process listens on the unix socket, regardless of locks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # With any result but a refusal (a full backlog, another socket type, no permission), a listener may exist.
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
