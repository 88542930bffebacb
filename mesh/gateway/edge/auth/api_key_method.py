"""The authentication method "apikey": `Authorization: Bearer mk_…` or `X-API-Key: mk_…`.

Owns: finding the key in a request. Leaves to others: the keys (api_keys), the file (watched_file).
"""

from __future__ import annotations

from typing import Final

from multidict import istr

from mesh.clock import Clock
from mesh.errors import Unauthenticated
from mesh.gateway.edge.auth.api_keys import PREFIX, ApiKeys, read
from mesh.gateway.edge.auth.contract import Authenticator
from mesh.gateway.edge.auth.headers import challenge, credentials
from mesh.gateway.edge.auth.watched_file import WatchedFile
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.request import Request

FIELD: Final = istr("X-API-Key")


def make(front: Front) -> Authenticator | None:
    """The method; None when `auth.apikeys.file` is not set.

    Raises:
        ConfigError: the file cannot be used.
    """
    settings = front.settings
    path = settings.auth.apikeys.file
    if path is None:
        return None
    clock = front.node.clock
    file = WatchedFile(
        settings.root / path,
        "auth.apikeys.file",
        read,
        clock,
        private=True,
        missing="make a first key: `mesh apikeys create NAME`",
    )
    realm = settings.mesh.name
    return Authenticator(
        name="apikey",
        authenticate=Keys(file, clock).authenticate,
        challenge=challenge("Bearer", realm=realm),
        refusal=challenge("Bearer", realm=realm, error="invalid_token"),
        schemes={
            "apikey": {"type": "apiKey", "in": "header", "name": str(FIELD), "description": "A key of the operator."}
        },
    )


class Keys:
    """Verifies API keys."""

    def __init__(self, file: WatchedFile[ApiKeys], clock: Clock) -> None:
        self._file = file
        self._wall = clock.wall

    async def authenticate(self, request: Request) -> Identity | None:
        """The identity of the request's key; None when it has none.

        Raises:
            Unauthenticated: there is no such key, it has expired, or the request has two.
        """
        told = credentials(request, "bearer")
        if told is not None and not told.startswith(PREFIX):
            told = None
        fields = request.raw.headers.getall(FIELD, ())
        if fields:
            if told is not None or len(fields) > 1:
                raise Unauthenticated("the request has more than one API key")
            told = fields[0].strip()
        if told is None:
            return None
        identity = self._file.content().find(told, self._wall())
        if identity is None:
            raise Unauthenticated("there is no such API key, or it has expired")
        return identity
