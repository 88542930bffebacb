"""Requests that a browser sends with the session cookie although its user did not want them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_sessions import HOST, KEYS, Client, Shop, Site, sessions, shop, site_of

from mesh.config.secrets import Secret
from mesh.gateway.edge.auth.sessions import csrf, token
from mesh.gateway.edge.auth.sessions.keys import KeyRing
from mesh.testing import Mesh

pytestmark = pytest.mark.timeout(60)

FORM = "application/x-www-form-urlencoded"
OWN = {"Origin": f"https://{HOST}", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with shop() as mesh_under_test:
        yield mesh_under_test


@pytest.fixture
async def site(m: Mesh) -> AsyncIterator[Site]:
    async with site_of(m) as made:
        yield made


@pytest.fixture
async def client(site: Site) -> Client:
    """A user who has logged in."""
    made = site.client()
    await made.login()
    return made


def placed(m: Mesh) -> list[str]:
    return m.instances(Shop)[0].placed


# --- what must work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, OWN, {"Sec-Fetch-Site": "none"}, {"Origin": f"http://{HOST}"}])
@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH"])
async def test_a_page_of_this_host_sends_its_token(m: Mesh, client: Client, verb: str, headers: dict[str, str]):
    told = await client.ask(verb, "/orders", json={"item": "tea"}, headers=headers)
    assert (told.status, placed(m)) == (200, ["tea"])


@pytest.mark.parametrize("extra", [b"", b"&item=tea%20pot", b"&a=1&a=2&b="])
async def test_a_form_of_this_host_has_it_in_a_field_and_its_handler_gets_the_whole_body(
    m: Mesh, client: Client, extra: bytes
):
    body = b"csrf_token=" + client.csrf.encode() + extra
    told = await client.ask("POST", "/form", data=body, headers={"Content-Type": FORM, **OWN}, token=False)
    assert (told.status, placed(m)) == (200, [body.decode()])


async def test_a_credential_that_no_browser_attaches_needs_no_token(m: Mesh, site: Site):
    """Without the cookie nothing is asked for: neither of scripts nor of other methods of authentication."""
    told = await site.client().ask("POST", "/public")
    assert told.status == 200


# --- tokens ----------------------------------------------------------------------------------------------


def forged(kind: str, client: Client) -> list[str]:
    """The values of X-CSRF-Token of an attack."""
    right = client.csrf
    id, content, mac = right.split(".")
    ring = KeyRing(csrf.PURPOSE, [KEYS["OTHER_KEY"]])
    session = KeyRing(token.PURPOSE, [KEYS["SESSION_KEY"]])
    return {
        "missing": [],
        "empty": [""],
        "space": [" "],
        "null": ["null"],
        "undefined": ["undefined"],
        "another mac": [f"{id}.{content}.{mac[::-1]}"],
        "no mac": [f"{id}.{content}."],
        "no key": [f".{content}.{mac}"],
        "another id": [f"{id}.{content[::-1]}.{mac}"],
        "of another key": [ring.sign(b"0" * 16)],
        "for another purpose": [session.sign(b"0" * 16)],
        "the session cookie": [client.session],
        "padded": [right + "="],
        "twice": [right, right],
        "twice, one wrong": [right, "x"],
        "listed": [f"{right}, {right}"],
        "cut": [right[:-1]],
        "case": [right.swapcase()],
        "long": [right + "A" * 4000],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "space",
        "null",
        "undefined",
        "another mac",
        "no mac",
        "no key",
        "another id",
        "of another key",
        "for another purpose",
        "the session cookie",
        "padded",
        "twice",
        "twice, one wrong",
        "listed",
        "cut",
        "case",
        "long",
    ],
)
async def test_a_wrong_token_changes_nothing(m: Mesh, site: Site, client: Client, kind: str):
    lines = "".join(f"X-CSRF-Token: {value}\r\n" for value in forged(kind, client))
    assert await raw(site, client, "POST /orders", lines) == (403, "csrf")
    assert placed(m) == []


async def raw(site: Site, client: Client, target: str, lines: str, body: str = '{"item":"tea"}') -> tuple[int, str]:
    """One request whose header lines are sent as they are written: status and error code."""
    reader, writer = await asyncio.open_connection(*site.address)
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    writer.write(
        f"{target} HTTP/1.1\r\nHost: {HOST}\r\nCookie: {cookie}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{lines}\r\n{body}".encode()
    )
    answer = await reader.read()
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content).get("code", "") if content.startswith(b"{") else ""


async def test_the_token_of_another_session_is_refused(m: Mesh, site: Site, client: Client):
    """Of the attacker's own session, and of another session of the same user."""
    for name in ("bob", "ann"):
        other = site.client()
        await other.login(name)
        assert await client.place(headers={"X-CSRF-Token": other.csrf}) == "csrf"
    assert placed(m) == []


async def test_the_token_of_the_session_before_is_refused(m: Mesh, client: Client):
    old = client.csrf
    await client.login()
    assert await client.place(headers={"X-CSRF-Token": old}) == "csrf"
    assert placed(m) == []


async def test_a_planted_csrf_cookie_does_not_help(m: Mesh, site: Site, client: Client):
    """A plain double submit compares cookie and header, and a neighbouring host can plant the cookie."""
    mallory = site.client()
    await mallory.login("bob")
    client.cookies["__Host-session_csrf"] = mallory.csrf
    assert await client.place(headers={"X-CSRF-Token": mallory.csrf}) == "csrf"
    assert placed(m) == []


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/orders?csrf_token={token}", "application/json", b'{"item":"tea"}'),
        ("/orders", "application/json", b'{"item":"tea","csrf_token":"{token}"}'),
        ("/form", "text/plain", b"csrf_token={token}"),
        ("/form", "text/plain", b'{"item":"tea"}'),
        (
            "/form",
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n--x--',
        ),
        ("/form", FORM, b"item=tea"),
        ("/form", FORM, b"csrf_token=&item=tea"),
        ("/form", FORM, b"csrf_token={token}&csrf_token=x"),
        ("/form", FORM, b"CSRF_TOKEN={token}"),
        ("/form", FORM, b"csrf_token={token}\xff"),
        ("/form", FORM, b"&".join([b"a=1"] * 2000) + b"&csrf_token={token}"),
        ("/form", "", b"csrf_token={token}"),
    ],
)
async def test_a_token_counts_in_the_header_and_in_the_form_only(
    m: Mesh, client: Client, path: str, kind: str, body: bytes
):
    """Not where a link, a log, or a form of another site would have it."""
    token = client.csrf
    told = await client.ask(
        "POST",
        path.replace("{token}", token),
        data=body.replace(b"{token}", token.encode()),
        headers={"Content-Type": kind} if kind else {"Content-Type": "application/octet-stream"},
        token=False,
    )
    assert (told.status, told.json["code"], placed(m)) == (403, "csrf", [])


@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/orders", "/rpc/shop/place", "/tasks/shop/x", "/nowhere", "/public"])
async def test_every_method_that_changes_something_needs_it_wherever_it_leads(
    m: Mesh, client: Client, verb: str, path: str
):
    told = await client.ask(verb, path, json={"item": "tea"}, token=False)
    assert (told.status, told.json["code"], placed(m)) == (403, "csrf", [])


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_a_get_changes_nothing_whatever_it_says(m: Mesh, client: Client, name: str):
    """No header and no parameter makes another method of a GET."""
    for path in ("/orders?item=tea", "/orders?_method=POST&item=tea", "/form?item=tea"):
        told = await client.ask("GET", path, headers={name: "POST"})
        assert told.status == 405
    assert placed(m) == []


# --- other sites -----------------------------------------------------------------------------------------


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": f"https://{HOST}.evil.example"},
    {"Origin": f"https://evil-{HOST}"},
    {"Origin": f"https://api.{HOST}"},
    {"Origin": f"https://{HOST}:8443"},
    {"Origin": f"ftp://{HOST}"},
    {"Origin": f"https://{HOST}@evil.example"},
    {"Origin": f"https://{HOST}/"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": f"https://{HOST}"},
    {"Sec-Fetch-Site": "same-origin, cross-site"},
    {"Sec-Fetch-Site": "nonsense"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_page_of_another_site_changes_nothing_even_with_the_token(
    m: Mesh, client: Client, headers: dict[str, str]
):
    told = await client.ask("POST", "/orders", json={"item": "tea"}, headers=headers)
    assert told.status in (401, 403)
    assert placed(m) == []


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
async def test_a_page_of_another_site_reads_nothing_with_the_cookie(client: Client, headers: dict[str, str], verb: str):
    """Images, scripts, fetch and WebSocket handshakes, also of neighbouring hosts: the cookie does not count."""
    told = await client.ask(verb, "/me", headers={"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image", **headers})
    assert told.status == 401
    told = await client.ask("GET", "/public", headers=headers)
    assert told.json["principal"] == ""


LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("verb", "change", "status"),
    [
        ("GET", {}, 200),
        ("HEAD", {}, 200),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 200),
        ("GET", {"Sec-Fetch-Dest": "iframe"}, 401),
        ("GET", {"Sec-Fetch-Dest": "embed"}, 401),
        ("GET", {"Sec-Fetch-Mode": "no-cors"}, 401),
        ("GET", {"Sec-Fetch-Mode": "websocket"}, 401),
        ("GET", {"Origin": "https://evil.example"}, 401),
        ("OPTIONS", {}, 401),
        ("POST", {}, 403),
    ],
)
async def test_a_link_of_another_site_is_followed_with_the_session(
    client: Client, verb: str, change: dict[str, str], status: int
):
    """By the user, in a page of its own: not in a frame, and not by a form."""
    assert (await client.ask(verb, "/me", headers={**LINK, **change})).status == status


@pytest.mark.parametrize("host", ["evil.example", f"{HOST}.evil.example", f"{HOST}@evil.example", ""])
async def test_another_host_is_no_host_of_this_gateway(m: Mesh, client: Client, host: str):
    """DNS rebinding: a page on a name that resolves to this gateway."""
    told = await client.ask("POST", "/orders", json={"item": "tea"}, headers={"Host": host})
    assert told.status in (400, 421)
    assert placed(m) == []


async def test_an_origin_that_may_send_gets_no_session(m: Mesh):
    """gateway.origins lets its pages send and read; the cookies of users are not theirs."""
    async with site_of(m, origins=["https://app.example"]) as site:
        client = site.client()
        await client.login()
        headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        assert (await client.ask("POST", "/orders", json={"item": "tea"}, headers=headers)).status == 401
        assert (await client.ask("POST", "/public", headers=headers)).json["principal"] == ""
        assert placed(m) == []


async def test_the_names_of_loopback_do_not_work_elsewhere(m: Mesh, site: Site):
    """A cookie without __Host-, which a neighbouring host could plant, counts on loopback alone."""
    local, client = site.client("localhost"), site.client()
    await local.login()
    assert sorted(local.cookies) == ["session", "session_csrf"]
    client.cookies = dict(local.cookies)
    assert await client.who() == "unauthenticated"


async def test_logging_in_across_sites_is_refused(site: Site):
    """Login CSRF: the victim would work in the attacker's account."""
    for headers in FOREIGN[:3]:
        told = await site.client().ask("POST", "/login", json={"name": "bob"}, headers=headers)
        assert (told.status, told.json["code"], "Set-Cookie" in told.headers) == (403, "cross_site", False)


async def test_a_rotated_key_still_verifies_the_tokens_of_open_pages(m: Mesh, site: Site, client: Client):
    keys: Any = [Secret("env:NEXT_KEY"), Secret("env:SESSION_KEY")]
    async with site_of(m, sessions(keys=keys)) as after:
        token = client.csrf
        client.site = after
        assert await client.who() == "ann"
        assert client.csrf != token
        for each in (token, client.csrf):
            assert await client.place(headers={"X-CSRF-Token": each}) == "ok"
