"""An identity provider for tests: its keys, and tokens of every form, right and wrong."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from functools import cached_property
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

ISSUER = "https://id.example"
AUDIENCE = "shop"
LIBRARY = get_default_algorithms()
#: alg -> how the library turns a key of it into a JWK.
FAMILIES = {"RS": "RS256", "PS": "RS256", "ES": "ES256", "Ed": "EdDSA"}


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def part(value: Any) -> str:
    """A part of a token: of JSON text as it is, or of a value."""
    return b64(value if isinstance(value, bytes) else json.dumps(value).encode())


class Provider:
    """Signs tokens with the keys "rsa", "ec" and "ed"; "stranger" is a key that it does not publish."""

    @cached_property
    def private(self) -> dict[str, Any]:
        return {
            "rsa": rsa.generate_private_key(65537, 2048),
            "ec": ec.generate_private_key(ec.SECP256R1()),
            "ec384": ec.generate_private_key(ec.SECP384R1()),
            "ec521": ec.generate_private_key(ec.SECP521R1()),
            "ed": ed25519.Ed25519PrivateKey.generate(),
            "stranger": rsa.generate_private_key(65537, 2048),
        }

    def pem(self, kid: str) -> bytes:
        key = self.private[kid].public_key()
        return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def jwk(self, kid: str, **more: Any) -> dict[str, Any]:
        reader = "RS256" if kid in ("rsa", "stranger") else "EdDSA" if kid == "ed" else "ES256"
        made = LIBRARY[reader].to_jwk(self.private[kid].public_key(), as_dict=True)
        return {"kid": kid, "use": "sig", **made, **more}

    def jwks(self, *kids: str) -> bytes:
        return json.dumps({"keys": [self.jwk(kid) for kid in kids or ("rsa", "ec", "ec384", "ec521", "ed")]}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a valid token; None removes one."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 300, "iat": now, "scope": "orders:read"}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(
        self,
        header: Any = None,
        claims: Any = None,
        *,
        key: Any = "rsa",
        sign: str = "RS256",
        **changes: Any,
    ) -> str:
        """A token.

        Args:
            header, claims: values, or bytes of JSON; absent: valid ones. `header` may also be a few changed parameters.
            key: the kid of a key, or the key itself.
            sign: the algorithm to sign with, whatever the header says.
            changes: of the claims.
        """
        kid = key if isinstance(key, str) else "rsa"
        if not isinstance(header, bytes):
            whole = {"alg": sign, "kid": kid, "typ": "JWT", **(header or {})}
            header = {name: value for name, value in whole.items() if value is not None}
        signed = f"{part(header)}.{part(self.claims(**changes) if claims is None else claims)}"
        private = self.private[key] if isinstance(key, str) else key
        return f"{signed}.{b64(LIBRARY[sign].sign(signed.encode(), private))}"


PROVIDER = Provider()


def standard(secret: bytes, algorithm: str = "HS256", **changes: Any) -> str:
    """A token that PyJWT makes by itself."""
    return jwt.encode(PROVIDER.claims(**changes), secret, algorithm)
