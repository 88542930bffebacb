"""`mesh apikeys` and `mesh users`: real commands in a project of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli_project import Mesh

from mesh.gateway.edge.auth import api_keys, passwords


@pytest.fixture
def run(mesh: Mesh, tmp_path: Path) -> Mesh:
    (tmp_path / "mesh.toml").write_text('[auth.apikeys]\nfile = "keys.json"\n\n[auth.basic]\nfile = "users.json"\n')

    def command(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return mesh(*words, stdin=stdin, cwd=tmp_path)

    return command


def test_api_keys_are_made_listed_and_revoked(run: Mesh, tmp_path: Path):
    made = run("apikeys", "create", "billing", "--scopes", "a:b,c", "--roles", "clerk", "--expires", "90d")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    (record,) = api_keys.listed(tmp_path / "keys.json")
    assert (record.name, record.principal, record.scopes, record.roles) == (
        "billing",
        "billing",
        ["a:b", "c"],
        ["clerk"],
    )
    assert record.expires_at - record.created_at == 90 * 86400
    assert api_keys.ApiKeys([record]).find(key, record.created_at) is not None
    other = json.loads(run("apikeys", "create", "bot", "--principal", "ann", "--tenant", "acme", "--json").stdout)
    assert (other["principal"], other["tenant"], other["expires_at"]) == ("ann", "acme", None)
    listed = run("apikeys", "list")
    assert key not in listed.stdout
    assert [record.id in listed.stdout, other["id"] in listed.stdout] == [True, True]
    assert run("apikeys", "revoke", "billing").returncode == 0
    assert run("apikeys", "revoke", other["id"]).returncode == 0
    assert json.loads(run("apikeys", "list", "--json").stdout) == []


def test_users_are_added_listed_and_removed(run: Mesh, tmp_path: Path):
    added = run("users", "add", "ann", "--roles", "operator", stdin="a long password\n")
    assert added.returncode == 0, added.stderr
    (user,) = passwords.listed(tmp_path / "users.json")
    assert passwords.verify(user, b"a long password")
    assert run("users", "add", "ann", stdin="another password\n").returncode == 1
    assert run("users", "add", "ann", "--replace", stdin="another password\n").returncode == 0
    (user,) = json.loads(run("users", "list", "--json").stdout)
    assert (user["name"], user["roles"], "hash" in user) == ("ann", [], False)
    assert run("users", "remove", "ann").returncode == 0
    assert run("users", "remove", "ann").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ("apikeys", "create", ""),
        ("apikeys", "create", "a\nb"),
        ("apikeys", "create", "k", "--scopes", "ä"),
        ("apikeys", "create", "k", "--expires", "soon"),
        ("apikeys", "create", "k", "--expires", "0s"),
        ("apikeys", "create", "k", "--principal", "p" * 300),
        ("apikeys", "revoke", "none"),
        ("users", "add", "a:b"),
        ("users", "add", "ann"),
        ("users", "remove", "none"),
    ],
)
def test_wrong_words_change_nothing(run: Mesh, tmp_path: Path, words: tuple[str, ...]):
    answer = run(*words, stdin="short\n")
    assert answer.returncode in (1, 2)
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "keys.json").exists()
    assert not (tmp_path / "users.json").exists()


def test_a_project_that_names_no_file_gets_one_and_advice(mesh: Mesh, tmp_path: Path):
    (tmp_path / "mesh.toml").write_text("")
    made = mesh("apikeys", "create", "k", cwd=tmp_path)
    assert "[auth.apikeys]" in made.stderr
    assert len(api_keys.listed(tmp_path / "apikeys.json")) == 1


def test_secrets_are_not_shown_by_mesh_config(mesh: Mesh, tmp_path: Path):
    (tmp_path / "mesh.toml").write_text(
        '[auth.jwt]\nissuer = "i"\naudience = "a"\nsecret = "env:TOKEN_SECRET"\n\n[auth.mounts]\n"/docs" = "none"\n'
    )
    shown = mesh("config", cwd=tmp_path, env={"TOKEN_SECRET": "s3cr3t" * 8})
    assert shown.returncode == 0, shown.stderr
    assert "s3cr3t" not in shown.stdout
    assert "auth.jwt.audience" in shown.stdout


def test_a_gateway_that_could_not_start_is_reported_by_check(mesh: Mesh, tmp_path: Path):
    (tmp_path / "mesh.toml").write_text('[auth.jwt]\nissuer = "i"\naudience = "a"\nsecret = "env:TOKEN_SECRET"\n')
    assert mesh("gateway", "--check", cwd=tmp_path, env={"TOKEN_SECRET": "s" * 32}).returncode == 0
    refused = mesh("gateway", "--check", cwd=tmp_path, env={"TOKEN_SECRET": "s" * 31})
    assert (refused.returncode, "auth.jwt.secret" in refused.stderr) == (2, True)
