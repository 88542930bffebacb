"""The keys that may have signed a token.

Owns: reading a JWK set, PEM files and secrets; which algorithms a key may be used with; verifying a signature.
Leaves to others: where the keys come from (key_sources, remote_keys), the form of a token (token).

A key is bound to the algorithms of its type, and to one of them when its JWK names it. So a token cannot choose to have
a public RSA key used as an HMAC secret, or a P-256 key with ES512.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mesh.errors import ConfigError, Unauthenticated
from mesh.gateway.edge.auth.jwt.token import Token

if TYPE_CHECKING:
    from jwt.algorithms import Algorithm

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}
_OKP: Final = ("EdDSA",)
#: The algorithms of public keys.
PUBLIC: Final = frozenset({*_RSA, "ES256", "ES384", "ES512", *_OKP})
#: The algorithms of secrets, each with the least length in bytes: that of its hash (RFC 7518, section 3.2).
SECRET: Final = {"HS256": 32, "HS384": 48, "HS512": 64}

#: The least length of RSA keys in bits (RFC 7518, section 3.3), and the most: verifying takes longer with longer ones.
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 16384
#: The most keys of one set. A token without kid is tried with all of them that fit.
MAX_KEYS: Final = 64

_PEM: Final = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)


class BadKey(ValueError):
    """A key cannot be used; the message says why."""


class Key(NamedTuple):
    """One key.

    Attributes:
        kid: its id; "" for none.
        algorithms: those it may be used with.
        material: as the library takes it.
    """

    kid: str
    algorithms: frozenset[str]
    material: Any


class KeySet:
    """The keys of one provider.

    Attributes:
        skipped: why other keys that came with them are not used.
    """

    def __init__(self, keys: Iterable[Key], skipped: Iterable[str] = ()) -> None:
        from jwt.algorithms import get_default_algorithms

        self.keys = tuple(keys)
        self.skipped = tuple(skipped)
        self._library: dict[str, Algorithm] = get_default_algorithms()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and other.keys == self.keys

    __hash__ = None  # type: ignore[assignment]

    @property
    def kids(self) -> list[str]:
        """The ids of the keys, for logs."""
        return sorted(key.kid for key in self.keys)

    def knows(self, kid: str) -> bool:
        """Whether a token with this kid can be verified."""
        return any(key.kid in ("", kid) for key in self.keys) if kid else bool(self.keys)

    def verify(self, token: Token) -> None:
        """Check the signature of a token with the keys that its `kid` and `alg` leave.

        Raises:
            Unauthenticated: no key has signed it.
        """
        known = [key for key in self.keys if not token.kid or key.kid in ("", token.kid)]
        if not known:
            raise Unauthenticated("the token is signed with a key that its issuer does not publish")
        fitting = [key for key in known if token.algorithm in key.algorithms]
        if not fitting:
            raise Unauthenticated("the token is signed with an algorithm that is not accepted")
        library = self._library[token.algorithm]
        if not any(library.verify(token.signed, key.material, token.signature) for key in fitting):
            raise Unauthenticated("the signature of the token is wrong")


def read_secret(text: str, allowed: Collection[str]) -> KeySet:
    """The key set of a shared secret.

    Raises:
        BadKey: it is too short for an algorithm, or it is a public key.
    """
    material = text.encode()
    if b"-----BEGIN" in material or material.lstrip().startswith((b"{", b"ssh-")):
        raise BadKey("is a key file, not a secret; name it in auth.jwt.file")
    for name in allowed:
        if len(material) < SECRET[name]:
            raise BadKey(
                f"has {len(material)} bytes, and {name} requires at least {SECRET[name]}: make one with "
                f"`openssl rand -hex {SECRET[name]}`"
            )
    return KeySet([Key("", frozenset(allowed), material)])


def read_file(data: bytes, allowed: Collection[str]) -> KeySet:
    """The key set of a file: a JWK set, or public keys and certificates in PEM.

    Raises:
        BadKey: it holds neither, or a key that cannot be used.
    """
    found = _read_pem(data, allowed) if b"-----BEGIN" in data else read_jwks(data, allowed)
    if found.skipped:
        # A file is written by the same people who run the gateway: a key in it that is of no use is a mistake.
        raise BadKey("; ".join(found.skipped))
    return found


def read_jwks(data: bytes, allowed: Collection[str]) -> KeySet:
    """The key set of a JWK set (RFC 7517). Keys of other uses, unknown types and without strength are skipped.

    Raises:
        BadKey: it is not a JWK set, or has no key that can be used.
    """
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise BadKey("is not JSON") from None
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BadKey('is not a JWK set: {"keys": [{"kty": …}, …]}')
    if len(listed) > MAX_KEYS:
        raise BadKey(f"has {len(listed)} keys; the limit is {MAX_KEYS}")
    keys, skipped = [], []
    for number, each in enumerate(listed, 1):
        try:
            keys.append(_read_jwk(each, allowed))
        except BadKey as exc:
            name = each.get("kid")
            skipped.append(f"the key {name[:64] if isinstance(name, str) else number} {exc}")
    if not keys:
        raise BadKey("has no key that can be used" + (f": {'; '.join(skipped)}"[:500] if skipped else ""))
    return KeySet(keys, skipped)


def _read_jwk(jwk: Mapping[str, Any], allowed: Collection[str]) -> Key:
    from jwt.algorithms import get_default_algorithms
    from jwt.exceptions import PyJWTError

    kid, told = jwk.get("kid", ""), jwk.get("alg")
    if not isinstance(kid, str):
        raise BadKey("has a kid that is not a text")
    uses = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        raise BadKey("is not for signatures")
    if "d" in jwk:
        raise BadKey("is a private key; publish its public half only")
    reader = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}.get(str(jwk.get("kty")))
    if reader is None:
        raise BadKey(f"has the type {str(jwk.get('kty'))[:20]}, which is not supported")
    try:
        material = get_default_algorithms()[reader].from_jwk(dict(jwk))
    except (PyJWTError, ValueError, TypeError, KeyError) as exc:
        raise BadKey(f"is broken: {exc}"[:200]) from None
    found = _key(kid, material, allowed)
    if told is None:
        return found
    if told not in found.algorithms:
        raise BadKey(f"is for the algorithm {str(told)[:20]}, which is not accepted or does not fit the key")
    return found._replace(algorithms=frozenset({told}))


def _read_pem(data: bytes, allowed: Collection[str]) -> KeySet:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = []
    for number, block in enumerate(_PEM.finditer(data), 1):
        name = f"block {number}"
        if b"PRIVATE" in block[1]:
            raise BadKey(f"{name} is a private key; write its public half: `openssl pkey -pubout`")
        try:
            certificate = block[1] == b"CERTIFICATE"
            material = (
                x509.load_pem_x509_certificate(block[0]).public_key() if certificate else load_pem_public_key(block[0])
            )
        except (ValueError, TypeError) as exc:
            raise BadKey(f"{name} is not a public key in PEM: {exc}"[:300]) from None
        try:
            keys.append(_key("", material, allowed))
        except BadKey as exc:
            raise BadKey(f"{name} {exc}") from None
    if not keys or len(keys) > MAX_KEYS:
        raise BadKey(f"has {len(keys)} public keys in PEM; 1 to {MAX_KEYS} can be used")
    return KeySet(keys)


def _key(kid: str, material: Any, allowed: Collection[str]) -> Key:
    """The key, bound to the allowed algorithms of its type.

    Raises:
        BadKey: there are none, or the key is weak.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    fitting: tuple[str, ...] = ()
    if isinstance(material, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= material.key_size <= MAX_RSA_BITS:
            raise BadKey(f"has {material.key_size} bits; RSA requires {MIN_RSA_BITS} to {MAX_RSA_BITS}")
        fitting = _RSA
    elif isinstance(material, ec.EllipticCurvePublicKey):
        fitting = _CURVES.get(material.curve.name, ())
    elif isinstance(material, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        fitting = _OKP
    algorithms = frozenset(fitting).intersection(allowed)
    if not algorithms:
        raise BadKey(f"fits none of the accepted algorithms ({', '.join(sorted(allowed))})")
    return Key(kid, algorithms, material)


def accepted(names: Collection[str], *, secret: bool) -> frozenset[str]:
    """The algorithms to accept.

    Args:
        names: `auth.jwt.algorithms`.
        secret: the key is a shared secret.

    Raises:
        ConfigError: one of them is unknown, or is not for this kind of key.
    """
    possible = frozenset(SECRET) if secret else PUBLIC
    for name in names:
        if name not in possible:
            kind = "a shared secret" if secret else "public keys"
            raise ConfigError(
                f'auth.jwt.algorithms: "{name}" cannot be used with {kind}; choose of {", ".join(sorted(possible))}'
            )
    return frozenset(names) or (frozenset({"HS256"}) if secret else PUBLIC)
