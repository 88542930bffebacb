"""The compact form of a signed token: three parts in base64url, the first two of them JSON. Pure.

Owns: reading it, strictly. Leaves to others: keys and signatures (keys), the meaning of the claims (claims).

Whatever two readers could understand differently is refused before a signature is checked: encodings of one value in
two ways, duplicate names, text that is not UTF-8, header parameters that must be understood (`crit`).

Source: RFC 7515 (JWS), RFC 7519 (JWT), RFC 8725 (best current practices).
"""

from __future__ import annotations

import binascii
import json
import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final, NamedTuple

from mesh.errors import Unauthenticated
from mesh.gateway.depth import depth_of

#: The longest token, in characters. A head of 8 KiB is the limit of most servers, aiohttp among them.
MAX_TOKEN: Final = 8 * 1024
#: The most levels of objects and arrays in the header and in the claims. Interpreters have limits of their own, which
#: depend on their version.
MAX_DEPTH: Final = 32
#: The longest `kid`, in characters.
MAX_KID: Final = 256

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
#: The `typ` of tokens that may be sent as credentials, when no type is configured: RFC 7519, RFC 9068, or none. Others
#: are made for other uses: logout+jwt, secevent+jwt, dpop+jwt.
_USUAL_TYPES: Final = frozenset({"jwt", "at+jwt"})


class Token(NamedTuple):
    """A token with a signature that has not been checked.

    Attributes:
        algorithm: `alg` of its header.
        kid: the id of the key, as the token tells it; "" for none.
        signed: the bytes that the signature is over.
    """

    algorithm: str
    kid: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def read_token(text: str, required_type: str = "") -> Token:
    """Take a token apart.

    Args:
        required_type: the `typ` that its header must have; "" accepts the usual ones.

    Raises:
        Unauthenticated: it is not a signed token in compact form, or ambiguous; the message says why.
    """
    if len(text) > MAX_TOKEN:
        raise Unauthenticated(f"the token is longer than {MAX_TOKEN} characters")
    parts = _COMPACT.fullmatch(text)
    if parts is None:
        raise Unauthenticated("the token is not a signed JSON Web Token: three parts in base64url, separated by dots")
    header = _json(_decode(parts[1]), "header")
    claims = _json(_decode(parts[2]), "payload")
    algorithm, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str):
        raise Unauthenticated("the token's header has no alg")
    if not isinstance(kid, str) or len(kid) > MAX_KID:
        raise Unauthenticated("the token's kid is not a short text")
    # jku, jwk, x5u and x5c, with which a token names its own key, are ignored: keys come from the settings alone.
    for name in ("crit", "b64", "zip", "enc"):
        if name in header:
            raise Unauthenticated(f"the token's header has {name}, which is not supported")
    _check_type(header.get("typ"), required_type)
    return Token(algorithm, kid, claims, text[: parts.end(2)].encode(), _decode(parts[3]))


def _decode(text: str) -> bytes:
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        data = b""
    # Bits that the last character does not need must be 0; otherwise one signature has several spellings.
    if urlsafe_b64encode(data).rstrip(b"=") != text.encode():
        raise Unauthenticated("a part of the token is not base64url")
    return data


def _json(data: bytes, part: str) -> dict[str, Any]:
    try:
        if depth_of(data) > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        found = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unauthenticated(f"the {part} of the token is not a JSON object with unique names")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number


def _check_type(told: Any, required: str) -> None:
    if told is not None and not isinstance(told, str):
        raise Unauthenticated("the token's typ is not a text")
    name = (told or "").lower().removeprefix("application/")
    if required:
        if name != required.lower().removeprefix("application/"):
            raise Unauthenticated("the token is of another type than the gateway requires")
    elif told is not None and name not in _USUAL_TYPES:
        raise Unauthenticated("the token is of a type that is not for authentication")
