"""Wrong tokens: every one is refused with 401, and the gateway answers the next request."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front
from gateway_tokens import AUDIENCE, ISSUER, LIBRARY, PROVIDER, b64, part

from mesh.config import Settings
from mesh.config.edge_auth import AuthSettings, JwtSettings

P = PROVIDER
RSA, EC = {"alg": "RS256", "kid": "rsa"}, {"alg": "ES256", "kid": "ec"}
LATER = int(time.time()) + 86_400


def unsigned(alg: str, signature: str = "") -> str:
    return f"{part({'alg': alg, 'typ': 'JWT'})}.{part(P.claims())}.{signature}"


def edited(change: Callable[[list[str]], list[str]], **options: Any) -> str:
    """A valid token whose parts are changed after it was signed."""
    return ".".join(change(P.token(**options).split(".")))


def hmac_with(secret: bytes, kid: str = "rsa") -> str:
    signed = f"{part({'alg': 'HS256', 'kid': kid})}.{part(P.claims())}"
    return f"{signed}.{b64(LIBRARY['HS256'].sign(signed.encode(), secret))}"


def last_bit(text: str) -> str:
    """Another spelling of the same bytes: the unused bits of the last character are not 0."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


def claims_text(more: str) -> bytes:
    return json.dumps(P.claims()).encode()[:-1] + b", " + more.encode() + b"}"


def embedded(**header: Any) -> str:
    return P.token(header, key="stranger")


def der_signature() -> str:
    """ECDSA in DER, as most libraries write it, instead of the fixed form of JWS."""
    signed, _, raw = P.token(key="ec", sign="ES256").rpartition(".")
    size = 32
    data = LIBRARY["ES256"].sign(signed.encode(), P.private["ec"])
    der = encode_dss_signature(int.from_bytes(data[:size]), int.from_bytes(data[size:]))
    assert raw
    return f"{signed}.{b64(der)}"


ATTACKS: dict[str, Callable[[], str]] = {
    # No signature.
    "none": lambda: unsigned("none"),
    "none with a signature": lambda: unsigned("none", "AAAA"),
    "None": lambda: unsigned("None", "AAAA"),
    "nOnE": lambda: unsigned("nOnE", "AAAA"),
    "empty algorithm": lambda: unsigned("", "AAAA"),
    "signature removed": lambda: edited(lambda parts: [*parts[:2], ""]),
    "signature cut": lambda: edited(lambda parts: [*parts[:2], parts[2][:-40]]),
    "signature of zeros, ECDSA": lambda: edited(lambda parts: [*parts[:2], b64(bytes(64))], key="ec", sign="ES256"),
    "signature in DER": der_signature,
    # Confusion of algorithms and keys.
    "public RSA key as HMAC secret": lambda: hmac_with(P.pem("rsa").replace(b"-----", b"- - -")),
    "HMAC with an empty secret": lambda: hmac_with(b""),
    "HMAC with the JWK": lambda: hmac_with(json.dumps(P.jwk("rsa")).encode()),
    "RS256 by a stranger": lambda: P.token({"kid": "rsa"}, key="stranger"),
    "ES512 with a P-256 key": lambda: P.token({"alg": "ES512"}, key="ec", sign="ES256"),
    "ES256 with an RSA key": lambda: P.token({"alg": "ES256"}),
    "RS256 with the id of an EC key": lambda: P.token({"kid": "ec"}),
    "EdDSA with an RSA key": lambda: P.token({"alg": "EdDSA"}),
    "PS256, which is not accepted": lambda: P.token(sign="PS256"),
    "an algorithm that there is not": lambda: P.token({"alg": "RS1024"}),
    "algorithm as a list": lambda: P.token({"alg": ["RS256"]}),
    "no algorithm": lambda: P.token({"alg": None}),
    # Keys that the token brings along.
    "jwk": lambda: embedded(jwk=P.jwk("stranger")),
    "jwk with the id of a known key": lambda: embedded(jwk=P.jwk("stranger"), kid="rsa"),
    "x5c": lambda: embedded(x5c=["MIIB"], kid="rsa"),
    "unknown kid": lambda: embedded(),
    "kid as a path": lambda: embedded(kid="../../../../dev/null"),
    "kid as SQL": lambda: embedded(kid="rsa' UNION SELECT 'secret"),
    "kid as a number": lambda: P.token({"kid": 7}),
    "kid of 3,000 characters": lambda: P.token({"kid": "k" * 3000}),
    # Time.
    "expired": lambda: P.token(exp=int(time.time()) - 3600),
    "no exp": lambda: P.token(exp=None),
    "exp as text": lambda: P.token(exp=str(LATER)),
    "exp true": lambda: P.token(exp=True),
    "exp null": lambda: P.token(claims={**P.claims(), "exp": None}),
    "exp Infinity": lambda: P.token(claims={**P.claims(), "exp": float("inf")}),
    "exp NaN": lambda: P.token(claims={**P.claims(), "exp": float("nan")}),
    "exp 1e999": lambda: P.token(claims=claims_text('"exp": 1e999')),
    "exp of 500 digits": lambda: P.token(exp=10**500),
    "exp of 5,000 digits": lambda: P.token(claims=claims_text(f'"x": {"9" * 5000}')),
    "not valid yet": lambda: P.token(nbf=LATER),
    "nbf as text": lambda: P.token(nbf="0"),
    "issued in the future": lambda: P.token(iat=LATER),
    # Another application.
    "wrong issuer": lambda: P.token(iss="https://id.example.evil"),
    "issuer with a slash": lambda: P.token(iss=ISSUER + "/"),
    "issuer as a list": lambda: P.token(iss=[ISSUER]),
    "no issuer": lambda: P.token(iss=None),
    "wrong audience": lambda: P.token(aud="billing"),
    "prefix of the audience": lambda: P.token(aud="sho"),
    "other audiences": lambda: P.token(aud=["billing", "shop2"]),
    "audience as an object": lambda: P.token(aud={AUDIENCE: True}),
    "no audience": lambda: P.token(aud=None),
    "no audiences": lambda: P.token(aud=[]),
    "logout token": lambda: P.token({"typ": "logout+jwt"}),
    "type as a number": lambda: P.token({"typ": 1}),
    # Header parameters that must be understood.
    "crit": lambda: P.token({"crit": ["exp"]}),
    "empty crit": lambda: P.token({"crit": []}),
    "b64": lambda: P.token({"b64": False, "crit": ["b64"]}),
    "zip": lambda: P.token({"zip": "DEF"}),
    # Two meanings.
    "claim twice": lambda: P.token(claims=claims_text('"sub": "admin"')),
    "claim twice, inside": lambda: P.token(claims=claims_text('"x": {"a": 1, "a": 2}')),
    "algorithm twice": lambda: P.token(b'{"alg": "none", "kid": "rsa", "alg": "RS256"}'),
    "another spelling of the signature": lambda: edited(lambda parts: [*parts[:2], last_bit(parts[2])]),
    "padding": lambda: edited(lambda parts: [*parts[:2], parts[2] + "=="]),
    "base64 of the other alphabet": lambda: edited(lambda parts: [*parts[:2], "+/" + parts[2][2:]]),
    "not UTF-8": lambda: P.token(claims=json.dumps(P.claims()).encode().replace(b'"ann"', b'"\xff\xfe"')),
    "byte order mark": lambda: P.token(claims=b"\xef\xbb\xbf" + json.dumps(P.claims()).encode()),
    "trailing data": lambda: P.token(claims=json.dumps(P.claims()).encode() + b"{}"),
    # Other forms.
    "payload changed": lambda: edited(lambda parts: [parts[0], part(P.claims(sub="admin")), parts[2]]),
    "payload of another token": lambda: edited(lambda parts: [parts[0], P.token(sub="b").split(".")[1], parts[2]]),
    "payload a list": lambda: P.token(claims=[P.claims()]),
    "payload a text": lambda: P.token(claims="ann"),
    "nested 2,000 deep": lambda: P.token(claims=claims_text('"x": ' + "[" * 2000 + "]" * 2000)),
    "empty parts": lambda: "..",
    "two parts": lambda: edited(lambda parts: parts[:2]),
    "four parts": lambda: edited(lambda parts: [*parts, "AAAA"]),
    "five parts, encrypted": lambda: edited(lambda parts: [*parts, "AAAA", "AAAA"]),
    "JSON serialization": lambda: json.dumps({"payload": part(P.claims()), "signature": "AAAA"}),
    "space inside": lambda: P.token().replace(".", ". ", 1),
    "not ASCII": lambda: P.token() + "é",
    "nothing": lambda: "",
    # Callers that cannot be.
    "no subject": lambda: P.token(sub=None),
    "empty subject": lambda: P.token(sub=""),
    "subject as a number": lambda: P.token(sub=0),
    "subject with a line break": lambda: P.token(sub="ann\r\nX-Admin: yes"),
    "subject of 300 characters": lambda: P.token(sub="a" * 300),
    "roles as an object": lambda: P.token(realm={"roles": {"admin": True}}),
    "scope as a number": lambda: P.token(scope=1),
}


@pytest.fixture
async def guarded(node: FakeNode, settings: Settings, tmp_path: Path) -> AsyncIterator[Front]:
    """A gateway that trusts the keys of a file."""
    (tmp_path / "keys.json").write_bytes(P.jwks())
    jwt = JwtSettings(
        issuer=ISSUER,
        audience=[AUDIENCE],
        file=tmp_path / "keys.json",
        algorithms=["RS256", "ES256", "ES384", "ES512", "EdDSA"],
        roles="realm.roles",
    )
    open_desk(node)
    made = Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(jwt=jwt))
    async with gateway_of(node, made) as front:
        yield front


async def sent(front: Front, token: str, **headers: str) -> tuple[int, str]:
    answer = await front.get("/user", headers={"Authorization": f"Bearer {token}", **headers})
    return answer.status, answer.json["code"] if answer.status != 200 else answer.json


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_wrong_token_is_refused_and_the_gateway_goes_on(guarded: Front, name: str):
    assert await sent(guarded, P.token()) == (200, "ann@")
    assert await sent(guarded, ATTACKS[name]()) == (401, "unauthenticated")
    assert await sent(guarded, P.token(sub="bob")) == (200, "bob@")


def test_the_list_is_long():
    assert len(ATTACKS) >= 30


async def test_a_token_beyond_the_limit_of_the_head_is_refused(guarded: Front):
    assert (await guarded.get("/user", headers={"Authorization": "Bearer " + "a" * 20_000})).status == 431
    assert await sent(guarded, P.token()) == (200, "ann@")


async def test_a_verified_token_does_not_vouch_for_a_changed_one(guarded: Front):
    token = P.token()
    assert await sent(guarded, token) == (200, "ann@")
    for at in range(0, len(token), 37):
        other = "A" if token[at] != "A" else "B"
        assert (await sent(guarded, token[:at] + other + token[at + 1 :]))[0] == 401


async def test_two_authorization_fields_are_refused(guarded: Front):
    request = (
        f"GET /user HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer {P.token()}\r\n"
        f"Authorization: Bearer {P.token(sub='admin')}\r\n\r\n"
    )
    reader, _ = await guarded.raw(request.encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 401 ")


async def test_tokens_are_read_from_nowhere_else(guarded: Front):
    token = P.token()
    for options in (
        {"path": f"/user?access_token={token}"},
        {"headers": {"Cookie": f"access_token={token}"}},
        {"headers": {"X-API-Key": token}},
        {"headers": {"Authorization": f"Basic {token}"}},
        {"headers": {"Authorization": token}},
        {"headers": {"Proxy-Authorization": f"Bearer {token}"}},
    ):
        assert (await guarded.get(str(options.get("path", "/user")), headers=options.get("headers"))).status == 401


async def test_urls_in_a_token_are_not_requested(guarded: Front):
    asked: list[str] = []

    async def serve(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(body=P.jwks("stranger"))

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    for name in ("jku", "x5u"):
        for kid in ("rsa", "stranger"):
            assert (await sent(guarded, embedded(**{name: url, "kid": kid})))[0] == 401
    await runner.cleanup()
    assert asked == []


async def test_the_refusal_of_a_token_says_so(guarded: Front):
    answer = await guarded.get("/user", headers={"Authorization": "Bearer x.y.z"})
    assert answer.headers.getall("WWW-Authenticate") == ['Bearer realm="mesh", error="invalid_token"']
