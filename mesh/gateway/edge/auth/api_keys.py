"""API keys: their form, and the file that holds their hashes.

Owns: making, listing, finding and revoking keys.
Leaves to others: replacing the file (credential_file), requests (api_key_method), the command (cli).

A key is `mk_ID_SECRET`. The id finds the record, and is not secret. The secret is 256 bits of the system's random
source. The file has the SHA-256 of the whole key: a slow hash protects passwords, which people choose and attackers
guess; 2**256 values cannot be guessed at any speed, and a fast hash does not make each request cost CPU time.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from mesh.gateway.edge.auth import credential_file
from mesh.gateway.edge.auth.credential_file import BadCredentials
from mesh.gateway.edge.identity import Identity

PREFIX: Final = "mk_"
_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 6
#: The longest text that is compared with keys.
MAX_KEY: Final = 128


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one key.

    Attributes:
        id: finds the record; part of the key.
        name: what it is for, for people.
        sha256: of the whole key, in hexadecimal digits.
        principal, scopes, roles, tenant: the identity of its callers.
        created_at, expires_at: seconds since 1970; 0 for a key that does not expire.
    """

    id: str
    name: str
    sha256: str
    principal: str
    scopes: list[str] = []
    roles: list[str] = []
    tenant: str = ""
    created_at: float = 0.0
    expires_at: float = 0.0


class _File(msgspec.Struct, frozen=True):
    keys: list[ApiKey] = []
    version: int = 1


class _Known(NamedTuple):
    digest: bytes
    identity: Identity
    expires_at: float


class ApiKeys:
    """The keys of one file, for the gateway."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._by_id = {
            key.id: _Known(
                bytes.fromhex(key.sha256),
                Identity(
                    key.principal,
                    "apikey",
                    scopes=frozenset(key.scopes),
                    roles=frozenset(key.roles),
                    tenant=key.tenant,
                    key=key.id,
                ),
                key.expires_at or float("inf"),
            )
            for key in keys
        }

    def find(self, text: str, now: float) -> Identity | None:
        """The identity of a key; None when there is no such key, or it has expired.

        Args:
            now: seconds since 1970.
        """
        if len(text) > MAX_KEY or not text.isascii():
            return None
        known = self._by_id.get(text.removeprefix(PREFIX).partition("_")[0])
        digest = sha256(text.encode()).digest()
        if known is None or not hmac.compare_digest(digest, known.digest) or now >= known.expires_at:
            return None
        return known.identity


def decode(data: bytes) -> list[ApiKey]:
    """The records of a file.

    Raises:
        ValueError: it is not such a file.
    """
    if not data.strip():
        return []
    try:
        found = msgspec.json.decode(data, type=_File)
        for key in found.keys:
            if len(bytes.fromhex(key.sha256)) != sha256().digest_size or not key.principal:
                raise ValueError(f"the key {key.id} is broken")
    except (msgspec.MsgspecError, ValueError) as exc:
        raise ValueError(f"is not a file of `mesh apikeys`: {exc}") from None
    if found.version != 1:
        raise ValueError(f"has the version {found.version}, and this release reads version 1")
    return found.keys


def read(data: bytes) -> ApiKeys:
    """The keys of a file, for the gateway.

    Raises:
        ValueError: it is not such a file.
    """
    return ApiKeys(decode(data))


def listed(path: Path) -> list[ApiKey]:
    """The records of a file, the oldest first; none when there is no such file.

    Raises:
        BadCredentials: it cannot be read.
    """
    return _decoded(path, credential_file.read(path))


def create(
    path: Path,
    name: str,
    *,
    principal: str = "",
    scopes: Sequence[str] = (),
    roles: Sequence[str] = (),
    tenant: str = "",
    now: float,
    expires_at: float = 0.0,
) -> tuple[str, ApiKey]:
    """Make a key and add its record to the file; returns the key itself, which is stored nowhere.

    Args:
        principal: "" is the name.
        now: seconds since 1970.

    Raises:
        BadCredentials: the file cannot be read or written.
    """
    id = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIX}{id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    key = ApiKey(
        id=id,
        name=name,
        sha256=sha256(text.encode()).hexdigest(),
        principal=principal or name,
        scopes=list(scopes),
        roles=list(roles),
        tenant=tenant,
        created_at=now,
        expires_at=expires_at,
    )
    credential_file.change(path, lambda data: _encode([*_decoded(path, data), key]))
    return text, key


def revoke(path: Path, which: str) -> ApiKey:
    """Remove the record of a key, named by its id, or by its name when only one key has that.

    Raises:
        BadCredentials: there is no such key, or several; or the file cannot be read or written.
    """
    found: list[ApiKey] = []

    def edit(data: bytes) -> bytes:
        keys = _decoded(path, data)
        # People paste the beginning of a key, or all of it.
        id = which.removeprefix(PREFIX).partition("_")[0] if which.startswith(PREFIX) else which
        found.extend([key for key in keys if key.id == id] or [key for key in keys if key.name == which])
        if not found:
            raise BadCredentials(f'{path}: no key has the id or the name "{which[:64]}"; see `mesh apikeys list`')
        if len(found) > 1:
            ids = ", ".join(key.id for key in found)
            raise BadCredentials(f'{path}: {len(found)} keys have the name "{which}": name one of the ids {ids}')
        return _encode([key for key in keys if key.id != found[0].id])

    credential_file.change(path, edit)
    return found[0]


def _decoded(path: Path, data: bytes) -> list[ApiKey]:
    try:
        return decode(data)
    except ValueError as exc:
        raise BadCredentials(f"{path}: {exc}") from None


def _encode(keys: list[ApiKey]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_File(keys)), indent=2) + b"\n"
