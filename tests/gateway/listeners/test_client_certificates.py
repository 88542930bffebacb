"""Client certificates: who is let in, who the caller is, and revocation."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from gateway_front import eventually
from listener_set import Authority, Served, ask_on, served, settings_of

from mesh.config import Settings
from mesh.errors import Unauthenticated
from mesh.gateway.edge.auth.certificate import identify
from mesh.gateway.listeners.reload import Reloading
from mesh.observe.front_door import Door

TLS = '[gateway.tls]\ncertificate = "site.crt"\nkey = "site.key"\nclient_ca = "clients.pem"\n'


@pytest.fixture
def root(tmp_path: Path, authority: Authority) -> Path:
    authority.write(tmp_path / "site.crt", tmp_path / "site.key", "localhost")
    return tmp_path


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority("authority of clients")


def settings(root: Path, clients: Authority, text: str = "") -> Settings:
    (root / "clients.pem").write_bytes(clients.pem)
    return settings_of(root, TLS + text)


def with_certificate(root: Path, authority: Authority, issuer: Authority, *names: str, **how: Any) -> ssl.SSLContext:
    context = authority.client()
    issuer.write(root / "me.crt", root / "me.key", *names, **how)
    context.load_cert_chain(root / "me.crt", root / "me.key")
    return context


@pytest.mark.parametrize(
    ("names", "common_name", "principal"),
    [
        (("spiffe://shop.example/billing", "billing.example"), "billing", "spiffe://shop.example/billing"),
        (("ada@shop.example",), "Ada", "ada@shop.example"),
        (("billing.example",), "", "billing.example"),
        ((), "billing", "billing"),
    ],
)
async def test_the_certificate_names_the_caller(
    root: Path, authority: Authority, clients: Authority, names: tuple[str, ...], common_name: str, principal: str
):
    context = with_certificate(root, authority, clients, *names, common_name=common_name)
    async with served(settings(root, clients)) as front:
        reader, writer = await front.connect(tls=context)
        for _ in range(2):
            answer = await ask_on(reader, writer, "GET /who")
            assert (answer.status, answer.body) == (200, f'["{principal}", "certificate"]'.encode())
        writer.close()


async def refused(front: Served, context: ssl.SSLContext) -> bool:
    # With TLS 1.3 a client learns of the refusal when it reads.
    try:
        await front.ask("GET /who", tls=context)
    except (ssl.SSLError, ConnectionError, EOFError):
        return True
    return False


async def test_commands_take_the_demand_for_a_certificate_as_an_answer(
    root: Path, authority: Authority, clients: Authority
):
    """`mesh up` has no client certificate, and must not wait for ever."""
    async with served(settings(root, clients)) as front:
        at = ("127.0.0.1", front.port())
        assert await asyncio.to_thread(Door(at, tls=True, certified=True).status, "/readyz") == 200
        assert await asyncio.to_thread(Door(at, tls=True).status, "/readyz") == 0
        assert await asyncio.to_thread(Door(at, certified=True).status, "/readyz") == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_without_a_certificate_of_the_authority_nobody_gets_in(
    root: Path, authority: Authority, clients: Authority, version: ssl.TLSVersion
):
    """None, one of another authority, one that has expired, and one of a server's authority that is not for clients."""
    contexts = [
        authority.client(),
        with_certificate(root, authority, Authority("authority of clients"), common_name="mallory"),
        with_certificate(root, authority, authority, common_name="mallory"),
        with_certificate(root, authority, clients, common_name="late", days=-0.01),
    ]
    async with served(settings(root, clients)) as front:
        for context in contexts:
            context.minimum_version = context.maximum_version = version
            assert await refused(front, context)
        await eventually(lambda: not front.serving.has_connections, "all are gone")
        failed = sum(front.count("gateway_connections_failed", reason=each) for each in ("tls", "certificate"))
        assert failed == len(contexts)


async def test_certificates_can_be_optional(root: Path, authority: Authority, clients: Authority):
    text = 'client_certificates = "optional"\n[auth]\nmounts = { "/who" = "none" }\n'
    async with served(settings(root, clients, text)) as front:
        assert (await front.ask("GET /who", tls=authority.client())).body == b"null"
        # What requires a caller is refused without one.
        assert (await front.ask("GET /client", tls=authority.client())).status == 401
        context = with_certificate(root, authority, clients, common_name="billing")
        assert (await front.ask("GET /client", tls=context)).status == 200
        other = with_certificate(root, authority, Authority(), common_name="mallory")
        assert await refused(front, other)


def resume(port: int, context: ssl.SSLContext, session: ssl.SSLSession) -> tuple[bool, bytes]:
    """Whether the gateway has resumed a session, and what it answers."""
    with (
        socket.create_connection(("127.0.0.1", port)) as sock,
        context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
    ):
        try:
            tls.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return bool(tls.session_reused), tls.recv(12)
        except (ssl.SSLError, ConnectionError):
            return bool(tls.session_reused), b""


async def test_a_revoked_certificate_is_refused_once_the_list_is_loaded(
    root: Path, authority: Authority, clients: Authority
):
    """Sessions that could be resumed do not get past it either."""
    context = with_certificate(root, authority, clients, common_name="billing")
    certificate = clients.write(root / "me.crt", root / "me.key", common_name="billing")
    context.load_cert_chain(root / "me.crt", root / "me.key")
    (root / "revoked.pem").write_bytes(clients.revoked())
    async with served(settings(root, clients, 'client_crl = "revoked.pem"\n')) as front:
        assert front.listeners.tls is not None
        watch = Reloading(front.listeners.tls, front.node.clock, front.node.recorder)
        reader, writer = await front.connect(tls=context)
        assert (await ask_on(reader, writer, "GET /who")).status == 200
        session = writer.get_extra_info("ssl_object").session
        assert await asyncio.to_thread(resume, front.port(), context, session) == (True, b"HTTP/1.1 200")
        (root / "revoked.pem").write_bytes(clients.revoked(certificate))
        assert [watch.look(), watch.look()] == [False, True]
        assert await refused(front, context)
        assert await asyncio.to_thread(resume, front.port(), context, session) == (False, b"")
        writer.close()


SAN = (("DNS", "a.example"), ("URI", "spiffe://a"), ("email", "a@b"))
SUBJECT = (
    (("organizationName", "Shop"),),
    (("organizationalUnitName", "ops"),),
    (("organizationalUnitName", "dev"),),
    (("commonName", "ada"),),
)
PEER = {"subject": SUBJECT, "subjectAltName": SAN, "serialNumber": "0A"}


@pytest.mark.parametrize(
    ("name", "roles", "principal", "given"),
    [
        ("any", "none", "spiffe://a", set()),
        ("uri", "ou", "spiffe://a", {"ops", "dev"}),
        ("email", "o", "a@b", {"Shop"}),
        ("dns", "none", "a.example", set()),
        ("cn", "ou", "ada", {"ops", "dev"}),
    ],
)
def test_which_name_is_the_principal_is_a_setting(name: str, roles: str, principal: str, given: set[str]):
    identity = identify(PEER, name, roles)
    assert (identity.principal, identity.roles, identity.key) == (principal, given, "0A")


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ({"subject": SUBJECT}, "uri"),
        ({"subject": ()}, "any"),
        ({"subject": (), "subjectAltName": (("DNS", "a.example"), ("DNS", "b.example"))}, "any"),
        ({"subject": ((("commonName", "a"), ("commonName", "b")),)}, "cn"),
    ],
)
def test_a_certificate_without_one_certain_name_is_refused(peer: dict[str, Any], name: str):
    with pytest.raises(Unauthenticated):
        identify(peer, name, "none")
