"""Listening sockets: binding, taking over, and their addresses as text.

Owns: TCP and Unix sockets, stale socket files, errors of binding.
Leaves to others: which sockets a gateway has (opening), sharing them between replicas (sharing).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from mesh.errors import AddressInUse, ConfigError, SetupError

#: Connections that the kernel keeps while all gateways are busy or restarting; the kernel lowers it to somaxconn.
BACKLOG: Final = 4096

#: sun_path holds 108 bytes, the last of which is zero.
LONGEST_PATH: Final = 107


def bind(host: str, port: int, key: str = "gateway.port") -> socket.socket:
    """A listening TCP socket.

    Args:
        key: the setting that names the address, for errors.

    Raises:
        AddressInUse: another process listens there.
        ConfigError: this machine has no such address, or the port is forbidden to this user.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as exc:
        raise ConfigError(f'{_host(key)}: "{host}" is not an address of this machine ({exc.strerror})') from exc
    sock = socket.socket(family, kind, protocol)
    try:
        # A restart must not wait for TIME_WAIT of old connections. SO_REUSEADDR does not allow two listeners.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise _bind_error(host, port, key, exc) from exc
    sock.setblocking(False)
    return sock


def bind_unix(path: Path, mode: int, key: str = "gateway.unix") -> socket.socket:
    """A listening Unix socket. A socket file that no process listens on is replaced.

    Args:
        mode: of the socket file.

    Raises:
        AddressInUse: another process listens there.
        ConfigError: the path is too long, is no socket, or cannot be created.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(f"{key}: {path} is longer than the {LONGEST_PATH} bytes that the operating system allows")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path, key)
        # Until the chmod below, the file must not be more accessible than `mode`.
        mask = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        path.chmod(mode)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise ConfigError(f"{key}: {path} cannot be created: {exc.strerror}") from exc
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path, key: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{key}: {path} is not a socket; remove it, or name another path")
    if listens(path):
        raise AddressInUse(f"{path}: another process listens there; stop it, or change {key}")
    path.unlink(missing_ok=True)


def listens(path: Path) -> bool:
    """Whether a process listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (BlockingIOError, TimeoutError):
            return True  # its queue is full
        except OSError:
            return False
    return True


def _host(key: str) -> str:
    return "gateway.host" if key == "gateway.port" else key


def _bind_error(host: str, port: int, key: str, exc: OSError) -> SetupError:
    where = f"{host}:{port}"
    if exc.errno == errno.EADDRINUSE:
        how = "gateway.port (MESH_GATEWAY_PORT)" if key == "gateway.port" else key
        return AddressInUse(f"{where}: another process listens there; stop it, or set {how}")
    if exc.errno == errno.EACCES:
        return ConfigError(f"{key}: {port} is not permitted to this user; choose one above 1023")
    if exc.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f'{_host(key)}: "{host}" is not an address of this machine')
    return SetupError(f"{where}: cannot listen there: {exc.strerror}")


def inherited(fd: int) -> socket.socket:
    """The listening socket that the parent process left at `fd`.

    Raises:
        SetupError: it is not a listening socket.
    """
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise SetupError(f"file descriptor {fd} is not a socket; run it under [fcgi-program], or give a port") from exc
    if not listening:
        sock.detach()
        raise SetupError(f"file descriptor {fd} is a socket, but does not listen; run it under [fcgi-program]")
    sock.setblocking(False)
    return sock


def shown(sock: socket.socket, scheme: str = "http") -> str:
    """`http://127.0.0.1:8080` of a listening socket; `unix:/path` of a Unix socket."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
