"""Commands that are needed most when mesh.toml is wrong."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli import exits
from mesh.cli.commands import ps
from mesh.cli.main import run
from mesh.supervisord.control import Process
from mesh.supervisord.layout import write_default

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose mesh.toml has a wrong key, and whose run directory has a socket that a dead process left."""
    # Not pytest's: a unix socket's path has room for 107 characters.
    root = Path(tempfile.mkdtemp(prefix="mesh-cli-")).resolve()
    monkeypatch.chdir(root)
    (root / "mesh.toml").write_text("[gateway]\nprot = 80\n")
    write_default(root / "supervisord.conf")
    (root / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("run/hub.sock")
    yield root
    os.chdir("/")
    shutil.rmtree(root)


COMPLAINT = "mesh.toml:2: gateway.prot: "


def test_down_goes_by_supervisord_conf(broken: Path, capsys: Capture):
    """What is wrong is told, and all the rest is done."""
    assert run(["down"]) == exits.OK
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(COMPLAINT)
    assert f"{broken}/run/hub.sock" in lines[-1]
    assert not (broken / "run/hub.sock").exists()


def test_down_finds_the_run_directory_when_mesh_toml_cannot_be_read_at_all(broken: Path, capsys: Capture):
    """Where supervisord's own socket is."""
    (broken / "mesh.toml").write_text("[gateway")
    conf = broken / "supervisord.conf"
    conf.write_text(conf.read_text().replace("/run/", "/sockets/"))
    (broken / "run").rename(broken / "sockets")
    assert run(["down"]) == exits.OK
    assert f"{broken}/sockets/hub.sock" in capsys.readouterr().err
    assert not (broken / "sockets/hub.sock").exists()


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("[gateway]\nprot = 80\n", exits.USAGE, f"mesh: {COMPLAINT}"),
        ('[keys]\ndir = "keys"\n', exits.FAILED, "/keys: "),
    ],
)
def test_ps_shows_what_supervisor_knows_and_then_what_is_wrong(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, text: str, code: int, says: str
):
    """No hub can be asked; the processes are there all the same."""
    (broken / "mesh.toml").write_text(text)
    known = [Process("hub", "hub", "RUNNING", 1234, 65.0, "", "")]
    monkeypatch.setattr(ps, "_processes", lambda conf: (known, ""))
    assert run(["ps"]) == code
    shown = capsys.readouterr()
    assert shown.out.splitlines()[2].split()[2:3] == ["hub"]
    assert says in shown.err
    # Without any, there is nothing but the complaint.
    monkeypatch.setattr(ps, "_processes", lambda conf: ([], ""))
    assert run(["ps"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err


def test_logs_are_shown(broken: Path, capsys: Capture):
    """They may say why."""
    (broken / "logs").mkdir()
    (broken / "logs/hub.log").write_text("mesh: no\n")
    assert run(["logs", "--level", "error"]) == exits.OK
    shown = capsys.readouterr()
    assert shown.out.strip() == "hub  mesh: no"
    assert shown.err.splitlines()[0].startswith(COMPLAINT)
