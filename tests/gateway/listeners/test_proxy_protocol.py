"""The PROXY protocol: the format, who may speak it, and what follows from it."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from gateway_front import eventually
from listener_set import Authority, ask_on, ends, served, settings_of

from mesh.gateway.listeners.proxy_protocol import LONGEST_V1, SIGNATURE, Header, MalformedHeader, Told

V1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 51000 443\r\n"


def v2(address: str = "203.0.113.7", command: int = 0x21, tlvs: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    body = packed * 2 + struct.pack("!HH", 51000, 443) + tlvs
    return SIGNATURE + struct.pack("!BBH", command, 0x21 if ":" in address else 0x11, len(body)) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


SSL = tlv(0x20, b"\x01" + bytes(4) + tlv(0x21, b"TLSv1.3"))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (V1, Told("203.0.113.7")),
        (b"PROXY TCP6 2001:db8::7 ::1 51000 443\r\n", Told("2001:db8::7")),
        (b"PROXY UNKNOWN\r\n", Told("")),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Told("")),
        (v2(), Told("203.0.113.7")),
        (v2("2001:db8::7"), Told("2001:db8::7")),
        (v2(command=0x20), Told("")),
        (v2(tlvs=SSL), Told("203.0.113.7", secure=True)),
        (v2(tlvs=tlv(0x04, b"\0" * 40) + SSL), Told("203.0.113.7", secure=True)),
        (v2(tlvs=tlv(0x20, b"\x00" + bytes(4))), Told("203.0.113.7")),
        (SIGNATURE + struct.pack("!BBH", 0x20, 0x00, 0), Told("")),
        (SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 216) + bytes(216), Told("")),  # a Unix socket
    ],
)
@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_a_header_is_read_in_any_pieces_and_nothing_beyond_it(header: bytes, told: Told, piece: int):
    stream, reading, at = header + b"GET / HTTP/1.1\r\n", Header(), 0
    while reading.told is None:
        at += reading.take(stream[at : at + piece])
    assert (reading.told, at) == (told, len(header))


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 51000\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 51000 443 1\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 51000 70000\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 051 443\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 -1 443\r\n",
        b"PROXY TCP4 203.0.113.999 10.0.0.1 51000 443\r\n",
        b"PROXY TCP4 2001:db8::7 10.0.0.1 51000 443\r\n",
        b"PROXY TCP6 203.0.113.7 10.0.0.1 51000 443\r\n",
        b"PROXY TCP4 \xff.0.113.7 10.0.0.1 51000 443\r\n",
        b"PROXY UDP4 203.0.113.7 10.0.0.1 51000 443\r\n",
        b"PROXY  TCP4 203.0.113.7 10.0.0.1 51000 443\r\n",
        b"proxy TCP4 203.0.113.7 10.0.0.1 51000 443\r\n",
        b"PROXY " + b"x" * LONGEST_V1,
        SIGNATURE + struct.pack("!BBH", 0x11, 0x11, 12) + bytes(12),  # version 1 in binary
        SIGNATURE + struct.pack("!BBH", 0x22, 0x11, 12) + bytes(12),  # an unknown command
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 11) + bytes(11),  # shorter than its addresses
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 65535),
        v2(tlvs=b"\x20\x00"),
        v2(tlvs=struct.pack("!BH", 0x20, 9) + b"\x01"),
    ],
)
def test_malformed_headers_are_refused(header: bytes):
    with pytest.raises(MalformedHeader):
        Header().take(header + b"\r\n")


LISTEN = '[gateway]\nproxy_protocol = true\nproxies = ["127.0.0.1"]\n'


@pytest.mark.parametrize("header", [V1, v2()])
async def test_the_address_in_the_header_is_the_clients(tmp_path: Path, header: bytes):
    async with served(settings_of(tmp_path, LISTEN)) as front:
        reader, writer = await front.connect(first=header)
        for _ in range(2):
            answer = await ask_on(reader, writer, "GET /client")
            assert (answer.status, answer.body) == (200, b'"203.0.113.7"')
        writer.close()


async def test_limits_per_client_count_the_address_in_the_header(tmp_path: Path):
    async with served(settings_of(tmp_path, f"{LISTEN}max_connections_per_client = 2\n")) as front:
        opened = [await front.connect(first=V1) for _ in range(2)]
        for each in opened:
            assert (await ask_on(*each, "GET /livez")).status == 200
        reader, writer = await front.connect(first=V1)
        assert (await ask_on(reader, writer, "GET /livez")).status == 503
        # Another client of the same proxy.
        assert (await front.ask("GET /livez", first=v2("203.0.113.8"))).status == 200
        for _, each in (*opened, (reader, writer)):
            each.close()


async def test_tls_follows_the_header(tmp_path: Path, authority: Authority):
    authority.write(tmp_path / "site.crt", tmp_path / "site.key", "localhost")
    settings = settings_of(tmp_path, f'{LISTEN}[gateway.tls]\ncertificate = "site.crt"\nkey = "site.key"\n')
    async with served(settings) as front:
        answer = await front.ask("GET /client", tls=authority.client(), first=V1)
        assert (answer.status, answer.body) == (200, b'"203.0.113.7"')


@pytest.mark.parametrize(("tlvs", "scheme"), [(b"", b'"http"'), (SSL, b'"https"')])
async def test_version_2_tells_whether_the_client_speaks_tls(tmp_path: Path, tlvs: bytes, scheme: bytes):
    async with served(settings_of(tmp_path, LISTEN)) as front:
        assert (await front.ask("GET /scheme", first=v2(tlvs=tlvs))).body == scheme


@pytest.mark.parametrize(
    "first", [b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"PROXY nonsense\r\n", SIGNATURE * 2]
)
async def test_a_connection_without_a_header_is_closed(tmp_path: Path, first: bytes):
    async with served(settings_of(tmp_path, LISTEN)) as front:
        reader, writer = await front.connect(first=first)
        assert await ends(reader) == b""
        writer.close()
        assert front.count("gateway_connections_failed", reason="proxy_header") == 1


async def test_a_header_that_does_not_come_ends_the_connection(tmp_path: Path):
    async with served(settings_of(tmp_path, f'{LISTEN}header_timeout = "200ms"\n')) as front:
        reader, writer = await front.connect(first=b"PROXY TCP4 203")
        assert await ends(reader) == b""
        writer.close()
        await eventually(lambda: not front.serving.has_connections, "it is gone")
        assert front.count("gateway_connections_failed", reason="timeout") == 1


async def test_only_proxies_may_tell_an_address(tmp_path: Path):
    """A health check of this machine may speak for itself."""
    async with served(settings_of(tmp_path, LISTEN.replace('"127.0.0.1"', '"10.0.0.0/8"'))) as front:
        reader, writer = await front.connect(first=V1)
        assert await ends(reader) == b""
        writer.close()
        for own in (b"PROXY UNKNOWN\r\n", v2(command=0x20)):
            answer = await front.ask("GET /client", first=own)
            assert (answer.status, answer.body) == (200, b'"127.0.0.1"')
