"""TLS on the gateway: real handshakes of real clients, on both event loops."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from gateway_front import eventually
from listener_set import Authority, Served, ask_on, free_port, served, settings_of

from mesh.config import Settings
from mesh.errors import ConfigError
from mesh.gateway.listeners.reload import Reloading
from mesh.gateway.listeners.tls import BadCertificate, Tls

TLS = '[gateway.tls]\ncertificate = "tls/site.crt"\nkey = "tls/site.key"\n'


@pytest.fixture
def settings(tmp_path: Path, authority: Authority) -> Settings:
    authority.write(tmp_path / "tls/site.crt", tmp_path / "tls/site.key", "localhost", "127.0.0.1")
    return settings_of(tmp_path, TLS)


def serial(writer: asyncio.StreamWriter) -> int:
    return int(writer.get_extra_info("peercert")["serialNumber"], 16)


async def shown_serial(front: Served, context: ssl.SSLContext, name: str = "localhost") -> int:
    _, writer = await front.connect(tls=context, name=name)
    try:
        return serial(writer)
    finally:
        writer.close()


async def test_a_request_over_tls_is_answered(settings: Settings, authority: Authority):
    async with served(settings) as front:
        reader, writer = await front.connect(tls=authority.client())
        for _ in range(3):
            answer = await ask_on(reader, writer, "GET /livez")
            assert (answer.status, answer.body) == (200, b"live\n")
        tls = writer.get_extra_info("ssl_object")
        assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
        writer.close()


@pytest.mark.parametrize(
    ("version", "ciphers", "accepted"),
    [
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20", True),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA256:@SECLEVEL=0", False),  # no forward secrecy
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0", False),  # CBC
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0", False),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_versions_and_ciphers(
    settings: Settings, authority: Authority, version: ssl.TLSVersion, ciphers: str, accepted: bool
):
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    async with served(settings) as front:
        if accepted:
            assert (await front.ask("GET /livez", tls=context)).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await front.ask("GET /livez", tls=context)


async def test_a_certificate_is_chosen_by_name(tmp_path: Path, authority: Authority):
    made = {
        "default": authority.write(tmp_path / "tls/site.crt", tmp_path / "tls/site.key", "localhost"),
        "shop": authority.write(tmp_path / "tls/more/shop.crt", tmp_path / "tls/more/shop.key", "shop.example"),
        "any": authority.write(
            tmp_path / "tls/more/any/fullchain.pem", tmp_path / "tls/more/any/privkey.pem", "*.any.example"
        ),
    }
    settings = settings_of(tmp_path, TLS + 'directory = "tls/more"\n')
    asked = {
        "shop.example": "shop",
        "SHOP.example": "shop",
        "a.any.example": "any",
        "a.b.any.example": "default",  # a wildcard stands for one label
        "any.example": "default",
        "localhost": "default",
    }
    context = authority.client()
    context.check_hostname = False
    async with served(settings) as front:
        found = {name: await shown_serial(front, context, name) for name in asked}
        assert found == {name: made[which].serial_number for name, which in asked.items()}
        # A client that names no host: by its address.
        assert await shown_serial(front, context, "127.0.0.1") == made["default"].serial_number


async def test_changed_files_are_used_by_new_connections(tmp_path: Path, settings: Settings, authority: Authority):
    async with served(settings) as front:
        tls = front.listeners.tls
        assert tls is not None
        watch = Reloading(tls, front.node.clock, front.node.recorder)
        reader, writer = await front.connect(tls=authority.client())
        old = serial(writer)
        assert watch.look() is False
        new = authority.write(tmp_path / "tls/site.crt", tmp_path / "tls/site.key", "localhost").serial_number
        # The first look sees a change; the second one that it is complete.
        assert [watch.look() for _ in range(4)] == [False, True, False, False]
        assert await shown_serial(front, authority.client()) == new != old
        # The open connection goes on.
        assert (await ask_on(reader, writer, "GET /livez")).status == 200
        writer.close()
        assert front.count("gateway_certificate_reloads", result="loaded") == 1


@pytest.mark.parametrize("broken", ["not PEM", "another key", "missing"])
async def test_broken_files_do_not_replace_the_old_ones(
    tmp_path: Path, settings: Settings, authority: Authority, broken: str
):
    async with served(settings) as front:
        tls = front.listeners.tls
        assert tls is not None
        watch = Reloading(tls, front.node.clock, front.node.recorder)
        before = await shown_serial(front, authority.client())
        key = tmp_path / "tls/site.key"
        if broken == "missing":
            key.unlink()
        else:
            key.write_bytes(b"nonsense" if broken == "not PEM" else authority.issue("localhost")[2])
        assert [watch.look() for _ in range(4)] == [False, False, False, False]
        assert await shown_serial(front, authority.client()) == before
        assert front.count("gateway_certificate_reloads", result="failed") == 1
        new = authority.write(tmp_path / "tls/site.crt", key, "localhost").serial_number
        assert [watch.look() for _ in range(2)] == [False, True]
        assert await shown_serial(front, authority.client()) == new


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (TLS.replace("site.crt", "none.crt"), "none.crt"),
        (TLS.replace("site.key", "other.key"), "other.key"),
        ('[gateway.tls]\ndirectory = "tls/empty"\n', "tls/empty"),
        ('[gateway.tls]\ndirectory = "tls/nowhere"\n', "tls/nowhere"),
        (TLS + 'client_ca = "tls/site.key"\n', "gateway.tls.client_ca"),
    ],
)
def test_a_gateway_does_not_start_with_files_that_it_cannot_use(
    tmp_path: Path, authority: Authority, text: str, file: str
):
    (tmp_path / "tls/empty").mkdir(parents=True)
    authority.write(tmp_path / "tls/site.crt", tmp_path / "tls/site.key", "localhost")
    (tmp_path / "tls/other.key").write_bytes(authority.issue("localhost")[2])
    with pytest.raises(BadCertificate) as told:
        Tls(settings_of(tmp_path, text))
    assert file in told.value.message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[gateway.tls]\ncertificate = "a"\n', "gateway.tls.certificate"),
        ('[gateway.tls]\nkey = "a"\n', "gateway.tls.key"),
        ("[gateway.tls]\nredirect_port = 80\n", "gateway.tls.redirect_port"),
        ('[gateway.tls]\nhsts = "1d"\n', "gateway.tls.hsts"),
        ('[gateway.tls]\nclient_ca = "a"\n', "gateway.tls.client_ca"),
        (TLS + 'client_crl = "a"\n', "gateway.tls.client_crl"),
        (TLS + "redirect_port = 8080\n", "gateway.tls.redirect_port"),
        ('[gateway.acme]\ndomains = ["a.example"]\n', "gateway.acme.agree"),
        ('[gateway.acme]\ndomains = ["*.a.example"]\nagree = true\n', "gateway.acme.domains"),
        (TLS + '[gateway.acme]\ndomains = ["a.example"]\nagree = true\n', "gateway.acme.domains"),
        ('[gateway]\npublic = ["/livez"]\n', "gateway.public"),
        ("[gateway]\nproxy_protocol = true\n", "gateway.proxy_protocol"),
        ('[gateway]\nadmin = "9090"\n', "gateway.admin"),
        ("[gateway]\nunix_mode = 660\n", "gateway.unix_mode"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, text: str, key: str):
    with pytest.raises(ConfigError) as told:
        settings_of(tmp_path, text)
    assert f": {key}: " in told.value.message


async def test_the_metric_tells_when_the_first_certificate_expires(tmp_path: Path, authority: Authority):
    authority.write(tmp_path / "tls/site.crt", tmp_path / "tls/site.key", "localhost", days=20)
    authority.write(tmp_path / "tls/more/a.crt", tmp_path / "tls/more/a.key", "a.example", days=3)
    async with served(settings_of(tmp_path, TLS + 'directory = "tls/more"\n')) as front:
        assert front.listeners.tls is not None
        Reloading(front.listeners.tls, front.node.clock, front.node.recorder)
        gauges = {each["name"]: each["value"] for each in front.node.recorder.snapshot()["gauges"]}
        assert gauges["gateway_certificate_expires_seconds"] == pytest.approx(3 * 86400, abs=60)


async def test_http_is_redirected_to_https(tmp_path: Path, settings: Settings, authority: Authority):
    port = free_port()
    settings = settings_of(tmp_path, f'[gateway]\nhosts = ["shop.example"]\n{TLS}redirect_port = {port}\n')
    async with served(settings) as front:
        for request, status, location in (
            ("GET /a?b=%20c", 308, "https://localhost:8080/a?b=%20c"),
            ("POST /a\nContent-Length: 0", 308, "https://localhost:8080/a"),
            (f"GET /\nHost: shop.example:{port}", 308, "https://shop.example:8080/"),
            ("GET //evil.example/", 308, "https://localhost:8080//evil.example/"),
            ("GET /\nHost: evil.example", 421, None),
            ("GET /\nHost: a@evil.example", 400, None),
            ("GET /\\evil.example", 400, None),
            ("GET http://evil.example/", 400, None),
            ("OPTIONS *", 400, None),
            ("GET /.well-known/acme-challenge/x", 308, "https://localhost:8080/.well-known/acme-challenge/x"),
        ):
            answer = await front.ask(request, "redirect")
            assert (answer.status, answer.headers.get("location")) == (status, location), request
            assert answer.headers["connection"] == "close"


async def test_the_port_in_redirects_can_be_another_one(tmp_path: Path, settings: Settings):
    settings = settings_of(tmp_path, f"{TLS}redirect_port = {free_port()}\npublic_port = 443\n")
    async with served(settings) as front:
        assert (await front.ask("GET /a", "redirect")).headers["location"] == "https://localhost/a"


async def test_browsers_are_told_to_use_https_only(tmp_path: Path, settings: Settings, authority: Authority):
    settings = settings_of(tmp_path, f'[gateway]\nadmin = "127.0.0.1:{free_port()}"\n{TLS}hsts = "365d"\n')
    async with served(settings) as front:
        for path in ("/livez", "/nowhere"):
            answer = await front.ask(f"GET {path}", tls=authority.client())
            assert answer.headers["strict-transport-security"] == "max-age=31536000"
        # Over HTTP browsers ignore it (RFC 6797, section 8.1), and it must not be sent.
        assert "strict-transport-security" not in (await front.ask("GET /livez", "admin")).headers


async def test_a_client_that_does_not_shake_hands_is_dropped_in_time(tmp_path: Path, settings: Settings):
    settings = settings_of(tmp_path, f'[gateway]\nheader_timeout = "300ms"\n{TLS}')
    async with served(settings) as front:
        reader, writer = await front.connect()
        silent, other = await front.connect(first=b"\x16\x03\x01")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
            assert await silent.read() == b""
        writer.close()
        other.close()
        await eventually(lambda: not front.serving.has_connections, "both are gone")


async def test_handshakes_count_towards_the_limits(tmp_path: Path, settings: Settings, authority: Authority):
    settings = settings_of(tmp_path, f"[gateway]\nmax_connections = 3\n{TLS}")
    async with served(settings) as front:
        opened = [await front.connect() for _ in range(3)]
        reader, writer = await front.connect()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        assert front.count("http_connections_refused", limit="max_connections") == 1
        for _, each in (*opened, (reader, writer)):
            each.close()


async def test_plain_http_on_the_tls_port_gets_no_answer(settings: Settings):
    async with served(settings) as front:
        reader, writer = await front.connect()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"HTTP/1.1" not in await reader.read()
        writer.close()
