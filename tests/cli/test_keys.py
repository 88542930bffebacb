"""`mesh keys`, and a mesh that runs with what it made: real processes over tcp."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_project import SERVICE, command, environment

from mesh.cli import exits
from mesh.cli.main import run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    (tmp_path / "mesh.toml").write_text("")
    return tmp_path


def test_keys_are_made_and_what_to_do_with_them_is_said(project: Path, capsys: pytest.CaptureFixture[str]):
    """The digits on stdout, the way on stderr, and no secret on either."""
    assert run(["keys", "make", "hub", "orders"]) == exits.OK
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.split()[:2] for line in lines] == [["made", "hub"], ["made", "orders"]]
    assert '[keys]\n  dir = "keys"' in told.err
    keys = project / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
    secret = (keys / "orders.secret").read_text().split('secret = "')[1][:64]
    assert secret not in told.out + told.err


def test_the_list_shows_states_and_where_secrets_are(project: Path, capsys: pytest.CaptureFixture[str]):
    """Current, retiring and revoked; here, elsewhere, and unusable with the remedy."""
    run(["keys", "make", "hub", "orders", "mail"])
    run(["keys", "rotate", "orders"])
    run(["keys", "revoke", "mail"])
    (project / "keys/hub.secret").chmod(0o644)
    capsys.readouterr()
    assert run(["keys", "list"]) == exits.OK
    told = capsys.readouterr()
    rows = [line.split() for line in told.out.splitlines()[2:]]
    assert [(row[0], row[2]) for row in rows] == [
        ("hub", "current"),
        ("orders", "current"),
        ("orders", "retiring"),
        ("mail", "revoked"),
    ]
    assert rows[0][4] == "UNUSABLE"
    assert rows[1][4] == "here"
    assert "chmod 600" in told.err
    assert run(["keys", "list", "--json"]) == exits.OK
    listed = json.loads(capsys.readouterr().out)
    assert [row["secret_here"] for row in listed] == [None, True, False, False]
    assert all(len(row["public"]) == 64 for row in listed)
    assert "secret" not in {key for row in listed for key in row}


def test_the_list_shows_all_that_can_be_read_and_what_is_wrong_with_the_rest(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    """One broken file hides neither the other keys nor itself; the exit code says that there is one."""
    run(["keys", "make", "hub", "orders", "mail", "old"])
    run(["keys", "revoke", "old"])
    (project / "keys/orders.public").write_text("not toml [")
    (project / "keys/mail.public").chmod(0o666)
    capsys.readouterr()
    assert run(["keys", "list"]) == exits.FAILED
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()[2:]] == ["hub", "old", "mail", "orders"]
    assert told.out.count("UNREADABLE") == 2
    assert "keys/orders.public: " in told.err
    assert "keys/mail.public: " in told.err
    assert run(["keys", "list", "--json"]) == exits.FAILED
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["orders"]["state"] == "UNREADABLE"
    assert "orders.public" in rows["orders"]["problem"]
    (project / "keys/revoked.keys").write_text("")
    assert run(["keys", "list"]) == exits.FAILED
    assert "revoked.keys" in capsys.readouterr().err


def test_no_name_is_revoked_when_one_is_not_known(project: Path, capsys: pytest.CaptureFixture[str]):
    """It cannot be taken back: all or nothing, and the message says which."""
    run(["keys", "make", "hub", "greeting"])
    capsys.readouterr()
    assert run(["keys", "revoke", "greeting", "client"]) == exits.FAILED
    told = capsys.readouterr()
    assert "'client'" in told.err
    assert "greeting, hub" in told.err
    assert "`mesh keys list`" in told.err
    assert told.out == ""
    assert not (project / "keys/revoked.keys").exists()
    assert run(["keys", "revoke", "greeting", "hub"]) == exits.OK
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["revoked", "greeting"],
        ["revoked", "hub"],
    ]


def test_rotating_says_what_comes_next(project: Path, capsys: pytest.CaptureFixture[str]):
    """And refuses to go ahead of those who must follow."""
    run(["keys", "make", "orders"])
    assert run(["keys", "rotate", "orders"]) == exits.OK
    assert "mesh keys revoke orders --retiring" in capsys.readouterr().err
    assert run(["keys", "rotate", "orders"]) == exits.FAILED
    assert "orders" in capsys.readouterr().err
    assert run(["keys", "revoke", "orders", "--retiring", "--json"]) == exits.OK
    (ended,) = json.loads(capsys.readouterr().out)
    assert ended["name"] == "orders"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["make", "../x"], exits.FAILED, "../x"),
        (["make"], exits.USAGE, "NAME"),
        (["list"], exits.FAILED, "`mesh keys make`"),
        (["rotate", "orders"], exits.FAILED, "mesh keys make orders"),
        (["revoke", "orders"], exits.FAILED, "'orders'"),
    ],
)
def test_mistakes_are_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
):
    """No traceback, and nothing made by accident."""
    assert run(["keys", *words]) == code
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not list(project.glob("keys/*.public"))


def test_the_configured_directory_is_taken_and_dir_wins(project: Path, capsys: pytest.CaptureFixture[str]):
    """[keys] dir, wherever in the project one stands; --dir for a directory that is to be copied elsewhere."""
    (project / "mesh.toml").write_text('[keys]\ndir = "etc/keys"\n')
    (project / "deep").mkdir()
    os.chdir(project / "deep")
    assert run(["keys", "make", "orders"]) == exits.OK
    assert "[keys]" not in capsys.readouterr().err
    assert (project / "etc/keys/orders.secret").exists()
    assert run(["keys", "make", "orders", "--dir", str(project / "other")]) == exits.OK
    assert (project / "other/orders.secret").exists()


# --- a mesh with keys ---------------------------------------------------------------------------------


@pytest.fixture
def secured(project: Path) -> Iterator[Path]:
    """A hub and a worker over tcp with keys and rules, as a user would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (project / "mesh.toml").write_text(f"""
[mesh]
bind = "tcp://127.0.0.1:*"
hubs = ["tcp://127.0.0.1:{port}"]
[keys]
dir = "keys"
[[access.allow]]
caller = "client"
service = "greeting"
methods = ["hello"]
""")
    (project / "greet.py").write_text(SERVICE)
    assert run(["keys", "make", "hub", "greeting", "client"]) == exits.OK
    started = []
    try:
        for words in (("hub",), ("run", "greet:Greeting")):
            with (project / f"{words[0]}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        command(*words),
                        cwd=project,
                        env=environment(),
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                    )
                )
        until(lambda: '"worker.ready"' in (project / "run.log").read_text(), "the worker is ready")
        yield project
        for child in reversed(started):
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
    finally:
        for child in started:
            if child.poll() is None:
                child.kill()
                child.wait()


def until(condition, what: str, within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def mesh(project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        cwd=project,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_mesh_with_keys_from_the_first_command_to_a_revoked_client(secured: Path):
    """Allowed, forbidden, revoked, and without a key: each is told by name, on both sides."""
    done = mesh(secured, "call", "greeting.hello", "ujun")
    assert (done.returncode, done.stdout) == (exits.OK, "Hello, ujun!\n"), done.stderr
    done = mesh(secured, "call", "greeting.add", "1", "2")
    assert done.returncode == exits.REFUSED
    assert "'client'" in done.stderr
    assert "greeting.add" in done.stderr
    assert "call.forbidden" in (secured / "run.log").read_text()
    # A command as any other: its key is `client`. Nobody emits anything.
    done = mesh(secured, "listen", "--timeout", "0.1")
    assert done.returncode == exits.OK, done.stderr

    text = (secured / "mesh.toml").read_text()
    (secured / "naked.toml").write_text(text.partition("[keys]")[0])
    done = mesh(secured, "--config", "naked.toml", "call", "greeting.hello", "x")
    assert done.returncode == exits.UNAVAILABLE
    assert "keys.dir" in done.stderr
    assert "keys.dir" in (secured / "hub.log").read_text()

    other = secured / "other"
    for name in ("client", "hub"):
        assert run(["keys", "make", name, "--dir", str(other)]) == exits.OK
    (other / "hub.public").write_text((secured / "keys/hub.public").read_text())
    (secured / "stranger.toml").write_text(text.replace('dir = "keys"', 'dir = "other"').partition("[[access")[0])
    done = mesh(secured, "--config", "stranger.toml", "call", "greeting.hello", "x")
    assert done.returncode == exits.UNAVAILABLE
    assert "'client'" in done.stderr
    assert str(secured / "keys") in (secured / "hub.log").read_text()

    assert run(["keys", "make", "client@elsewhere"]) == exits.OK
    assert run(["keys", "revoke", "client"]) == exits.OK
    done = mesh(secured, "call", "greeting.hello", "x")
    assert done.returncode == exits.FAILED
    assert "'client'" in done.stderr


def test_operators_have_a_key_of_their_own(secured: Path):
    """Until it is made, commands have the client's, and its rights; then they may do everything."""
    done = mesh(secured, "call", "greeting.add", "1", "2")
    assert done.returncode == exits.REFUSED
    assert "mesh keys make operator" in done.stderr
    assert run(["keys", "make", "operator"]) == exits.OK
    done = mesh(secured, "call", "greeting.add", "1", "2")
    assert (done.returncode, json.loads(done.stdout)["sum"]) == (exits.OK, 3), done.stderr


def test_a_missing_key_of_the_callee_is_told_at_once_on_both_sides(secured: Path):
    """`mesh call` does not wait for its deadline, says what is missing where, and what to do; so does the worker's
    log."""
    # A directory of its own: the hub, too, would notice within a second that a file of its keys is gone.
    shutil.copytree(secured / "keys", secured / "partial")
    (secured / "partial/greeting.public").unlink()
    began = time.monotonic()
    done = mesh(secured, "call", "greeting.hello", "x", "--timeout", "25", MESH_KEYS_DIR="partial")
    assert time.monotonic() - began < 20.0  # most of it is Python's start, on a machine that has more to do
    assert done.returncode == exits.UNAVAILABLE
    assert "greeting.hello: " in done.stderr
    assert str(secured / "partial") in done.stderr
    assert "`mesh keys list`" in done.stderr
    assert "`mesh up`" not in done.stderr
    until(lambda: "'greeting'" in (secured / "run.log").read_text(), "both say it")


def test_an_empty_access_table_is_shown(project: Path, capsys: pytest.CaptureFixture[str]):
    """It denies everything, so it must be seen."""
    (project / "mesh.toml").write_text("[access]\n")
    assert run(["config", "access"]) == exits.OK
    shown = capsys.readouterr().out
    assert "access.allow" in shown
    assert "mesh.toml:1" in shown


def test_a_hub_for_other_hosts_needs_keys(project: Path):
    """It refuses to start, says why, and how to fix it."""
    done = mesh(project, "hub", "--endpoint", "tcp://0.0.0.0:7999")
    assert done.returncode == exits.FAILED
    assert "tcp://0.0.0.0:7999: " in done.stderr
    assert "mesh keys make" in done.stderr
    assert "Traceback" not in done.stderr
    (project / "mesh.toml").write_text('[keys]\ndir = "keys"\n')
    done = mesh(project, "hub", "--endpoint", "tcp://0.0.0.0:7999")
    assert done.returncode == exits.FAILED
    assert "'hub'" in done.stderr or "mesh keys make" in done.stderr
