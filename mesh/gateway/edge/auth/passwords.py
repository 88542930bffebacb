"""Users with passwords: the file that holds their hashes.

Owns: hashing and verifying passwords; adding, listing and removing users.
Leaves to others: replacing the file (credential_file), requests and how many checks run at once (basic_method), the
command (cli).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from mesh.gateway.edge.auth import credential_file
from mesh.gateway.edge.auth.credential_file import BadCredentials
from mesh.gateway.edge.identity import Identity

#: The cost of scrypt: 32 MiB and about 0.2 s for each check. (OWASP, "Password Storage": N=2**15, r=8, p=3.)
COST: Final = (2**15, 8, 3)
#: The most that a record of the file may ask for, so that a wrong one cannot exhaust the memory.
MOST_COST: Final = (2**17, 16, 8)
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
#: The shortest password in characters, and the longest in bytes.
MIN_PASSWORD: Final = 12
MAX_PASSWORD: Final = 1024


class User(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one user.

    Attributes:
        name: the principal of its requests.
        salt, hash: of the password, in hexadecimal digits; made with scrypt and `cost`: N, r, p.
        created_at: seconds since 1970, of the present password.
    """

    name: str
    salt: str
    hash: str
    #: No default: a later release may have another COST, and must still know that of old records.
    cost: tuple[int, int, int]
    scopes: list[str] = []
    roles: list[str] = []
    tenant: str = ""
    created_at: float = 0.0

    @property
    def identity(self) -> Identity:
        """The identity of its requests."""
        return Identity(
            self.name, "basic", scopes=frozenset(self.scopes), roles=frozenset(self.roles), tenant=self.tenant
        )


class _File(msgspec.Struct, frozen=True):
    users: list[User] = []
    version: int = 1


def hash_password(password: bytes, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    """The scrypt hash. Takes about 0.2 s, without the interpreter lock."""
    n, r, p = cost
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, dklen=_HASH_BYTES, maxmem=128 * r * (n + p + 2) + 2**20)


def verify(user: User, password: bytes) -> bool:
    """Whether this is the user's password. Takes as long for a wrong one."""
    found = hash_password(password, bytes.fromhex(user.salt), user.cost)
    return hmac.compare_digest(found, bytes.fromhex(user.hash))


def unknown() -> User:
    """A user with a random password: checked in place of one that there is not, so that both take equally long."""
    return User(name="", salt=secrets.token_hex(_SALT_BYTES), hash=secrets.token_hex(_HASH_BYTES), cost=COST)


def check_password(password: str) -> bytes:
    """The bytes of a new password.

    Raises:
        BadCredentials: it is too short or too long.
    """
    data = password.encode("utf-8", "surrogateescape")
    if len(password) < MIN_PASSWORD:
        raise BadCredentials(f"the password has fewer than {MIN_PASSWORD} characters")
    if "\0" in password:
        raise BadCredentials("the password has a NUL")
    if len(data) > MAX_PASSWORD:
        raise BadCredentials(f"the password has more than {MAX_PASSWORD} bytes")
    return data


def decode(data: bytes) -> list[User]:
    """The records of a file.

    Raises:
        ValueError: it is not such a file.
    """
    if not data.strip():
        return []
    try:
        found = msgspec.json.decode(data, type=_File)
        for user in found.users:
            sizes = len(bytes.fromhex(user.salt)), len(bytes.fromhex(user.hash))
            weak = sizes[0] < _SALT_BYTES or sizes[1] != _HASH_BYTES
            fits = all(0 < given <= most for given, most in zip(user.cost, MOST_COST, strict=True))
            if weak or not fits or user.cost[0] & (user.cost[0] - 1) or not user.name:
                raise ValueError(f"the user {user.name[:64]} is broken")
    except (msgspec.MsgspecError, ValueError) as exc:
        raise ValueError(f"is not a file of `mesh users`: {exc}") from None
    if found.version != 1:
        raise ValueError(f"has the version {found.version}, and this release reads version 1")
    return found.users


def read(data: bytes) -> Mapping[str, User]:
    """The users of a file by name, for the gateway.

    Raises:
        ValueError: it is not such a file.
    """
    return {user.name: user for user in decode(data)}


def listed(path: Path) -> list[User]:
    """The records of a file; none when there is no such file.

    Raises:
        BadCredentials: it cannot be read.
    """
    return _decoded(path, credential_file.read(path))


def add(
    path: Path,
    name: str,
    password: str,
    *,
    scopes: Sequence[str] = (),
    roles: Sequence[str] = (),
    tenant: str = "",
    now: float,
    replace: bool = False,
) -> User:
    """Add a user to the file.

    Args:
        now: seconds since 1970.
        replace: a user of this name gets the new password, scopes, roles and tenant.

    Raises:
        BadCredentials: the password is too short, the name is taken, or the file cannot be read or written.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hash_password(check_password(password), salt, COST)
    user = User(
        name=name,
        salt=salt.hex(),
        hash=digest.hex(),
        cost=COST,
        scopes=list(scopes),
        roles=list(roles),
        tenant=tenant,
        created_at=now,
    )

    def edit(data: bytes) -> bytes:
        users = _decoded(path, data)
        others = [each for each in users if each.name != name]
        if len(others) < len(users) and not replace:
            raise BadCredentials(f'{path}: there is already a user "{name}"; use --replace for a new password')
        return _encode([*others, user])

    credential_file.change(path, edit)
    return user


def remove(path: Path, name: str) -> None:
    """Remove a user from the file.

    Raises:
        BadCredentials: there is no such user, or the file cannot be read or written.
    """

    def edit(data: bytes) -> bytes:
        users = _decoded(path, data)
        others = [each for each in users if each.name != name]
        if len(others) == len(users):
            raise BadCredentials(f'{path}: there is no user "{name[:64]}"; see `mesh users list`')
        return _encode(others)

    credential_file.change(path, edit)


def _decoded(path: Path, data: bytes) -> list[User]:
    try:
        return decode(data)
    except ValueError as exc:
        raise BadCredentials(f"{path}: {exc}") from None


def _encode(users: list[User]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_File(users)), indent=2) + b"\n"
