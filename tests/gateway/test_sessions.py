"""Login sessions: begun by a handler, carried by a signed cookie, renewed, ended, and checked by every gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from gateway_sessions import KEYS, Shop, Site, sessions, shop, site_of

from mesh.config.edge_sessions import SessionSettings
from mesh.config.secrets import Secret
from mesh.gateway.edge.auth.sessions import revocation
from mesh.testing import Mesh

pytestmark = pytest.mark.timeout(60)


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


# --- the whole flow ------------------------------------------------------------------------------------


async def test_a_client_with_a_cookie_jar_logs_in_works_and_logs_out(site: Site):
    """aiohttp's own jar, on loopback: nothing in it knows of sessions."""
    url = f"http://127.0.0.1:{site.address[1]}"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:

        async def ask(verb: str, path: str, **options: Any) -> tuple[int, Any]:
            async with client.request(verb, url + path, **options) as answer:
                return answer.status, await answer.json(content_type=None)

        assert (await ask("GET", "/me"))[1]["code"] == "unauthenticated"
        assert await ask("POST", "/login", json={"name": "ann"}) == (200, "welcome")
        jar = {cookie.key: cookie for cookie in client.cookie_jar}
        assert sorted(jar) == ["session", "session_csrf"]
        assert (jar["session"]["httponly"], jar["session"]["samesite"], jar["session"]["secure"]) == (True, "Lax", "")
        assert await ask("GET", "/me") == (
            200,
            {"principal": "ann", "roles": ["clerk"], "scopes": ["orders:write"], "tenant": "acme"},
        )
        assert (await ask("POST", "/orders", json={"item": "tea"}))[1]["code"] == "csrf"
        token = {"X-CSRF-Token": jar["session_csrf"].value}
        assert await ask("POST", "/orders", json={"item": "tea"}, headers=token) == (200, "tea")
        assert (await ask("POST", "/logout", json={}, headers=token))[0] == 204
        assert not list(client.cookie_jar)
        assert (await ask("GET", "/me"))[1]["code"] == "unauthenticated"


async def test_cookies_of_a_host_have_all_attributes(site: Site):
    client = site.client()
    told = await client.login()
    session, csrf = client.lines
    name, *attributes = session.split("; ")
    assert name == f"__Host-session={client.session}"
    assert sorted(attributes) == ["HttpOnly", "Max-Age=1800", "Path=/", "SameSite=Lax", "Secure"]
    name, *attributes = csrf.split("; ")
    assert name == f"__Host-session_csrf={client.csrf}"
    assert sorted(attributes) == ["Max-Age=1800", "Path=/", "SameSite=Lax", "Secure"]
    assert told.headers.getall("Cache-Control") == ["no-store"]
    assert (await client.ask("GET", "/me")).headers.getall("Vary") == ["Cookie"]
    assert "Vary" not in (await site.client().ask("GET", "/public")).headers


@pytest.mark.parametrize(
    ("secure", "host", "name"),
    [
        ("auto", "shop.example", "__Host-session"),
        ("auto", "localhost:8000", "session"),
        ("auto", "127.0.0.1", "session"),
        ("auto", "[::1]:80", "session"),
        ("auto", "app.localhost", "session"),
        ("always", "localhost", "__Host-session"),
        ("never", "shop.example", "session"),
    ],
)
async def test_whether_cookies_are_for_https_only(m: Mesh, secure: str, host: str, name: str):
    async with site_of(m, sessions(secure=secure)) as site:
        client = site.client(host)
        await client.login()
        assert sorted(client.cookies) == [name, f"{name}_csrf"]
        assert all(("Secure" in line) == name.startswith("__Host-") for line in client.lines)
        assert (await client.who(), await client.place()) == ("ann", "ok")


async def test_a_login_makes_a_new_session_and_ends_the_one_before(site: Site):
    """Session fixation: whoever knows the cookie from before the login does not share what comes after it."""
    fixed = site.client()
    await fixed.login("bob")
    victim = site.client()
    victim.cookies = dict(fixed.cookies)
    await victim.login("ann")
    assert victim.session != fixed.session
    assert await victim.who() == "ann"
    assert await fixed.who() == "unauthenticated"


async def test_a_login_form_needs_no_token_although_a_session_goes_on(site: Site):
    """The page of a second tab may not know it. Its handler sees no user, and the new session is a new one."""
    client, before = site.client(), site.client()
    await client.login("bob")
    before.cookies = dict(client.cookies)
    told = await client.ask("POST", "/login", json={"name": "ann"}, token=False)
    assert told.status == 200
    assert (await client.who(), await before.who()) == ("ann", "unauthenticated")


# --- time -----------------------------------------------------------------------------------------------


async def test_a_session_ends_when_it_is_idle_and_is_renewed_while_it_is_used(site: Site):
    client, clock = site.client(), site.node.clock
    await client.login()
    first, csrf = client.session, client.csrf
    clock.shift_s += 899
    assert await client.who() == "ann"
    assert client.lines == []
    clock.shift_s += 2
    assert await client.who() == "ann"
    assert client.session != first
    assert len(client.lines) == 2
    # The token of pages that are open stays valid.
    client.cookies["__Host-session_csrf"] = csrf
    assert await client.place() == "ok"
    clock.shift_s += 1799
    assert await client.who() == "ann"
    clock.shift_s += 1801
    assert await client.who() == "unauthenticated"
    assert client.cookies == {}


async def test_a_session_ends_at_last_although_it_is_used(m: Mesh):
    async with site_of(m, sessions(idle_s=1000.0, absolute_s=3000.0)) as site:
        client, clock = site.client(), site.node.clock
        await client.login()
        for _ in range(3):
            clock.shift_s += 900
            assert await client.who() == "ann"
        # The cookie does not outlive the session.
        assert "Max-Age=29" in client.lines[0] or "Max-Age=300" in client.lines[0]
        clock.shift_s += 300
        assert await client.who() == "unauthenticated"


async def test_a_login_can_shorten_its_session_and_not_lengthen_it(site: Site):
    short, long, clock = site.client(), site.client(), site.node.clock
    await short.login(max_age_s=60)
    assert all("Max-Age=60" in line or "Max-Age=59" in line for line in short.lines)
    await long.login(max_age_s=10**9)
    clock.shift_s += 61
    assert (await short.who(), await long.who()) == ("unauthenticated", "ann")
    for _ in range(60):
        clock.shift_s += 800
        if await long.who() != "ann":
            break
    assert 43_200 <= clock.shift_s <= 43_200 + 800


async def test_an_answer_that_is_cached_elsewhere_is_not_when_it_renews_a_cookie(site: Site):
    client = site.client()
    await client.login()
    site.node.clock.shift_s += 1000
    told = await client.ask("GET", "/me")
    assert client.lines
    assert "no-store" in told.headers.getall("Cache-Control")


# --- ending ---------------------------------------------------------------------------------------------


async def test_a_logout_ends_the_session_and_not_only_its_cookie(m: Mesh, site: Site):
    """At this gateway at once, at others within auth.sessions.check; other sessions go on."""
    async with site_of(m, sessions(check_s=0.0)) as other:
        client, stolen, second = site.client(), site.client(), site.client()
        await client.login()
        await second.login()
        stolen.cookies = dict(client.cookies)
        assert (await client.ask("POST", "/logout", json={})).status == 204
        assert client.cookies == {}
        assert await stolen.who() == "unauthenticated"
        stolen.site = other
        assert await stolen.who() == "unauthenticated"
        assert await second.who() == "ann"


async def test_a_logout_overrides_the_renewal_of_the_same_request(site: Site):
    client = site.client()
    await client.login()
    site.node.clock.shift_s += 1000
    assert (await client.ask("POST", "/logout", json={})).status == 204
    assert [line.partition("=")[2][:1] for line in client.lines] == [";", ";"]
    assert client.cookies == {}


async def test_logging_out_everywhere_ends_all_sessions_of_the_user(m: Mesh, site: Site):
    async with site_of(m, sessions(check_s=0.0)) as other:
        one, two, bob = site.client(), other.client(), site.client()
        await one.login()
        await two.login()
        await bob.login("bob")
        assert (await one.ask("POST", "/logout", json={"everywhere": True})).status == 204
        assert (await two.who(), await bob.who()) == ("unauthenticated", "bob")
        await two.login()
        assert await two.who() == "ann"


async def test_everywhere_holds_although_the_clocks_of_gateways_differ(m: Mesh, site: Site):
    """A gateway whose clock is 30 s behind logs in again what another has ended."""
    async with site_of(m) as behind:
        one, two = site.client(), behind.client()
        behind.node.clock.shift_s = -30.0
        await one.login()
        await one.ask("POST", "/logout", json={"everywhere": True})
        await two.login()
        assert await two.who() == "ann"
        two.site = site
        assert await two.who() == "ann"


async def test_an_administrator_ends_the_sessions_of_another_user(site: Site):
    admin, ann = site.client(), site.client()
    await admin.login("root")
    await ann.login()
    assert (await admin.ask("POST", "/kick", json={"name": "ann"})).status == 204
    assert (await ann.who(), await admin.who()) == ("unauthenticated", "root")
    assert (await admin.ask("POST", "/kick", json={"name": "root"})).status == 204
    assert admin.cookies == {}


async def test_without_revocation_a_logout_only_deletes_the_cookie(m: Mesh):
    async with site_of(m, sessions(revocation="none")) as site:
        client, stolen = site.client(), site.client()
        await client.login()
        stolen.cookies = dict(client.cookies)
        assert (await client.ask("POST", "/logout", json={})).status == 204
        assert (client.cookies, await stolen.who()) == ({}, "ann")
        told = await stolen.ask("POST", "/logout", json={"everywhere": True})
        assert (told.status, told.json["code"]) == (502, "bad_reply")
        assert site.node.durable.reads == 0


async def test_requests_within_the_check_time_read_nothing(site: Site):
    client = site.client()
    await client.login()
    before = site.node.durable.reads
    for _ in range(20):
        assert await client.who() == "ann"
    assert site.node.durable.reads - before <= 2


async def test_a_lost_state_refuses_new_sessions_and_believes_known_ones_for_a_while(m: Mesh):
    async with site_of(m, sessions(check_s=0.0, grace_s=60.0)) as site, site_of(m, sessions(grace_s=0.0)) as strict:
        client, late = site.client(), site.client()
        await client.login()
        await late.login()
        assert await client.who() == "ann"
        site.node.durable.lost = strict.node.durable.lost = True
        assert await client.who() == "ann"
        # Read by no gateway yet: whether it has ended is not known.
        assert await late.who() == "auth_unavailable"
        client.site = strict
        assert await client.who() == "auth_unavailable"
        told = await site.client().ask("POST", "/login", json={"name": "ann"})
        assert (told.status, told.json["code"], "Set-Cookie" in told.headers) == (503, "auth_unavailable", False)
        client.site = site
        told = await client.ask("POST", "/logout", json={})
        assert (told.status, client.cookies) == (503, {})
        # A public route is not affected.
        late_public = await late.ask("GET", "/public")
        assert (late_public.status, late_public.json["principal"]) == (200, "")
        site.node.durable.lost = False
        site.node.clock.shift_s += 2
        assert await late.who() == "ann"


async def test_a_state_that_hangs_delays_one_request_and_not_all(m: Mesh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(revocation, "PATIENCE_S", 0.2)
    async with site_of(m, sessions(check_s=0.0, grace_s=3600.0)) as site:
        client = site.client()
        await client.login()
        assert await client.who() == "ann"
        site.node.durable.hangs = True
        assert await client.who() == "ann"
        before = site.node.durable.reads
        assert [await client.who() for _ in range(30)] == ["ann"] * 30
        assert site.node.durable.reads == before
        site.node.clock.shift_s += 2
        assert await asyncio.gather(*(client.who() for _ in range(10))) == ["ann"] * 10
        assert site.node.durable.reads == before + 1


async def test_what_was_read_before_a_logout_is_not_believed_after_it(m: Mesh):
    """A check of the same session that was under way: its answer is older than the logout."""
    async with site_of(m, sessions(check_s=1000.0)) as site:
        client = site.client()
        await client.login()
        before = dict(client.cookies)
        reading, go_on = asyncio.Event(), asyncio.Event()
        state = site.node.durable.state("mesh-sessions")

        class Slow:
            async def get_many(self, keys: Any) -> Any:
                found = await state.get_many(keys)
                reading.set()
                await go_on.wait()
                return found

        site.node.durable.state = lambda namespace: Slow()  # type: ignore[method-assign]
        checking = asyncio.create_task(client.who())
        await reading.wait()
        site.node.durable.state = lambda namespace: state  # type: ignore[method-assign]
        other = site.client()
        other.cookies = dict(before)
        assert (await other.ask("POST", "/logout", json={})).status == 204
        go_on.set()
        await checking
        client.cookies = before
        assert await client.who() == "unauthenticated"


# --- keys -----------------------------------------------------------------------------------------------


async def test_keys_are_rotated_without_logging_anyone_out(m: Mesh):
    """Step by step, as docs/sessions.md says, with the gateways of both steps running at once."""
    old, new = Secret("env:SESSION_KEY"), Secret("env:NEXT_KEY")
    steps = ([old], [old, new], [new, old])
    async with site_of(m, sessions(keys=steps[0])) as before:
        client = before.client()
        await client.login()
        for keys in steps[1:]:
            async with site_of(m, sessions(keys=keys)) as after:
                for site in (after, before, after):
                    if keys[0] is old or site is after:
                        client.site = site
                        assert (await client.who(), await client.place()) == ("ann", "ok")
        # The gateway of the last step has renewed it: it holds when the old key is gone.
    async with site_of(m, sessions(keys=[new])) as last:
        client.site = last
        assert (await client.who(), await client.place()) == ("ann", "ok")


async def test_another_key_is_no_key(m: Mesh, site: Site):
    async with site_of(m, sessions(keys=[Secret("env:OTHER_KEY")])) as other:
        client = other.client()
        await client.login()
        client.site = site
        assert await client.who() == "unauthenticated"
        # It may be a key that this gateway is to get yet: the cookie stays.
        assert client.session


# --- trust ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/evil/login", "/evil/kick"])
async def test_a_method_that_is_not_listed_neither_begins_nor_ends_sessions(site: Site, path: str):
    ann, client = site.client(), site.client()
    await ann.login()
    told = await client.ask("POST", path)
    assert (told.status, told.json["code"]) == (502, "bad_reply")
    assert (client.cookies, await ann.who()) == ({}, "ann")


@pytest.mark.parametrize(
    "line",
    [
        "__Host-session=x; Path=/; Secure",
        "session=x",
        "SESSION=x",
        "session =x",
        "session\t=x; Path=/me",
        "session=; Max-Age=0",
        "__host-Session=x; Domain=shop.example",
        "__Host-session_csrf=x; Path=/; Secure",
        "session_csrf=x",
        "=__Host-session=x",
        "=session=x",
        "session",
        "__Host-session",
    ],
)
async def test_a_handler_cannot_set_the_cookies_itself(site: Site, line: str):
    client = site.client()
    told = await client.ask("POST", "/evil/cookie", json={"line": line})
    assert (told.status, told.json["code"]) == (502, "bad_reply")
    assert client.lines == []


@pytest.mark.parametrize("line", ["sessions=x", "my_session=x", "a=session=x", "x=1; session=2"])
async def test_other_cookies_are_set_as_before(site: Site, line: str):
    client = site.client()
    assert (await client.ask("POST", "/evil/cookie", json={"line": line})).status == 200
    assert client.lines == [line]


@pytest.mark.parametrize(
    "session",
    [
        "{}",
        "[]",
        "nonsense",
        '{"do":"login"}',
        '{"do":"login","principal":""}',
        '{"do":"login","principal":7}',
        '{"do":"login","principal":"a\\u0000b"}',
        '{"do":"login","principal":"ann","roles":"admin"}',
        '{"do":"login","principal":"ann","max_age_s":-1}',
        '{"do":"sudo","principal":"ann"}',
        '{"do":"logout","principal":"' + "x" * 300 + '"}',
        '{"do":"login","principal":"' + "x" * 9000 + '"}',
        '{"do":"login","principal":"ann","roles":[' + ",".join(f'"{n:0100}"' for n in range(30)) + "]}",
    ],
)
async def test_a_malformed_request_of_a_worker_is_refused(m: Mesh, session: str):
    async with site_of(m, sessions(login=["*"])) as site:
        client = site.client()
        told = await client.ask("POST", "/evil/head", json={"session": session})
        assert (told.status, told.json["code"]) == (502, "bad_reply")
        assert client.lines == []


async def test_a_gateway_without_sessions_does_not_pretend(m: Mesh):
    async with site_of(m, SessionSettings()) as site:
        client = site.client()
        told = await client.ask("POST", "/login", json={"name": "ann"})
        assert (told.status, told.json["code"]) == (502, "bad_reply")
        assert not site.gateway.front.sessions
        assert (await client.ask("POST", "/evil/cookie", json={"line": "session=x"})).status == 200


async def test_a_handler_sees_the_user_wherever_the_work_goes(m: Mesh, site: Site):
    client = site.client()
    await client.login()
    assert await client.place("tea") == "ok"
    assert m.instances(Shop)[0].placed == ["tea"]
    assert (await client.ask("GET", "/public")).json["principal"] == "ann"
    assert (await site.client().ask("GET", "/public")).json["principal"] == ""


async def test_sessions_are_shown_counted_and_described(site: Site):
    client = site.client()
    await client.login("root")
    await client.ask("POST", "/kick", json={"name": "ann"})
    edge = (await client.ask("GET", "/mesh")).json["edge"]
    assert edge[0]["methods"] == [{"name": "session", "login": ["users.*"], "revocation": "state", "keys": 1}]
    document = (await client.ask("GET", "/openapi.json")).json
    assert document["components"]["securitySchemes"]["session"] == {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-session",
    }
    assert await client.place(token=False) == "csrf"
    counter = site.node.recorder.counter
    assert counter("http_csrf_refused").value == 1
    assert (counter("http_sessions_begun").value, counter("http_sessions_ended").value) == (1, 1)
