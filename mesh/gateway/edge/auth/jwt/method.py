"""The authentication method "jwt": `Authorization: Bearer eyJ…`.

Owns: the steps of verifying a token, and the memory of verified ones.
Leaves to others: each of the steps (token, claims, keys), where the keys come from (key_sources).

Verifying a token takes 15 µs (HS256) to 370 µs (ES384), and a client sends the same token for minutes. So the
identities of verified tokens are kept, until the token expires or the keys change. Refused tokens are not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs

from mesh.clock import Clock
from mesh.config.edge_auth import JwtSettings
from mesh.config.edge_auth_checks import require
from mesh.errors import ConfigError
from mesh.gateway.edge.auth.api_keys import PREFIX as API_KEY
from mesh.gateway.edge.auth.carry import checked
from mesh.gateway.edge.auth.contract import Authenticator, AuthUnavailable
from mesh.gateway.edge.auth.headers import challenge, credentials
from mesh.gateway.edge.auth.jwt.claims import check_claims, identity_of
from mesh.gateway.edge.auth.jwt.key_sources import KeySource, source_of
from mesh.gateway.edge.auth.jwt.keys import KeySet
from mesh.gateway.edge.auth.jwt.token import read_token
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.request import Request

#: The most verified tokens to remember: about 4 KiB each.
MOST_KNOWN: Final = 4096

_AUTHORIZATION: Final = hdrs.AUTHORIZATION


def make(front: Front) -> Authenticator | None:
    """The method; None when `[auth.jwt]` is not set.

    Raises:
        ConfigError: a setting is wrong, or a library is missing.
    """
    settings = front.settings
    jwt = settings.auth.jwt
    if not jwt.is_on:
        return None
    require(settings, "auth.jwt")
    try:
        import cryptography  # noqa: F401
        import jwt as _library  # noqa: F401
    except ImportError:
        raise ConfigError("auth.jwt: tokens need PyJWT and cryptography: pip install 'zeromesh[auth]'") from None
    source, lifespan = source_of(settings, front.node.clock)
    realm = settings.mesh.name
    tokens = Tokens(jwt, source, front.node.clock)
    return Authenticator(
        name="jwt",
        authenticate=tokens.authenticate,
        recall=tokens.recall,
        challenge=challenge("Bearer", realm=realm),
        refusal=challenge("Bearer", realm=realm, error="invalid_token"),
        schemes={
            "jwt": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": f"A token of {jwt.issuer} for {' or '.join(jwt.audience)}.",
            }
        },
        lifespan=lifespan,
        facts={"issuer": jwt.issuer, "audience": jwt.audience},
    )


class Tokens:
    """Verifies tokens.

    Args:
        source: gives the keys.
    """

    def __init__(self, settings: JwtSettings, source: KeySource, clock: Clock) -> None:
        self._settings = settings
        self._source = source
        self._wall = clock.wall
        self._keys: KeySet | None = None
        #: By the whole Authorization field.
        self._known: OrderedDict[str, tuple[Identity, float]] = OrderedDict()

    def recall(self, request: Request) -> Identity | None:
        """The identity of a token that has been verified, and is still valid; see Authenticator."""
        fields: Sequence[str] = request.raw.headers.getall(_AUTHORIZATION, ())
        found = self._known.get(fields[0]) if len(fields) == 1 else None
        if found is None or self._wall() >= found[1]:
            return None
        try:
            if self._source.keys() is not self._keys:
                return None
        except AuthUnavailable:
            return None
        self._known.move_to_end(fields[0])
        return found[0]

    async def authenticate(self, request: Request) -> Identity | None:
        """The identity of the request's token; None when it has none.

        Raises:
            Unauthenticated: the token is wrong.
            AuthUnavailable: the keys cannot be had.
        """
        told = credentials(request, "bearer")
        # API keys come in the same field. No JSON Web Token begins so: they begin with "eyJ".
        if told is None or told.startswith(API_KEY):
            return None
        try:
            keys = self._source.keys()
        except AuthUnavailable:
            # Without keys, what is no valid token in any case is still wrong, and not a matter of the provider.
            check_claims(read_token(told, self._settings.type).claims, self._settings, self._wall())
            raise
        known = self._known
        if keys is not self._keys:
            known.clear()
            self._keys = keys
        field = request.raw.headers[_AUTHORIZATION]
        found = known.get(field)
        if found is not None:
            if self._wall() < found[1]:
                known.move_to_end(field)
                return found[0]
            del known[field]
        identity, expires_at = await self.verify(told)
        # The keys may have changed while this waited for them: then the token is verified again the next time.
        if self._source.keys() is self._keys:
            known[field] = identity, expires_at
            if len(known) > MOST_KNOWN:
                known.popitem(last=False)
        return identity

    async def verify(self, text: str) -> tuple[Identity, float]:
        """The identity that a token proves, and the instant at which it expires.

        Raises:
            Unauthenticated, AuthUnavailable: as for `authenticate`.
        """
        token = read_token(text, self._settings.type)
        # Before the signature: what is expired, or for another application, needs no key to be looked for.
        expires_at = check_claims(token.claims, self._settings, self._wall())
        keys = self._source.keys()
        if not keys.knows(token.kid):
            await self._source.refresh()
            keys = self._source.keys()
        keys.verify(token)
        return checked(identity_of(token.claims, self._settings)), expires_at
