"""What trusted proxies report in header fields: Forwarded (RFC 7239) and X-Forwarded-…, and over a Unix socket."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from listener_set import served, settings_of

from mesh.errors import AddressInUse, ConfigError
from mesh.gateway.forwarded import Hop, read_forwarded
from mesh.gateway.listeners.sockets import bind_unix


@pytest.mark.parametrize(
    ("lines", "hops"),
    [
        (["for=192.0.2.60"], [Hop("192.0.2.60")]),
        (['For="[2001:db8:cafe::17]:4711"'], [Hop("2001:db8:cafe::17")]),
        (["for=192.0.2.60;proto=HTTPS;by=203.0.113.43;host=a.example"], [Hop("192.0.2.60", "https", "a.example")]),
        (["for=192.0.2.43, for=198.51.100.17"], [Hop("192.0.2.43"), Hop("198.51.100.17")]),
        (["for=192.0.2.43", "for=198.51.100.17;proto=http"], [Hop("192.0.2.43"), Hop("198.51.100.17", "http")]),
        (['for="_gazonk"', "for=unknown"], [Hop(""), Hop("")]),
        (['host="a\\.b, c";for="192.0.2.1:80"'], [Hop("192.0.2.1", "", "a.b, c")]),
        ([" , for=192.0.2.1 ,, "], [Hop("192.0.2.1")]),
        ([""], []),
        (["for=192.0.2.1;for=192.0.2.2"], []),
        (["for=192.0.2.1;"], []),
        (['for="192.0.2.1'], []),
        (["for=[::1]"], []),
        (["192.0.2.1"], []),
        (["for =192.0.2.1"], []),
    ],
)
def test_forwarded_is_read(lines: list[str], hops: list[Hop]):
    assert read_forwarded(lines) == hops


X = '[gateway]\nproxies = ["127.0.0.1", "10.0.0.0/8"]\nhosts = ["shop.example"]\n'
STANDARD = f'{X}forwarded = "forwarded"\n'


@pytest.mark.parametrize(
    ("text", "lines", "client"),
    [
        (X, "X-Forwarded-For: 203.0.113.7", "203.0.113.7"),
        (X, "X-Forwarded-For: 1.1.1.1, 203.0.113.7, 10.0.0.9", "203.0.113.7"),
        (X, "X-Forwarded-For: 1.1.1.1\nX-Forwarded-For: 203.0.113.7", "203.0.113.7"),
        (X, "X-Forwarded-For: 203.0.113.7, unknown", "127.0.0.1"),
        (X, "Forwarded: for=203.0.113.7", "127.0.0.1"),
        (STANDARD, "Forwarded: for=203.0.113.7", "203.0.113.7"),
        (STANDARD, 'Forwarded: for=1.1.1.1, for="203.0.113.7:99", for=10.1.1.1', "203.0.113.7"),
        (STANDARD, "Forwarded: for=203.0.113.7, nonsense", "127.0.0.1"),
        (STANDARD, "X-Forwarded-For: 203.0.113.7", "127.0.0.1"),
        ("", "X-Forwarded-For: 203.0.113.7", "127.0.0.1"),
    ],
)
async def test_the_client_is_the_last_address_that_no_proxy_has(tmp_path: Path, text: str, lines: str, client: str):
    async with served(settings_of(tmp_path, text)) as front:
        assert (await front.ask(f"GET /client\n{lines}")).body == f'"{client}"'.encode()


@pytest.mark.parametrize(
    ("text", "lines", "scheme"),
    [
        (X, "X-Forwarded-Proto: https", "https"),
        (X, "X-Forwarded-Proto: https, http", "http"),
        (X, "X-Forwarded-Proto: gopher", "http"),
        (X, "Forwarded: for=203.0.113.7;proto=https", "http"),
        (STANDARD, "Forwarded: for=203.0.113.7;proto=https", "https"),
        (STANDARD, "X-Forwarded-Proto: https", "http"),
        ("", "X-Forwarded-Proto: https", "http"),
    ],
)
async def test_the_scheme_is_the_clients(tmp_path: Path, text: str, lines: str, scheme: str):
    async with served(settings_of(tmp_path, text)) as front:
        assert (await front.ask(f"GET /scheme\n{lines}")).body == f'"{scheme}"'.encode()


@pytest.mark.parametrize(
    ("text", "lines", "status"),
    [
        # The host that the client has asked the proxy for is what an origin is compared with, and must be known.
        (X, "X-Forwarded-Host: shop.example\nOrigin: https://shop.example", 200),
        (X, "X-Forwarded-Host: evil.example\nOrigin: https://evil.example", 421),
        (X, "X-Forwarded-Host: shop.example\nOrigin: https://evil.example", 403),
        (X, "X-Forwarded-Host: shop.example\nOrigin: http://localhost", 403),
        (X, "Host: evil.example\nX-Forwarded-Host: shop.example", 421),
        (STANDARD, "Forwarded: host=shop.example\nOrigin: https://shop.example", 200),
        (STANDARD, "Forwarded: host=evil.example", 421),
        # Without a proxy the field means nothing.
        ("", "X-Forwarded-Host: shop.example\nOrigin: https://shop.example", 403),
        ("", "X-Forwarded-Host: evil.example", 200),
    ],
)
async def test_the_host_is_the_clients(tmp_path: Path, text: str, lines: str, status: int):
    async with served(settings_of(tmp_path, text)) as front:
        request = f"POST /rpc/shop/search\nContent-Type: application/json\nContent-Length: 0\n{lines}"
        assert (await front.ask(request)).status == status


async def test_a_unix_socket_serves_a_proxy(tmp_path: Path):
    settings = settings_of(tmp_path, '[gateway]\nunix = "run/gateway.sock"\nunix_mode = "0600"\n')
    path = tmp_path / "run/gateway.sock"
    async with served(settings) as front:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await front.ask("GET /livez")).status == 200
        assert (await front.ask("GET /client")).body == b'"-"'
        # Every connection over it is from a trusted proxy, without being listed.
        answer = await front.ask("GET /client\nX-Forwarded-For: 203.0.113.7")
        assert answer.body == b'"203.0.113.7"'
        assert (await front.ask("GET /scheme\nX-Forwarded-Proto: https")).body == b'"https"'
        # The proxy publishes it: pages for operators are withheld.
        assert (await front.ask("GET /metrics")).status == 404
    assert not path.exists()


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path):
    path = tmp_path / "gateway.sock"
    first = bind_unix(path, 0o660)
    with pytest.raises(AddressInUse):
        bind_unix(path, 0o660)
    first.close()
    bind_unix(path, 0o660).close()
    path.unlink()
    path.write_text("not a socket")
    with pytest.raises(ConfigError):
        bind_unix(path, 0o660)
    assert path.read_text() == "not a socket"
    with pytest.raises(ConfigError):
        bind_unix(tmp_path / ("x" * 120), 0o660)
