"""Which hosts the gateway answers for, and which web pages may make it do something."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest
from gateway_front import Front, Told
from gateway_shop import measure, open_shop

from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.discovery.record import RouteRecord
from mesh.errors import ConfigError
from mesh.gateway.sites import Sites, WrongHost

FOREIGN = "http://evil.example"


@pytest.fixture
def shop(front: Front) -> Front:
    open_shop(front.node)
    return front


def sites(**gateway: Any) -> Sites:
    return Sites(Settings(mesh=MeshSettings(host="node-7"), gateway=GatewaySettings(**gateway)))


def accepts(rules: Sites, host: str) -> bool:
    try:
        rules.check_host(host)
    except WrongHost:
        return False
    return True


async def send(shop: Front, verb: str, path: str, body: bytes = b"", kind: str | None = None, **headers: str) -> Told:
    """One request with exactly these headers: no Content-Type unless `kind` names one."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        sent["Content-Type"] = kind
    return await shop.ask(verb, path, data=body or None, headers=sent, skip_auto_headers=["Content-Type"])


# --- pages of other sites -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/rpc/shop/search", b"", None),
        ("/rpc/shop/hello", b'{"name": "x"}', None),
        ("/rpc/shop/hello", b'{"name": "x"}', "application/json"),
        ("/rpc/shop/measure", b"abc", "text/plain"),
        ("/measure", b"abc", "text/plain"),
        ("/items", b'{"name": "x", "price": 1}', "application/json"),
        ("/tasks/shop/any", b"{}", "application/json"),
        ("/jobs/abc", b"", None),
        ("/mesh", b"", None),
        ("/nowhere", b"", None),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": FOREIGN},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": FOREIGN, "Sec_Fetch_Site": "same-origin"},
    ],
)
async def test_a_page_of_another_site_changes_nothing(
    shop: Front, path: str, body: bytes, kind: str | None, headers: dict[str, str]
) -> None:
    """Refused before anything is called, on every mount and with every type of body."""
    verb = "DELETE" if path.startswith("/jobs") else "POST"
    told = await send(shop, verb, path, body, kind, **headers)
    assert (told.status, told.json["code"]) == (403, "cross_site")
    assert shop.node.calls == []


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Origin: http://localhost\r\nOrigin: http://evil.example", 403),
        ("Origin: http://evil.example\r\nOrigin: http://localhost", 403),
        ("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site", 403),
        ("Origin: http://localhost\r\nSec-Fetch-Site: none\r\nSec-Fetch-Site: same-site", 403),
        ("Origin: http://localhost\r\nOrigin: http://localhost", 200),
    ],
)
async def test_one_header_in_two_lines_hides_nothing(shop: Front, lines: str, status: int) -> None:
    """A proxy that adds a line of its own does not vouch for the page."""
    head = f"POST /rpc/shop/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n"
    reader, _ = await shop.raw(f"{head}Content-Length: 0\r\n\r\n".encode())
    assert (await reader.read())[9:12] == b"%d" % status


async def test_own_pages_and_other_programs_may_send(shop: Front) -> None:
    """The documentation page has the gateway's own origin; a program has none."""
    own = f"http://127.0.0.1:{shop.address[1]}"
    body = b'{"name": "x"}'
    for headers in ({"Origin": own, "Sec_Fetch_Site": "same-origin"}, {"Origin": own}, {"Sec_Fetch_Site": "none"}, {}):
        assert (await send(shop, "POST", "/rpc/shop/hello", body, "application/json", **headers)).status == 200


async def test_a_link_on_another_page_may_be_followed(shop: Front) -> None:
    """GET changes nothing, so it is answered; the page cannot read the answer, and /rpc has no GET."""
    told = await send(shop, "GET", "/hello/x", Origin=FOREIGN, Sec_Fetch_Site="cross-site")
    assert told.status == 200
    assert "Access-Control-Allow-Origin" not in told.headers
    assert (await send(shop, "GET", "/rpc/shop/search")).status == 405


class TestListedOrigins:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        listed = msgspec.structs.replace(settings.gateway, origins=["https://app.example"])
        return msgspec.structs.replace(settings, gateway=listed)

    async def test_a_listed_origin_may_send_and_read(self, shop: Front) -> None:
        """Also when the browser calls it cross-site; others still may not."""
        listed = {"Origin": "https://app.example", "Sec_Fetch_Site": "cross-site"}
        told = await send(shop, "POST", "/rpc/shop/search", **listed)
        assert (told.status, told.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")
        asked = await send(shop, "OPTIONS", "/rpc/shop/search", Access_Control_Request_Method="POST", **listed)
        assert asked.status == 204
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        other = await send(shop, "POST", "/rpc/shop/search", Origin="https://app.example.evil")
        assert other.status == 403
        assert other.headers["Vary"] == "Origin"


# --- hosts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "10.1.2.3", "[2001:db8::1]:80", "localhost.evil.example", "127.0.0.1.nip.io"],
)
async def test_another_host_is_refused(shop: Front, host: str) -> None:
    """A name that resolves to this gateway without being its own reaches nothing: a page there would be same-origin."""
    for verb, path in (("GET", "/hello/x"), ("POST", "/rpc/shop/search"), ("GET", "/mesh"), ("GET", "/metrics")):
        told = await send(shop, verb, path, Host=host, Origin=f"http://{host}")
        assert (told.status, told.json["code"]) == (421, "wrong_host")
    assert shop.node.calls == []
    for path, status in (("/livez", 200), ("/readyz", 200), ("/readyz?probe=1", 200), ("/readyz?verbose", 421)):
        assert (await send(shop, "GET", path, Host=host)).status == status


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "localhost.", "shop.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:8080"],
)
async def test_loopback_has_many_names(shop: Front, host: str) -> None:
    """Any port, any case, a trailing dot, both families."""
    assert (await send(shop, "GET", "/hello/x", Host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["user@localhost", "local host", "localhost:abc", "localhost:99999", "[::1", "", "a/b"]
)
async def test_a_malformed_host_is_a_400(shop: Front, host: str) -> None:
    """Without a guess at what was meant."""
    reader, _ = await shop.raw(f"GET /hello/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /hello/x HTTP/1.1", 400),
        ("GET /hello/x HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        ("GET /hello/x HTTP/1.0", 200),
        ("GET http://localhost/hello/x HTTP/1.1\r\nHost: localhost", 200),
        ("GET http://evil.example/hello/x HTTP/1.1\r\nHost: localhost", 421),
        ("GET http://localhost/hello/x HTTP/1.1\r\nHost: evil.example", 421),
        ("GET http://user:word@localhost/hello/x HTTP/1.1\r\nHost: localhost", 400),
        ("GET ftp://localhost/hello/x HTTP/1.1\r\nHost: localhost", 400),
    ],
)
async def test_no_host_two_hosts_and_absolute_targets(shop: Front, head: str, status: int) -> None:
    """Target and header both name a host: both must be this gateway's. Probes of HTTP/1.0 name none."""
    reader, _ = await shop.raw(f"{head}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read())[9:12] == b"%d" % status


def test_listed_hosts_are_names_or_patterns() -> None:
    """A pattern is every name below, not the name itself; `*` is every name."""
    rules = sites(hosts=["Shop.example", "*.shop.test"])
    assert [accepts(rules, host) for host in ("shop.example:443", "SHOP.EXAMPLE.", "a.b.shop.test")] == [True] * 3
    assert not any(accepts(rules, host) for host in ("a.shop.example", "shop.test", "xshop.test", "evil.example"))
    assert accepts(sites(hosts=["*"]), "evil.example")
    for wrong in ("http://shop.example", "shop.example:80", "a*b", ""):
        with pytest.raises(ConfigError):
            sites(hosts=[wrong])
    for wrong in ("shop.example", "https://a/b", "ftp://a"):
        with pytest.raises(ConfigError):
            sites(origins=[wrong])


def test_beyond_loopback_the_machine_has_its_names_and_addresses() -> None:
    """Behind a public address: what this machine is called, and every address that it has."""
    rules = sites(host="0.0.0.0")
    own = [socket.gethostname(), "node-7", "localhost", "127.0.0.1", "[::1]:80"]
    assert [accepts(rules, host) for host in own] == [True] * len(own)
    assert not any(accepts(rules, host) for host in ("192.0.2.1", "evil.example", "[2001:db8::1]"))
    assert not accepts(sites(host="127.0.0.1"), "node-7")


# --- types of bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/items", None),
        ("/items", "text/plain"),
        ("/items", "application/x-www-form-urlencoded"),
        ("/rpc/shop/hello", None),
        ("/rpc/shop/hello", "text/plain"),
        ("/rpc/shop/hello", "application/x-www-form-urlencoded"),
        ("/rpc/shop/hello", "multipart/form-data; boundary=x"),
        ("/measure", "multipart/form-data; boundary=x"),
        ("/measure", "Application/X-WWW-Form-urlencoded"),
        ("/shrink?width=1", "multipart/form-data; boundary=x"),
        ("/rpc/shop/measure", "multipart/form-data; boundary=x"),
        ("/rpc/shop/measure", "application/x-www-form-urlencoded"),
    ],
)
async def test_a_body_of_another_type_is_a_415(shop: Front, path: str, kind: str | None) -> None:
    """A form is never taken for JSON, nor its envelope for a file; JSON says that it is JSON."""
    told = await send(shop, "POST", path, b'{"name": "x", "price": 1}', kind)
    assert (told.status, told.json["code"]) == (415, "unsupported_media")
    assert shop.node.calls == []


@pytest.mark.parametrize("kind", [None, "image/png", "application/octet-stream", "text/plain", "application/json"])
@pytest.mark.parametrize("path", ["/measure", "/rpc/shop/measure"])
async def test_bytes_may_have_any_other_type(shop: Front, path: str, kind: str | None) -> None:
    """Or none: nothing is read into them. (/rpc takes JSON as arguments.)"""
    told = await send(shop, "POST", path, b'{"data": "YWJj"}', kind)
    assert told.json == (3 if kind == "application/json" and "rpc" in path else 16)


async def test_a_route_may_ask_for_forms(front: Front) -> None:
    """Then it receives the envelope; a page of another site still may not send one."""
    front.node.serve("parcels", [RouteRecord("POST", "/p", "measure", {"data": "body"}, forms=True)], measure=measure)
    form = "multipart/form-data; boundary=x"
    assert (await send(front, "POST", "/p", b"--x--", form)).json == 5
    assert (await send(front, "POST", "/p", b"--x--", form, Origin=FOREIGN)).status == 403
