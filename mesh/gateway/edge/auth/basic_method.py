"""The authentication method "basic": names and passwords, for internal tools (HTTP Basic, RFC 7617).

Owns: reading the credential, how many passwords are checked at once, and the memory of checked ones.
Leaves to others: hashing (passwords), the file (watched_file).

A check takes 0.2 s of CPU time and 32 MiB, in a thread. So that guesses cannot exhaust the machine, only CHECKS run at
once, few may wait, and fewer for one client address. Results are kept for minutes, wrong ones too: a tool that polls
with an old password costs one check a minute.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from base64 import b64decode
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mesh.clock import Clock
from mesh.errors import Unauthenticated
from mesh.gateway.edge.auth.contract import Authenticator, AuthUnavailable
from mesh.gateway.edge.auth.headers import challenge, credentials
from mesh.gateway.edge.auth.passwords import MAX_PASSWORD, User, read, unknown, verify
from mesh.gateway.edge.auth.watched_file import WatchedFile
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.request import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Passwords that are checked at once.
CHECKS: Final = 2
#: Checks that may run or wait, in total and for one client address.
MOST_PENDING: Final = 16
MOST_PENDING_OF_ONE: Final = 4
#: How long a result is kept, in seconds, for the right password and for a wrong one; and the most results of each.
RIGHT_S: Final = 300.0
WRONG_S: Final = 60.0
MOST_KNOWN: Final = 1024

#: One text for all reasons, so that names cannot be told apart.
_WRONG: Final = "the user or the password is wrong"


def make(front: Front) -> Authenticator | None:
    """The method; None when `auth.basic.file` is not set.

    Raises:
        ConfigError: the file cannot be used.
    """
    settings = front.settings
    path = settings.auth.basic.file
    if path is None:
        return None
    clock = front.node.clock
    file = WatchedFile(
        settings.root / path,
        "auth.basic.file",
        read,
        clock,
        private=True,
        missing="add a first user: `mesh users add NAME`",
    )
    checks = Passwords(file, clock)
    return Authenticator(
        name="basic",
        authenticate=checks.authenticate,
        challenge=challenge("Basic", realm=settings.mesh.name, charset="UTF-8"),
        schemes={"basic": {"type": "http", "scheme": "basic"}},
        lifespan=checks.lifespan,
    )


class _Result(NamedTuple):
    identity: Identity | None
    until: float


class Passwords:
    """Verifies names and passwords. Enter `lifespan` before use."""

    def __init__(self, file: WatchedFile[Mapping[str, User]], clock: Clock) -> None:
        self._file = file
        self._now = clock.now
        self._users: Mapping[str, User] = {}
        self._unknown = unknown()
        # Results are kept under a keyed hash, so that the memory of the process has no passwords.
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, _Result] = OrderedDict()
        self._wrong: OrderedDict[bytes, _Result] = OrderedDict()
        self._pending: Counter[str] = Counter()
        self._running: dict[bytes, asyncio.Task[Identity | None]] = {}
        self._threads: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Start the threads, and stop them when the last check is over."""
        self._threads = ThreadPoolExecutor(CHECKS, "mesh-passwords")
        try:
            yield
        finally:
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            self._threads.shutdown(wait=False)

    async def authenticate(self, request: Request) -> Identity | None:
        """The identity of the request's user; None when it has no such credential.

        Raises:
            Unauthenticated: name or password is wrong, or the credential is malformed.
            AuthUnavailable: too many passwords are being checked.
        """
        told = credentials(request, "basic")
        if told is None:
            return None
        name, password = _read(told)
        users = self._file.content()
        if users is not self._users:
            self._right.clear()
            self._wrong.clear()
            self._users = users
        digest = hmac.digest(self._key, name.encode() + b"\0" + password, "sha256")
        now = self._now()
        for known in (self._right, self._wrong):
            result = known.get(digest)
            if result is not None and now < result.until:
                known.move_to_end(digest)
                return _identity(result.identity)
        return _identity(await self._check(request.client, digest, users.get(name, self._unknown), password))

    async def _check(self, client: str, digest: bytes, user: User, password: bytes) -> Identity | None:
        """Check a password in a thread; requests with the same credential share one check."""
        task = self._running.get(digest)
        if task is None:
            if self._pending.total() >= MOST_PENDING or self._pending[client] >= MOST_PENDING_OF_ONE:
                raise AuthUnavailable("too many passwords are being checked")
            self._pending[client] += 1
            task = self._running[digest] = asyncio.create_task(self._run(client, digest, user, password))
        # A client that disconnects must not cancel the check of the others.
        return await asyncio.shield(task)

    async def _run(self, client: str, digest: bytes, user: User, password: bytes) -> Identity | None:
        try:
            right = await asyncio.get_running_loop().run_in_executor(self._threads, verify, user, password)
        finally:
            del self._running[digest]
            self._pending[client] -= 1
            if not self._pending[client]:
                del self._pending[client]
        identity = user.identity if right else None
        known, span_s = (self._right, RIGHT_S) if right else (self._wrong, WRONG_S)
        # The file may have changed meanwhile.
        if self._users.get(user.name, self._unknown) is user:
            known[digest] = _Result(identity, self._now() + span_s)
            if len(known) > MOST_KNOWN:
                known.popitem(last=False)
        return identity


def _identity(found: Identity | None) -> Identity:
    if found is None:
        raise Unauthenticated(_WRONG)
    return found


def _read(told: str) -> tuple[str, bytes]:
    """Name and password of a credential.

    Raises:
        Unauthenticated: it is malformed.
    """
    try:
        name, _, password = b64decode(told, validate=True).partition(b":")
        user = name.decode()
    except ValueError:
        user, password = "", b""
    # HMAC, of which scrypt is made, does not see NULs at the end.
    if not user or not password or b"\0" in password or len(password) > MAX_PASSWORD or not user.isprintable():
        raise Unauthenticated("the credential is not a name and a password in base64")
    return user, password
