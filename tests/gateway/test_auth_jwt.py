"""Tokens that are right: algorithms, what their claims become, files of keys, and wrong settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front
from gateway_tokens import AUDIENCE, ISSUER, LIBRARY, PROVIDER, standard

from mesh.clock import ManualClock
from mesh.config import Settings, load
from mesh.config.edge_auth import AuthSettings, JwtSettings
from mesh.config.secrets import Secret
from mesh.errors import ConfigError, Unauthenticated
from mesh.gateway.edge.auth import watched_file
from mesh.gateway.edge.auth.jwt import method
from mesh.gateway.edge.auth.jwt.key_sources import Fixed
from mesh.gateway.edge.auth.jwt.keys import PUBLIC, read_jwks
from mesh.gateway.edge.auth.jwt.method import Tokens
from mesh.gateway.server import Gateway

P = PROVIDER
Open = Callable[..., AbstractAsyncContextManager[Front]]


@pytest.fixture
def with_jwt(settings: Settings) -> Callable[..., Settings]:
    def make(**values: Any) -> Settings:
        jwt = JwtSettings(**{"issuer": ISSUER, "audience": [AUDIENCE], **values})
        return Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(jwt=jwt), root=Path("/"))

    return make


@pytest.fixture
def opened(node: FakeNode, with_jwt: Callable[..., Settings]) -> Open:
    @asynccontextmanager
    async def make(**values: Any) -> AsyncIterator[Front]:
        open_desk(node)
        async with gateway_of(node, with_jwt(**values)) as front:
            yield front

    return make


async def status(front: Front, token: str, path: str = "/user") -> int:
    return (await front.get(path, headers={"Authorization": f"bearer {token}"})).status


ALGORITHMS = [
    *(("rsa", f"{family}{bits}") for family in ("RS", "PS") for bits in (256, 384, 512)),
    ("ec", "ES256"),
    ("ec384", "ES384"),
    ("ec521", "ES512"),
    ("ed", "EdDSA"),
]


async def test_all_algorithms_of_public_keys(opened: Open, tmp_path: Path):
    (tmp_path / "jwks").write_bytes(P.jwks())
    async with opened(file=tmp_path / "jwks") as front:
        for kid, algorithm in ALGORITHMS:
            assert await status(front, P.token(key=kid, sign=algorithm)) == 200
            assert await status(front, P.token({"kid": None, "typ": "at+jwt"}, key=kid, sign=algorithm)) == 200
    assert {algorithm for _, algorithm in ALGORITHMS} == PUBLIC


@pytest.mark.parametrize(("algorithm", "size"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
async def test_secrets(opened: Open, monkeypatch: pytest.MonkeyPatch, algorithm: str, size: int):
    monkeypatch.setenv("TOKENS", "s" * size)
    async with opened(secret=Secret("env:TOKENS"), algorithms=[algorithm]) as front:
        assert await status(front, standard(b"s" * size, algorithm)) == 200
        assert await status(front, standard(b"t" * size, algorithm)) == 401
        assert await status(front, P.token()) == 401


async def test_claims_become_the_identity(opened: Open, tmp_path: Path):
    (tmp_path / "pem").write_bytes(P.pem("rsa") + P.pem("ec"))
    async with opened(
        file=tmp_path / "pem",
        principal="email",
        roles="https://shop.example/roles",
        tenant="org.id",
        type="application/at+jwt",
    ) as front:
        claims = {"email": "ann@shop", "org": {"id": "acme"}, "https://shop.example/roles": ["clerk"]}
        token = P.token({"typ": "AT+JWT"}, scp=["orders:read", "orders:write"], scope=None, **claims)
        answer = await front.get("/user", headers={"Authorization": f"Bearer {token}"})
        assert answer.json == "ann@shop@acme"
        assert [await status(front, token, path) for path in ("/write", "/clerk")] == [200, 200]
        less = P.token({"typ": "at+jwt"}, email="bob", scope="orders:read profile")
        refused = await front.get("/write", headers={"Authorization": f"Bearer {less}"})
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (
            403,
            'Bearer realm="mesh", error="insufficient_scope", scope="orders:read orders:write"',
        )
        assert await status(front, P.token({"typ": "JWT"}, **claims)) == 401


async def test_the_clocks_may_differ_by_the_leeway(opened: Open, tmp_path: Path):
    (tmp_path / "jwks").write_bytes(P.jwks("rsa"))
    now = int(time.time())
    async with opened(file=tmp_path / "jwks", leeway_s=60.0) as front:
        assert await status(front, P.token(exp=now - 30, nbf=now + 30, iat=now + 30)) == 200
        assert [await status(front, P.token(**each)) for each in ({"exp": now - 90}, {"nbf": now + 90})] == [401, 401]


async def test_keys_follow_their_file_and_a_removed_key_ends_its_tokens(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watched_file, "INTERVAL_S", 0.0)
    file = tmp_path / "jwks"
    file.write_bytes(P.jwks("rsa"))
    old, new = P.token(), P.token(key="ec", sign="ES256")
    async with opened(file=file) as front:
        assert [await status(front, each) for each in (old, new)] == [200, 401]
        for content, expected in (
            (P.jwks("rsa", "ec"), [200, 200]),
            (P.jwks("ec"), [401, 200]),
            (b"{broken", [401, 200]),
            (P.jwks("rsa"), [200, 401]),
        ):
            (tmp_path / "new").write_bytes(content)
            os.replace(tmp_path / "new", file)
            assert [await status(front, each) for each in (old, new)] == expected
        file.unlink()
        assert [await status(front, each) for each in (old, new)] == [200, 401]


# --- the memory of verified tokens ---------------------------------------------------------------------


class Counted(Fixed):
    verified = 0


class Asked:
    """A request with a token."""

    def __init__(self, token: str) -> None:
        from multidict import CIMultiDict, CIMultiDictProxy

        self.raw = self
        self.headers = CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {token}"}))


async def test_a_token_is_verified_once_until_it_expires(monkeypatch: pytest.MonkeyPatch):
    clock = ManualClock()
    tokens = Tokens(
        JwtSettings(issuer=ISSUER, audience=[AUDIENCE], leeway_s=0.0), Fixed(read_jwks(P.jwks(), PUBLIC)), clock
    )
    count = 0
    verify = tokens.verify

    async def counted(text: str) -> Any:
        nonlocal count
        count += 1
        return await verify(text)

    monkeypatch.setattr(tokens, "verify", counted)
    token = P.token(iat=None, exp=int(clock.wall()) + 100)
    request: Any = Asked(token)
    first = await tokens.authenticate(request)
    assert first is await tokens.authenticate(request)
    assert count == 1
    clock.turn(101)
    with pytest.raises(Unauthenticated):
        await tokens.authenticate(request)
    assert (count, len(tokens._known)) == (2, 0)


async def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(method, "MOST_KNOWN", 3)
    clock = ManualClock()
    tokens = Tokens(JwtSettings(issuer=ISSUER, audience=[AUDIENCE]), Fixed(read_jwks(P.jwks(), PUBLIC)), clock)
    for number in range(8):
        request: Any = Asked(P.token(iat=None, exp=int(clock.wall()) + 100, sub=f"user-{number}"))
        await tokens.authenticate(request)
    assert len(tokens._known) == 3


# --- wrong settings ------------------------------------------------------------------------------------


def weak() -> bytes:
    key = rsa.generate_private_key(65537, 1024).public_key()
    return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def weak_jwks() -> bytes:
    made = LIBRARY["RS256"].to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)
    return json.dumps({"keys": [made, P.jwk("rsa")]}).encode()


def private() -> bytes:
    return bytes(P.private["ec"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (weak, "auth.jwt.file"),
        (weak_jwks, "auth.jwt.file"),
        (private, "auth.jwt.file"),
        (lambda: b"", "auth.jwt.file"),
        (lambda: b"[]", "auth.jwt.file"),
        (lambda: b'{"keys": []}', "auth.jwt.file"),
        (lambda: b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "auth.jwt.file"),
        (lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "auth.jwt.file"),
        (lambda: json.dumps({"keys": [P.jwk("rsa", use="enc")]}).encode(), "auth.jwt.file"),
        (lambda: json.dumps({"keys": [P.jwk("rsa", alg="RSA-OAEP")]}).encode(), "auth.jwt.file"),
        (lambda: json.dumps({"keys": [P.jwk("rsa", d="AQAB")]}).encode(), "auth.jwt.file"),
        (lambda: json.dumps({"keys": [P.jwk("rsa")] * 65}).encode(), "auth.jwt.file"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_at_the_start(
    node: FakeNode, with_jwt: Callable[..., Settings], tmp_path: Path, content: Callable[[], bytes], key: str
):
    (tmp_path / "keys").write_bytes(content())
    with pytest.raises(ConfigError, match=f"^{key}: {tmp_path}/keys: "):
        Gateway(node, with_jwt(file=tmp_path / "keys"))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"secret": Secret("env:SHORT")}, "auth.jwt.secret"),
        ({"secret": Secret("env:LONG"), "algorithms": ["HS512"]}, "auth.jwt.secret"),
        ({"secret": Secret("env:PEM")}, "auth.jwt.secret"),
        ({"secret": Secret("env:ABSENT")}, "auth.jwt.secret"),
        ({"secret": Secret("env:LONG"), "algorithms": ["RS256"]}, "auth.jwt.algorithms"),
        ({"file": "x", "algorithms": ["HS256"]}, "auth.jwt.algorithms"),
        ({"file": "x", "algorithms": ["none"]}, "auth.jwt.algorithms"),
        ({"file": "absent"}, "auth.jwt.file"),
        ({"issuer": ""}, "auth.jwt.issuer"),
        ({"audience": []}, "auth.jwt.audience"),
        ({"issuer": "http://id.example"}, "auth.jwt.issuer"),
        ({"secret": Secret("env:LONG"), "file": "x"}, "auth.jwt.secret"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_the_start(
    node: FakeNode,
    with_jwt: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    key: str,
):
    for name, value in {"SHORT": "s" * 31, "LONG": "s" * 63, "PEM": P.pem("rsa").decode()}.items():
        monkeypatch.setenv(name, value)
    values = {name: Path("/nowhere") / each if name == "file" else each for name, each in values.items()}
    with pytest.raises(ConfigError, match=f"^{key}: "):
        Gateway(node, with_jwt(**values))


def test_without_the_libraries_the_error_names_the_extra(
    node: FakeNode, with_jwt: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"^auth\.jwt: .*zeromesh\[auth\]"):
        Gateway(node, with_jwt())


def test_a_gateway_without_tokens_loads_no_library_for_them():
    script = "import sys, mesh.gateway.app; sys.exit(bool({'jwt', 'cryptography'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[auth]\ndefault = "user"', "mesh.toml:2: auth.default: no caller is authenticated"),
        ('[auth]\ndefault = "all"', 'mesh.toml:2: auth.default: "all" is not "none", "user"'),
        ('[auth.mounts]\n"/docs" = "no"', "auth.mounts: "),
        ('[auth.jwt]\nissuer = "https://id.example"', "mesh.toml:2: auth.jwt.audience: is missing"),
        ('[auth.jwt]\nissuer = "https://id.example"\naudience = "a"\njwks = "http://id.example/k"', "auth.jwt.jwks: "),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\nsecret = "hunter2"', "auth.jwt.secret: *** is not "),
        ('[auth.jwt]\nalgorithm = "RS256"', "did you mean algorithms?"),
        ('[auth.proxy]\nheader = "X-User"', "mesh.toml:2: auth.proxy.header: no proxy is trusted"),
        ('[auth.proxy]\nheader = "X User"', "mesh.toml:2: auth.proxy.header: "),
    ],
)
def test_a_wrong_table_is_reported_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "mesh.toml", env={})
    assert message in caught.value.message.replace('"algorithms"', "algorithms")
