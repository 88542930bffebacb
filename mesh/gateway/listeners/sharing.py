"""Gives the gateways of one host the same listening sockets, beyond the one that supervisor hands to them.

Owns: the hand-over of open sockets between running gateways, and the lock around it.
Leaves to others: which sockets there are (opening), binding (sockets).

supervisor gives its processes one listening socket. Replicas that bound the others with SO_REUSEPORT would each have an
accept queue of their own, and Linux resets what is in a queue when its socket closes: a release would lose connections.
So the replicas have one socket: a starting gateway asks those that run for copies of their file descriptors
(SCM_RIGHTS), and binds only what none of them has. A queue lives as long as one replica has the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from mesh.errors import AddressInUse
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: How long a running gateway may take to hand over; one with an event loop that is blocked for longer is passed over.
ANSWER_S: Final = 2.0
#: How long to wait for an address that a leaving gateway still has.
RETRY_S: Final = 5.0
#: The sockets of one gateway: redirect, admin, and room for more.
MOST: Final = 8
_PATTERN: Final = "gateway-*.fds"

Bind = Callable[[], socket.socket]


class Sharing:
    """The shared sockets of one gateway process.

    Args:
        run_dir: of the mesh; accessible to this user only, so that only its processes get the sockets.
    """

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
        self._file = run_dir / f"gateway-{os.getpid()}.fds"
        self._offered: dict[str, int] = {}
        self._door: socket.socket | None = None

    def open(self, wanted: Mapping[str, Bind]) -> dict[str, socket.socket]:
        """The sockets that are wanted, by address: of another gateway if one has them, else bound. Blocks for
        milliseconds. Call it on the running loop.

        Raises:
            AddressInUse: another program has the address.
            ConfigError: it cannot be bound.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        found: dict[str, socket.socket] = {}
        try:
            with self._lock():
                taken = self._take()
                for key, bind in wanted.items():
                    found[key] = taken.pop(key) if key in taken else _bound(bind)
                for unwanted in taken.values():
                    unwanted.close()
                self._offer({key: sock.fileno() for key, sock in found.items()})
        except BaseException:
            for sock in found.values():
                sock.close()
            raise
        return found

    def close(self) -> None:
        """Hand over nothing any more. Call it before the sockets are closed."""
        if self._door is not None:
            asyncio.get_running_loop().remove_reader(self._door)
            self._door.close()
            self._door = None
            self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self._dir / "gateway-fds.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _take(self) -> dict[str, socket.socket]:
        """The sockets of a running gateway. Removes what ended gateways have left."""
        for each in self._dir.glob(_PATTERN):
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                    asking.settimeout(ANSWER_S)
                    asking.connect(str(each))
                    told, fds, _, _ = socket.recv_fds(asking, 4096, MOST)
            except ConnectionRefusedError:
                each.unlink(missing_ok=True)
                continue
            except OSError as exc:
                _log.warning("gateway.sockets_not_shared", by=each.name, error=str(exc))
                continue
            socks = [socket.socket(fileno=fd) for fd in fds]
            try:
                keys = msgspec.json.decode(told, type=list[str])
            except msgspec.DecodeError:  # it is leaving: an empty answer
                keys = []
            if len(keys) == len(socks) and keys:
                return dict(zip(keys, socks, strict=True))
            for sock in socks:
                sock.close()
        return {}

    def _offer(self, fds: dict[str, int]) -> None:
        self._offered = fds
        self._file.unlink(missing_ok=True)  # of an earlier process with this pid
        self._door = door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(str(self._file))
        door.listen(16)
        door.setblocking(False)
        asyncio.get_running_loop().add_reader(door, self._hand_over, door)

    def _hand_over(self, door: socket.socket) -> None:
        try:
            asking, _ = door.accept()
        except OSError:
            return
        with asking:
            try:
                # A few bytes into an empty buffer: this does not block.
                socket.send_fds(asking, [msgspec.json.encode(list(self._offered))], list(self._offered.values()))
            except OSError as exc:
                _log.warning("gateway.sockets_not_shared", by=self._file.name, error=str(exc))


def _bound(bind: Bind) -> socket.socket:
    late_at = time.monotonic() + RETRY_S
    while True:
        try:
            return bind()
        except AddressInUse:
            # The gateway before this one may have just begun to leave.
            if time.monotonic() >= late_at:
                raise
            time.sleep(0.05)
