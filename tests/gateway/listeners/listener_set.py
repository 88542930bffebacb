"""Certificates made here, and a gateway with all of its listeners in this process."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_fakes import FakeNode
from gateway_shop import open_shop

from mesh.config import Settings, load
from mesh.gateway.listeners.listener import Kind
from mesh.gateway.listeners.opening import Listeners
from mesh.gateway.listeners.serving import Serving
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.mounts.external import External
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.server import Gateway

PEM = serialization.Encoding.PEM


class Authority:
    """A certificate authority of a test."""

    def __init__(self, name: str = "test authority") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    def issue(self, *names: str, days: float = 10, common_name: str = "") -> tuple[x509.Certificate, bytes, bytes]:
        """A certificate, its PEM, and the PEM of its key. A name with "://" is a URI, one with "@" an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if names:
            # RFC 5280, section 4.2.1.6: critical where there is no subject. Python 3.13 refuses it otherwise.
            alternatives = x509.SubjectAlternativeName([_name(each) for each in names])
            builder = builder.add_extension(alternatives, critical=not subject)
        made = builder.sign(self.key, hashes.SHA256())
        key_pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return made, made.public_bytes(PEM), key_pem

    def write(self, chain: Path, key: Path, *names: str, **how: Any) -> x509.Certificate:
        made, chain_pem, key_pem = self.issue(*names, **how)
        chain.parent.mkdir(parents=True, exist_ok=True)
        key.write_bytes(key_pem)
        chain.write_bytes(chain_pem)
        return made

    def revoked(self, *certificates: x509.Certificate) -> bytes:
        """A revocation list."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - timedelta(minutes=1))
            .next_update(now + timedelta(days=1))
        )
        for each in certificates:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(each.serial_number)
                .revocation_date(now - timedelta(minutes=1))
                .build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(PEM)

    def client(self, alpn: list[str] | None = None) -> ssl.SSLContext:
        """What a client that trusts this authority uses."""
        context = ssl.create_default_context(cadata=self.pem.decode())
        context.set_alpn_protocols(alpn or ["h2", "http/1.1"])
        return context


def _name(text: str) -> x509.GeneralName:
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    if "@" in text:
        return x509.RFC822Name(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def settings_of(root: Path, text: str) -> Settings:
    """The settings of a mesh.toml with this text; its gateway listens on any free port."""
    file = root / "mesh.toml"
    file.write_text(text)
    return load(file, {})


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Served:
    """A gateway with all its listeners."""

    gateway: Gateway
    node: FakeNode
    listeners: Listeners
    serving: Serving

    def port(self, kind: Kind = "public") -> int:
        return int(self.sock(kind).getsockname()[1])

    def sock(self, kind: Kind = "public") -> socket.socket:
        return next(each.sock for each in self.listeners if each.kind == kind)

    def count(self, name: str, **labels: str) -> float:
        told = self.node.recorder.snapshot()["counters"]
        return sum(each["value"] for each in told if each["name"] == name and labels.items() <= each["labels"].items())

    async def connect(
        self, kind: Kind = "public", tls: ssl.SSLContext | None = None, name: str | None = None, first: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; `first` is sent before TLS."""
        address = self.sock(kind).getsockname()
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address[:2])
        writer.write(first)
        if tls is not None:
            await writer.start_tls(tls, server_hostname=name or "localhost")
        return reader, writer

    async def ask(
        self,
        request: str,
        kind: Kind = "public",
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
        **how: Any,
    ) -> Answer:
        """One request: its line and header lines, separated by "\\n"; Host: localhost unless there is one."""
        reader, writer = await self.connect(kind, tls, name, **how)
        try:
            return await ask_on(reader, writer, request)
        finally:
            writer.close()


async def ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str) -> Answer:
    first, *lines = request.split("\n")
    if not any(line.lower().startswith("host:") for line in lines):
        lines.append("Host: localhost")
    writer.write("\r\n".join([f"{first} HTTP/1.1", *lines, "", ""]).encode())
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(head[0].split()[1]), headers, body)


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other end closes, or resets because it has not read everything."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


def _mount(prefix: str) -> Mount:
    """What the gateway knows about a request, as JSON."""

    async def handler(request: Request) -> Reply:
        told: Any = getattr(request, prefix[1:], None)
        if prefix == "/who" and request.identity is not None:
            told = [request.identity.principal, request.identity.scheme]
        return Reply(json.dumps(told).encode(), "application/json")

    return Mount(prefix=prefix, handler=handler)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[Served]:
    """A gateway in front of services without a mesh."""
    node = FakeNode()
    open_shop(node)
    listeners = Listeners(settings, **({} if settings.gateway.unix else {"port": 0}))
    mounts = [External(mount, "test") for mount in (_mount("/client"), _mount("/scheme"), _mount("/who"))]
    gateway = Gateway(node, settings, mounts)  # type: ignore[arg-type]
    serving = Serving(gateway)
    await serving.start(listeners)
    try:
        yield Served(gateway, node, listeners, serving)
    finally:
        listeners.leave()
        await serving.shutdown(0.2)
        listeners.close()
