"""Secrets by reference, keys and rules in mesh.toml: what is read, what is never shown, and how a mistake is told."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import pytest

from mesh.config import AccessRule, ServeRule, load, origins
from mesh.config.secrets import MOST_BYTES, Secret, revealed
from mesh.errors import ConfigError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a mesh.toml into an empty project, and stand in it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        (tmp_path / "mesh.toml").write_text(textwrap.dedent(text))
        return tmp_path

    return write


def wrong(env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(env=env or {})
    return caught.value.message.splitlines()


# --- secrets ------------------------------------------------------------------------------------------


def test_a_secret_is_read_where_it_is_used(project, monkeypatch: pytest.MonkeyPatch):
    """The settings hold where it stands; a service gets what stands there."""
    root = project("""
        [services.mail.config]
        user = "post"
        password = {secret = "env:SMTP_PASSWORD"}
        tokens = [{secret = "file:TOKEN_FILE"}, "plain"]
    """)
    path = root / "token"
    path.write_text("t0p\n")
    path.chmod(0o600)
    (root / "mesh.toml").write_text((root / "mesh.toml").read_text().replace("TOKEN_FILE", str(path)))
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    settings = load()
    held = settings.services["mail"].config
    assert "hunter2" not in repr(settings)
    assert "t0p" not in repr(settings)
    assert revealed(held) == {"user": "post", "password": "hunter2", "tokens": ["t0p", "plain"]}


def test_mesh_config_shows_stars_and_where_the_secret_stands(project):
    """Never the value, not even when the environment has it."""
    project("""
        [keys]
        dir = "keys"
        secret = "env:KEY"
        [services.mail.config]
        password = {secret = "env:SMTP_PASSWORD"}
        deep = {login = {secret = "env:SMTP_PASSWORD"}}
    """)
    rows = {row.key: row for row in origins(env={"KEY": "hunter1", "SMTP_PASSWORD": "hunter2"})}
    assert (rows["keys.secret"].value, rows["keys.secret"].origin) == ("***", "mesh.toml:4, env:KEY")
    password = rows["services.mail.config.password"]
    assert (password.value, password.origin) == ("***", "mesh.toml:6, env:SMTP_PASSWORD")
    assert rows["services.mail.config.deep"].value == {"login": "***"}
    assert "hunter" not in repr(rows)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '[keys]\nsecret = "hunter2"\n',
            "mesh.toml:2: keys.secret: *** ",
        ),
        ('[keys]\nsecret = "file:hunter2"\n', "mesh.toml:2: keys.secret: *** "),
        ("[keys]\nsecret = 5\n", "mesh.toml:2: keys.secret: *** "),
        (
            '[services.mail.config]\npassword = {secret = "hunter2"}\n',
            "mesh.toml:2: services.mail.config.password: *** ",
        ),
    ],
)
def test_a_secret_in_the_file_itself_is_refused_and_not_repeated(project, text: str, line: str):
    """Whoever wrote it there does not want it in a log as well."""
    project(text)
    (said,) = wrong()
    assert said.startswith(line)
    assert "hunter2" not in said


def test_a_secret_from_the_environment_is_a_reference_too(project):
    """MESH_KEYS_SECRET says where, like the file."""
    project('[keys]\ndir = "keys"\n')
    settings = load(env={"MESH_KEYS_SECRET": "env:OTHER"})
    assert settings.keys.secret == Secret("env:OTHER")
    (said,) = wrong({"MESH_KEYS_SECRET": "0123456789"})
    assert said.startswith("MESH_KEYS_SECRET: keys.secret: *** ")


def test_a_secret_that_is_missing_is_named(project, tmp_path: Path):
    """By its key and line, and by what it refers to."""
    project('\n[services.mail.config]\npassword = {secret = "env:NOWHERE"}\n')
    with pytest.raises(ConfigError) as caught:
        revealed(load(env={}).services["mail"].config)
    assert caught.value.message.startswith("mesh.toml:3: services.mail.config.password: ")
    assert "NOWHERE" in caught.value.message
    with pytest.raises(ConfigError, match=f"{tmp_path}/none: "):
        Secret(f"file:{tmp_path}/none").reveal()


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o660, False)]
)
def test_a_secret_file_is_not_for_everybody(tmp_path: Path, mode: int, fine: bool):
    """A group may read it, so that a service's user can be given a file of root's."""
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    path.chmod(mode)
    if fine:
        assert Secret(f"file:{path}").reveal() == "hunter2"
        return
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.: chmod 600"):
        Secret(f"file:{path}").reveal()


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "secret: "), (b"\xff\n", "UTF-8"), (b"x" * (MOST_BYTES + 1), str(MOST_BYTES))]
)
def test_a_file_that_is_no_secret_is_told(tmp_path: Path, content: bytes, says: str):
    """Without its content."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=says):
        Secret(f"file:{path}").reveal()
    os.unlink(path)
    path.mkdir()
    with pytest.raises(ConfigError):
        Secret(f"file:{path}").reveal()


# --- keys and access ----------------------------------------------------------------------------------


def test_keys_belong_to_the_project(project):
    """A relative directory is the same one from every directory; without it there are no keys."""
    root = project('[keys]\ndir = "keys"\nname = "orders@host-1"\n')
    settings = load(env={})
    assert settings.keys.dir == root / "keys"
    assert settings.keys.name == "orders@host-1"
    assert settings.keys.hub == "hub"
    (root / "mesh.toml").write_text("")
    assert load(env={}).keys.dir is None
    assert {row.key: row.value for row in origins(env={})}["keys.dir"] == ""


def test_a_key_needs_to_know_whom_to_believe(project):
    """A secret key without the directory of public ones would talk to nobody."""
    project('[keys]\nsecret = "env:KEY"\n')
    (told,) = wrong()
    assert told.startswith("mesh.toml:2: keys.secret: keys.dir ")


def test_rules_are_read_with_their_lines(project):
    """One name or many; all methods when none are named; declared and empty is not the same as absent."""
    root = project("""
        [[access.allow]]
        caller = "gateway"
        service = ["orders", "mail"]
        methods = ["get*", "list"]

        [[access.allow]]
        caller = ["cron", "client@host-1"]
        service = "orders"
    """)
    access = load(env={}).access
    assert access is not None
    assert access.allow == (
        AccessRule(callers=("gateway",), services=("orders", "mail"), methods=("get*", "list"), place="mesh.toml:2"),
        AccessRule(callers=("cron", "client@host-1"), services=("orders",), place="mesh.toml:7"),
    )
    shown = {row.key: (row.value, row.origin) for row in origins(env={})}
    assert shown["access.allow.0"] == ("gateway → orders, mail: get*, list", "mesh.toml:2")
    (root / "mesh.toml").write_text("[access]\n")
    empty = load(env={}).access
    assert empty is not None
    assert empty.allow == ()
    shown = {row.key: (row.value, row.origin) for row in origins(env={})}
    nothing, origin = shown["access.allow"]
    assert origin == "mesh.toml:1"
    (root / "mesh.toml").write_text('[[access.serve]]\nworker = "orders"\nservice = "orders"\n')
    assert {row.key: row.value for row in origins(env={})}["access.allow"] == nothing
    (root / "mesh.toml").write_text("")
    assert load(env={}).access is None
    shown = {row.key: (row.value, row.origin) for row in origins(env={})}
    assert shown["access.allow"][0] != nothing
    assert shown["access.allow"][1] == "default"


def test_rights_on_durable_data_are_read(project):
    """Beside or instead of a service; an array for state means both, and [access] names operators."""
    project("""
        [access]
        operators = ["operator", "admin-*"]

        [[access.allow]]
        caller = "orders"
        tasks = "mail.*"
        events = { publish = ["order.#"], subscribe = "payment.*" }
        state = { read = ["carts*"], write = "orders" }
        locks = ["orders.*"]
        schedules = ["orders.*"]

        [[access.allow]]
        caller = "mail"
        state = ["letters"]
    """)
    access = load(env={}).access
    assert access is not None
    assert access.operators == ("operator", "admin-*")
    assert access.allow == (
        AccessRule(
            callers=("orders",),
            tasks=("mail.*",),
            publish=("order.#",),
            subscribe=("payment.*",),
            reads=("carts*",),
            writes=("orders",),
            locks=("orders.*",),
            schedules=("orders.*",),
            place="mesh.toml:5",
        ),
        AccessRule(callers=("mail",), reads=("letters",), writes=("letters",), place="mesh.toml:13"),
    )
    assert {row.key: row.value for row in origins(env={})}["access.operators"] == "operator, admin-*"


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('events = ["order.#"]', "events"),
        ("events = {}", "events"),
        ('events = { publishes = "order.#" }', "events.publishes"),
        ('events = { publish = "order*" }', "events.publish"),
        ('events = { publish = "order..made" }', "events.publish"),
        ('state = { read = "carts", delete = "carts" }', "state.delete"),
        ("state = 3", "state"),
        ("tasks = []", "tasks"),
        ('task = "mail.send"\nlocks = "x"', "task"),
        ('methods = "get"\nlocks = "x"', "methods"),
        ("", ""),
    ],
)
def test_a_right_that_is_none_is_told(project, lines: str, key: str):
    """With its key; a rule that gives nothing is one, too."""
    project(f'[[access.allow]]\ncaller = "a"\n{lines}\n')
    (told,) = wrong()
    assert told.partition(": ")[2].startswith(f"access.allow[0]{'.' if key else ''}{key}: ")


def test_who_may_run_what_is_read_alike(project):
    """[[access.serve]], with errors of the same form."""
    root = project('[[access.serve]]\nworker = "orders"\nservice = ["orders", "stock"]\n')
    access = load(env={}).access
    assert access is not None
    assert access.serve == (ServeRule(workers=("orders",), services=("orders", "stock"), place="mesh.toml:1"),)
    assert {row.key: row.value for row in origins(env={})}["access.serve.0"] == "orders runs orders, stock"
    (root / "mesh.toml").write_text('[[access.serve]]\ncaller = "orders"\n')
    unknown, *missing = wrong()
    assert unknown.startswith("mesh.toml:2: access.serve[0].caller: ")
    assert unknown.endswith("worker, service")
    assert [re.findall(r"^mesh\.toml:1: access\.serve\[0\]: .*write (\w+) = ", line) for line in missing] == [
        ["worker"],
        ["service"],
    ]


def test_each_mistake_in_a_rule_has_its_line(project):
    """All of them at once, each with what to write instead."""
    project("""
        [[access.allow]]
        caller = "gateway"
        service = "orders"
        method = "get*"

        [[access.allow]]
        caller = 5
        service = []
        methods = ["orders.get"]

        [[access.allow]]
        service = "orders"

        [[access.allow]]
        caller = ["a", ""]
        service = "orders"
    """)
    assert [": ".join(line.split(": ")[:2]) for line in wrong()] == [
        "mesh.toml:5: access.allow[0].method",
        "mesh.toml:8: access.allow[1].caller",
        "mesh.toml:9: access.allow[1].service",
        "mesh.toml:10: access.allow[1].methods",
        "mesh.toml:12: access.allow[2]",
        "mesh.toml:16: access.allow[3].caller",
    ]
    assert '"methods"' in wrong()[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("access = 3\n", "mesh.toml:1: access: "),
        ("[access]\nallow = 3\n", "mesh.toml:2: access.allow: "),
        ('[access]\ndeny = "x"\n', "mesh.toml:2: access.deny: "),
        ("[acces]\n", "mesh.toml:1: acces: "),
    ],
)
def test_other_shapes_of_access_are_told(project, text: str, says: str):
    """What looks like a rule and is none must not pass for one."""
    project(text)
    assert wrong()[0].startswith(says)


def test_rules_over_bare_tcp_are_refused(project):
    """Who says who it is there? Over ipc, the directory; with keys, the key."""
    project('[mesh]\nbind = "tcp://127.0.0.1:*"\n\n[access]\n')
    (told,) = wrong()
    assert told.startswith("mesh.toml:4: access: ")
    assert "keys.dir" in told
    project('[mesh]\nbind = "tcp://127.0.0.1:*"\n[access]\n[keys]\ndir = "keys"\n')
    load(env={})
