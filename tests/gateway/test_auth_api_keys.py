"""API keys: made, sent, expired and revoked; and attempts without one."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway_auth import gateway_of, open_desk
from gateway_fakes import FakeNode
from gateway_front import Front

from mesh.config import Settings
from mesh.config.edge_auth import ApiKeySettings, AuthSettings
from mesh.errors import ConfigError
from mesh.gateway.edge.auth import api_keys, watched_file
from mesh.gateway.edge.auth.credential_file import BadCredentials
from mesh.gateway.server import Gateway

NOW = time.time()


def configured(settings: Settings, file: Path) -> Settings:
    return Settings(mesh=settings.mesh, gateway=settings.gateway, auth=AuthSettings(apikeys=ApiKeySettings(file=file)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "apikeys.json"


@pytest.fixture
def key(file: Path) -> str:
    return api_keys.create(
        file,
        "billing",
        principal="billing-bot",
        scopes=["orders:read", "orders:write"],
        roles=["clerk"],
        tenant="acme",
        now=NOW,
    )[0]


@pytest.fixture
async def front(
    node: FakeNode, settings: Settings, file: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Front]:
    monkeypatch.setattr(watched_file, "INTERVAL_S", 0.0)
    open_desk(node)
    async with gateway_of(node, configured(settings, file)) as made:
        yield made


async def status(front: Front, headers: Any, path: str = "/user") -> int:
    return (await front.get(path, headers=headers)).status


async def test_a_key_is_accepted_in_both_fields(front: Front, key: str):
    for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}, {"authorization": f"BEARER {key}"}):
        answer = await front.get("/user", headers=headers)
        assert (answer.status, answer.json) == (200, "billing-bot@acme")
        assert [await status(front, headers, path) for path in ("/write", "/clerk")] == [200, 200]


async def test_changes_of_the_file_take_effect(front: Front, file: Path, key: str):
    other, _ = api_keys.create(file, "other", now=NOW)
    assert [await status(front, {"X-API-Key": each}) for each in (key, other)] == [200, 200]
    assert api_keys.revoke(file, "billing").name == "billing"
    assert [await status(front, {"X-API-Key": each}) for each in (key, other)] == [401, 200]
    file.write_text("broken")  # noqa: ASYNC240
    assert await status(front, {"X-API-Key": other}) == 200


async def test_a_file_that_others_can_read_is_not_read(front: Front, file: Path, key: str):
    other = api_keys.create(file, "other", now=NOW)[0]
    os.chmod(file, 0o644)
    assert await status(front, {"X-API-Key": other}) == 401
    os.chmod(file, 0o600)
    assert await status(front, {"X-API-Key": other}) == 200


def test_an_expired_key_is_refused(file: Path):
    text, key = api_keys.create(file, "short", now=NOW, expires_at=NOW + 60)
    keys = api_keys.ApiKeys([key])
    assert keys.find(text, NOW + 59) is not None
    assert keys.find(text, NOW + 60) is None


ATTACKS = {
    "nothing": lambda key: "",
    "the prefix": lambda key: "mk_",
    "the id": lambda key: key.rpartition("_")[0][:15],
    "the id and a separator": lambda key: key[:16],
    "another secret": lambda key: key[:16] + "A" * 43,
    "cut": lambda key: key[:-1],
    "longer": lambda key: key + "A",
    "another case": lambda key: key.swapcase(),
    "with NUL": lambda key: key + "\\0",
    "another id": lambda key: "mk_000000000000" + key[15:],
    "the hash": lambda key: __import__("hashlib").sha256(key.encode()).hexdigest(),
    "without the prefix": lambda key: key.removeprefix("mk_"),
    "prefix twice": lambda key: "mk_" + key,
    "long": lambda key: key + "A" * 5000,
    "not ASCII": lambda key: key[:-1] + "é",
    "quoted": lambda key: f'"{key}"',
    "two in one field": lambda key: f"{key}, {key}",
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_other_texts_are_refused(front: Front, key: str, name: str):
    wrong = ATTACKS[name](key)
    for headers in ({"X-API-Key": wrong}, {"Authorization": f"Bearer {wrong}"}):
        assert await status(front, headers) == 401
    assert await status(front, {"X-API-Key": key}) == 200


async def test_two_keys_are_refused(front: Front, key: str):
    assert await status(front, {"X-API-Key": key, "Authorization": f"Bearer {key}"}) == 401
    assert await status(front, [("X-API-Key", key), ("X-API-Key", key)]) == 401


async def test_keys_are_read_from_nowhere_else(front: Front, key: str):
    assert await status(front, {}, f"/user?api_key={key}") == 401
    assert await status(front, {"Authorization": f"Basic {key}"}) == 401
    assert await status(front, {"Cookie": f"X-API-Key={key}"}) == 401


# --- the file ------------------------------------------------------------------------------------------


def test_the_file_holds_no_key_and_belongs_to_its_user(file: Path, key: str):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert key.rpartition("_")[2] not in file.read_text()
    assert os.listdir(file.parent) == [file.name]


def test_keys_have_256_random_bits(file: Path):
    secrets = {api_keys.create(file, "k", now=NOW)[0].split("_", 2)[2] for _ in range(20)}
    assert len(secrets) == 20
    assert all(len(each) == 43 for each in secrets)


def test_writers_wait_for_each_other(file: Path):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: api_keys.create(file, f"key-{number}", now=NOW), range(40)))
    assert {key.name for key in api_keys.listed(file)} == {f"key-{number}" for number in range(40)}


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    file.symlink_to(tmp_path / "shared/apikeys.json")
    api_keys.create(file, "k", now=NOW)
    assert file.is_symlink()
    assert [key.name for key in api_keys.listed(tmp_path / "shared/apikeys.json")] == ["k"]


def test_revoking_names_one_key(file: Path):
    texts = [api_keys.create(file, "twice", now=NOW)[0] for _ in range(2)]
    for which in ("twice", "nothing"):
        with pytest.raises(BadCredentials):
            api_keys.revoke(file, which)
    api_keys.revoke(file, texts[0])  # a pasted key
    api_keys.revoke(file, "twice")
    assert api_keys.listed(file) == []


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'{"keys": 1}',
        b'{"keys": [{"id": "a", "name": "b", "sha256": "zz", "principal": "c"}]}',
        b'{"keys": [{"id": "a", "name": "b", "sha256": "00", "principal": "c"}]}',
        b'{"keys": [], "version": 2}',
        b"\xff",
    ],
)
def test_a_broken_file_is_refused_at_the_start_and_never_overwritten(
    node: FakeNode, settings: Settings, file: Path, content: bytes
):
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"^auth\.apikeys\.file: "):
        Gateway(node, configured(settings, file))
    with pytest.raises(BadCredentials):
        api_keys.create(file, "k", now=NOW)
    assert file.read_bytes() == content


def test_a_missing_file_is_an_error_at_the_start(node: FakeNode, settings: Settings, file: Path):
    with pytest.raises(ConfigError, match=r"mesh apikeys create"):
        Gateway(node, configured(settings, file))
