"""Session cookies that no gateway has made, or that are not what it made: none of them is a session."""

from __future__ import annotations

import base64
import hmac
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from gateway_sessions import HOST, KEYS, Site, sessions, shop, site_of

from mesh.config.edge_auth import AuthSettings
from mesh.config.edge_auth_checks import problems
from mesh.config.secrets import Secret
from mesh.config.settings import Settings
from mesh.errors import ConfigError
from mesh.gateway.edge.auth.sessions import csrf, token
from mesh.gateway.edge.auth.sessions.keys import KeyRing, reveal_all
from mesh.gateway.edge.auth.sessions.token import Session, Tokens, new_id

pytestmark = pytest.mark.timeout(60)

RING = KeyRing(token.PURPOSE, [KEYS["SESSION_KEY"]])


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with shop() as m, site_of(m) as made:
        yield made


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def content_of(text: str) -> list[Any]:
    found = RING.content(text)
    assert found is not None
    return list(msgspec.msgpack.decode(found))


def resigned(text: str, key: bytes, *, algorithm: str = "sha256", **changes: Any) -> str:
    """The text with another content, signed with this key."""
    id, _, _ = text.split(".")
    names = [field.name for field in msgspec.structs.fields(Session)]
    content = [changes.get(name, value) for name, value in zip(names, content_of(text), strict=True)]
    body = f"{id}.{b64(msgspec.msgpack.encode(content))}"
    return f"{body}.{b64(hmac.digest(key, body.encode(), algorithm))}"


def flipped(text: str, at: int) -> str:
    return f"{text[:at]}{'A' if text[at] != 'A' else 'B'}{text[at + 1 :]}"


#: What an attacker makes of a valid cookie.
TAMPERED: dict[str, Callable[[str], str]] = {
    "the first character": lambda text: flipped(text, 0),
    "the key's id": lambda text: flipped(text, 7),
    "the first of the content": lambda text: flipped(text, 9),
    "the middle of the content": lambda text: flipped(text, len(text) // 2),
    "the last of the content": lambda text: flipped(text, len(text) - 45),
    "the first of the mac": lambda text: flipped(text, len(text) - 43),
    # The last character of 43 has two bits that base64 ignores.
    "the unused bits of the mac": lambda text: text[:-1] + chr(ord(text[-1]) + 1),
    "no mac": lambda text: text.rpartition(".")[0],
    "an empty mac": lambda text: text.rpartition(".")[0] + ".",
    "a short mac": lambda text: text[:-8],
    "a mac of zeros": lambda text: text.rpartition(".")[0] + "." + "A" * 43,
    "the mac twice": lambda text: text + "." + text.rpartition(".")[2],
    "padding": lambda text: text + "=",
    "padding inside": lambda text: text.replace(".", "=.", 2),
    "the other alphabet": lambda text: text.replace("-", "+").replace("_", "/") + ".",
    "a space inside": lambda text: text[:20] + " " + text[20:],
    "quotes": lambda text: f'"{text}"',
    "no content": lambda text: f"{text[:8]}..{text.rpartition('.')[2]}",
    "another order": lambda text: ".".join(reversed(text.split("."))),
    "the algorithm none": lambda text: "none." + text.partition(".")[2],
    "JWT": lambda text: ".".join((b64(b'{"alg":"none"}'), b64(b'{"sub":"root"}'), "")),
    "signed with nothing": lambda text: resigned(text, b"", principal="root"),
    "signed with the purpose": lambda text: resigned(text, token.PURPOSE, principal="root"),
    "signed with the secret itself": lambda text: resigned(text, KEYS["SESSION_KEY"].encode(), principal="root"),
    "signed with the id of the key": lambda text: resigned(text, text[:8].encode(), principal="root"),
    "signed with another key": lambda text: KeyRing(token.PURPOSE, [KEYS["OTHER_KEY"]]).sign(RING.content(text) or b""),
    "signed for another purpose": lambda text: KeyRing(csrf.PURPOSE, [KEYS["SESSION_KEY"]]).sign(
        RING.content(text) or b""
    ),
    "SHA-1": lambda text: resigned(text, KEYS["SESSION_KEY"].encode(), algorithm="sha1"),
    "nothing": lambda text: ".",
    "text": lambda text: "admin",
    "too long": lambda text: text + "A" * 5000,
    "pickle": lambda text: ".".join((text[:8], b64(b"cos\nsystem\n(S'true'\ntR."), "A" * 43)),
}


@pytest.mark.parametrize("kind", TAMPERED)
async def test_a_tampered_cookie_is_no_session(site: Site, kind: str):
    """Refused where a user is required; where none is, it is nobody's."""
    client = site.client()
    await client.login()
    forged = TAMPERED[kind](client.session)
    assert forged != client.session
    client.cookies["__Host-session"] = forged
    assert await client.who() == "unauthenticated"
    assert (await client.ask("GET", "/public")).json["principal"] == ""
    assert await client.place() == "unauthenticated"


async def test_two_session_cookies_are_none(site: Site):
    """In either order, and in two header lines: one may have been planted."""
    ann, bob = site.client(), site.client()
    await ann.login()
    await bob.login("bob")
    name = "__Host-session"
    for value in (
        f"{name}={ann.session}; {name}={bob.session}",
        f"{name}={bob.session}; a=1; {name}={ann.session}",
        f"{name}={ann.session}; {name}=x",
        f"{name}={ann.session}; {name}=",
        f"{name}=; {name}={ann.session}",
    ):
        told = await site.client().ask("GET", "/me", headers={"Cookie": value})
        assert told.status == 401
    for value in (
        f"a=1; {name}={ann.session} ; b=2",
        f"x{name}=1;{name}={ann.session}",
        f"{name}x=1; {name}={ann.session}",
    ):
        assert (await site.client().ask("GET", "/me", headers={"Cookie": value})).status == 200
    for value in (f"{name.upper()}={ann.session}", f"session={ann.session}", f"x={name}={ann.session}", ann.session):
        assert (await site.client().ask("GET", "/me", headers={"Cookie": value})).status == 401


#: Contents that only a gateway could sign: another release of it, or a stolen key that was used carelessly.
WRONG: list[Any] = [
    b"",
    b"\xc1",
    msgspec.msgpack.encode({}),
    msgspec.msgpack.encode([]),
    msgspec.msgpack.encode([b"x" * 16, "ann"]),
    msgspec.msgpack.encode([b"x" * 15, "ann", [], [], "", 0.0, 0.0, 9e9]),
    msgspec.msgpack.encode([b"x" * 16, "", [], [], "", 0.0, 0.0, 9e9]),
    msgspec.msgpack.encode([b"x" * 16, "a\nb", [], [], "", 0.0, 0.0, 9e9]),
    msgspec.msgpack.encode([b"x" * 16, "ann", ["a b", ""], [], "", 0.0, 0.0, 9e9]),
    msgspec.msgpack.encode([b"x" * 16, "ann", "admin", [], "", 0.0, 0.0, 9e9]),
    msgspec.msgpack.encode([b"x" * 16, 7, [], [], "", 0.0, 0.0, 9e9]),
    msgspec.msgpack.encode([b"x" * 16, "ann", [], [], "", 0.0, 0.0, "never"]),
]


@pytest.mark.parametrize("content", WRONG)
async def test_a_signed_content_that_is_no_session_is_none(site: Site, content: bytes):
    client = site.client()
    client.cookies["__Host-session"] = RING.sign(content)
    assert await client.who() == "unauthenticated"


@pytest.mark.parametrize(
    ("began", "issued", "expires", "valid"),
    [
        (0, 0, 100, True),
        (0, -1801, 100, False),
        (-50_000, 0, -1, False),
        (0, 30, 100, True),
        (0, 120, 1000, False),
        (0, 10**6, 10**9, False),
        (0, float("nan"), float("nan"), False),
        (0, float("inf"), float("inf"), False),
    ],
)
async def test_times_out_of_range_are_no_session(site: Site, began: float, issued: float, expires: float, valid: bool):
    now = site.node.clock.wall()
    session = Session(new_id(), "ann", (), (), "", now + began, now + issued, now + expires)
    client = site.client()
    client.cookies["__Host-session"] = RING.sign(msgspec.msgpack.encode(session))
    assert (await client.who() == "ann") is valid


async def test_a_session_that_does_not_fit_into_a_cookie_is_refused_where_it_is_made(site: Site):
    tokens = Tokens(RING, 1800.0)
    with pytest.raises(ValueError, match="fewer or shorter roles"):
        tokens.sign(Session(new_id(), "ann", tuple("x" * 100 for _ in range(40)), (), "", 0.0, 0.0, 9e9))


# --- keys and settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([""], "has no"),
        (["short"], "too easy"),
        (["x" * 31], "too easy"),
        (["a" * 64], "too easy"),
        (["0f9d2c7b41e865a3" * 4] * 2, "the same secret"),
    ],
)
def test_weak_missing_and_repeated_keys_are_refused(
    monkeypatch: pytest.MonkeyPatch, values: list[str], reason: str
) -> None:
    """By the name of the setting and of the variable, never with the secret."""
    for number, value in enumerate(values):
        monkeypatch.setenv(f"KEY_{number}", value)
    secrets = [Secret(f"env:KEY_{number}") for number in range(len(values))]
    with pytest.raises(ConfigError, match=reason) as caught:
        reveal_all(secrets, "auth.sessions.keys")
    assert caught.value.message.startswith("auth.sessions.keys: ")
    assert not any(value and value in caught.value.message for value in values)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"keys": []}, "auth.sessions.keys"),
        ({"login": []}, "auth.sessions.login"),
        ({"idle_s": 5.0, "check_s": 1.0}, "auth.sessions.idle"),
        ({"idle_s": 60.0, "check_s": 61.0}, "auth.sessions.idle"),
        ({"idle_s": 600.0, "absolute_s": 500.0}, "auth.sessions.absolute"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(values: dict[str, Any], key: str) -> None:
    settings = Settings(auth=AuthSettings(sessions=sessions(**values)))
    assert [found for found, _ in problems(settings)] == [key]
    assert not list(problems(Settings(auth=AuthSettings(sessions=sessions()))))


def test_a_token_of_one_purpose_is_none_of_another() -> None:
    one, other = KeyRing(b"one", [KEYS["SESSION_KEY"]]), KeyRing(b"other", [KEYS["SESSION_KEY"]])
    assert one.content(one.sign(b"x")) == b"x"
    assert other.content(one.sign(b"x")) is None
    assert HOST not in one.sign(b"")
