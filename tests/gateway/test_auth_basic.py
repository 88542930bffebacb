"""Names and passwords: checked in threads, few at a time, and remembered for minutes."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front, eventually

from mesh.config import Settings
from mesh.config.edge_auth import AuthSettings, BasicSettings
from mesh.errors import ConfigError
from mesh.gateway.edge.auth import basic_method, passwords, watched_file
from mesh.gateway.edge.auth.credential_file import BadCredentials
from mesh.gateway.server import Gateway

PASSWORD = "correct horse: battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the cost of production: only the test of the cost needs that."""
    monkeypatch.setattr(passwords, "COST", (2**10, 8, 1))
    monkeypatch.setattr(watched_file, "INTERVAL_S", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    passwords.add(path, "ann", PASSWORD, scopes=["orders:read", "orders:write"], roles=["clerk"], tenant="acme", now=0)
    passwords.add(path, "jürgen", "größer als zwölf", now=0)
    return path


@pytest.fixture
async def front(node: FakeNode, settings: Settings, file: Path) -> AsyncIterator[Front]:
    open_desk(node)
    async with gateway_of(node, configured(settings, file)) as made:
        yield made


def configured(settings: Settings, file: Path) -> Settings:
    return Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(basic=BasicSettings(file=file)))


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


async def status(front: Front, headers: Any, path: str = "/user") -> int:
    return (await front.get(path, headers=headers)).status


async def test_users_log_in(front: Front):
    answer = await front.get("/user", headers=basic("ann", PASSWORD))
    assert (answer.status, answer.json) == (200, "ann@acme")
    assert [await status(front, basic("ann", PASSWORD), path) for path in ("/write", "/clerk")] == [200, 200]
    assert await status(front, basic("jürgen", "größer als zwölf")) == 200
    missing = await front.get("/user")
    assert missing.headers.getall("WWW-Authenticate") == ['Basic realm="mesh", charset="UTF-8"']


@pytest.mark.parametrize(("mode", "shown"), [("navigate", True), ("cors", True), (None, True)])
async def test_the_challenge_that_opens_a_dialog_is_kept_when_it_is_the_only_one(
    front: Front, mode: str | None, shown: bool
):
    answer = await front.get("/user", headers={"Sec-Fetch-Mode": mode} if mode else {})
    assert ("WWW-Authenticate" in answer.headers) == shown


def raw(data: bytes) -> str:
    return "Basic " + b64encode(data).decode()


@pytest.mark.parametrize(
    "told",
    [
        raw(b"ann:wrong password"),
        raw(b"ann:"),
        raw(b"ann"),
        raw(b":"),
        raw(b""),
        raw(b":" + PASSWORD.encode()),
        raw(b"bob:" + PASSWORD.encode()),
        raw(b"ANN:" + PASSWORD.encode()),
        raw(b"ann:" + PASSWORD.encode() + b" "),
        raw(b"ann:" + PASSWORD.encode() + b"\0"),
        raw(b"ann\0:" + PASSWORD.encode()),
        raw(b"\xff:" + PASSWORD.encode()),
        raw(b"ann:" + b"a" * 5000),
        raw(b"a" * 5000 + b":" + PASSWORD.encode()),
        "Basic",
        "Basic ====",
        "Basic " + b64encode(b"ann:" + PASSWORD.encode()).decode()[:-3],
        "Basic ann:" + PASSWORD,
        "Basic " + "\u00e9" * 20,
    ],
)
async def test_other_credentials_are_refused(front: Front, told: str):
    assert await status(front, {"Authorization": told}) == 401
    assert await status(front, basic("ann", PASSWORD)) == 200


async def test_each_password_is_checked_once_right_or_wrong(front: Front, monkeypatch: pytest.MonkeyPatch):
    checked: list[str] = []
    verify = passwords.verify
    monkeypatch.setattr(basic_method, "verify", lambda user, data: checked.append(user.name) or verify(user, data))
    for _ in range(3):
        assert await status(front, basic("ann", PASSWORD)) == 200
        assert await status(front, basic("ann", "wrong password")) == 401
        assert await status(front, basic("mallory", PASSWORD)) == 401
    # An unknown user costs as much as a wrong password: nobody's password is checked.
    assert checked == ["ann", "ann", ""]
    found = await asyncio.gather(*(status(front, basic("ann", "the same guess")) for _ in range(8)))
    assert (set(found), len(checked)) == ({401}, 4)


async def test_a_changed_password_takes_effect_at_once(front: Front, file: Path):
    assert await status(front, basic("ann", PASSWORD)) == 200
    passwords.add(file, "ann", "another password", now=0, replace=True)
    assert [await status(front, basic("ann", each)) for each in (PASSWORD, "another password")] == [401, 200]
    passwords.remove(file, "ann")
    assert await status(front, basic("ann", "another password")) == 401


async def test_guesses_cannot_occupy_the_gateway(front: Front, monkeypatch: pytest.MonkeyPatch):
    """A few checks run and wait; other guesses get 503 at once, and whoever is known is let in all the time."""
    assert await status(front, basic("ann", PASSWORD)) == 200
    go, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def slow(user: passwords.User, data: bytes) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(10)
        with lock:
            running -= 1
        return False

    monkeypatch.setattr(basic_method, "verify", slow)
    guesses = [asyncio.ensure_future(status(front, basic("ann", f"guess number {n}"))) for n in range(40)]
    await eventually(lambda: sum(each.done() for each in guesses) >= 40 - basic_method.MOST_PENDING_OF_ONE, "refusals")
    assert {each.result() for each in guesses if each.done()} == {503}
    assert await status(front, basic("ann", PASSWORD)) == 200
    assert await status(front, {}, "/open") == 200
    go.set()
    found = await asyncio.gather(*guesses)
    assert (found.count(401), most) == (basic_method.MOST_PENDING_OF_ONE, basic_method.CHECKS)


async def test_the_memory_of_results_is_bounded(front: Front, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(basic_method, "MOST_KNOWN", 3)
    for number in range(8):
        assert await status(front, basic("ann", f"guess number {number}")) == 401
    (concern,) = [each for each in front.gateway.front.concerns if each.name == "auth"]
    checks = concern.hook.__self__._methods[0].authenticate.__self__
    assert len(checks._wrong) == 3


# --- the file ------------------------------------------------------------------------------------------


def test_the_file_holds_no_password(file: Path):
    assert file.stat().st_mode & 0o777 == 0o600
    assert "horse" not in file.read_text()
    salts = {user.salt for user in passwords.listed(file)}
    assert len(salts) == 2


def test_the_cost_of_production_is_as_recommended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """OWASP's minimum; and the limit of memory leaves room for it."""
    monkeypatch.undo()
    assert passwords.COST == (2**15, 8, 3)
    user = passwords.add(tmp_path / "users.json", "ann", PASSWORD, now=0)
    assert passwords.verify(user, PASSWORD.encode())
    assert not passwords.verify(user, b"wrong password")


@pytest.mark.parametrize("password", ["", "short", "a" * 2000])
def test_passwords_of_other_lengths_are_not_accepted(file: Path, password: str):
    with pytest.raises(BadCredentials):
        passwords.add(file, "bob", password, now=0)


def test_names_are_unique(file: Path):
    with pytest.raises(BadCredentials):
        passwords.add(file, "ann", PASSWORD, now=0)
    with pytest.raises(BadCredentials):
        passwords.remove(file, "nobody")


@pytest.mark.parametrize(
    "changes",
    [
        {"cost": [2**30, 8, 1]},
        {"cost": [1000, 8, 1]},
        {"cost": [2**10, 8, 0]},
        {"hash": "00"},
        {"salt": "00"},
        {"name": ""},
    ],
)
def test_a_record_that_would_exhaust_the_machine_or_is_broken_is_refused(
    node: FakeNode, settings: Settings, file: Path, changes: dict[str, Any]
):
    import json

    told = json.loads(file.read_text())
    told["users"][0] |= changes
    file.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"^auth\.basic\.file: "):
        Gateway(node, configured(settings, file))
