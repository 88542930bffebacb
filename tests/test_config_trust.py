"""A mesh.toml that another user of the machine controls is not obeyed unless it is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.cli.setting import conf_file
from mesh.config import load, project_root, usable
from mesh.errors import ConfigError

ANOTHER_USER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, and the current directory below it."""
    (tmp_path / "mesh.toml").write_text('[mesh]\nname = "theirs"\n')
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


def refused(env: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(env=env)
    with pytest.raises(ConfigError):
        project_root(env)
    found = usable(env=env)
    assert not found.read
    assert found.settings.mesh.name == "mesh"
    return caught.value.message


@needs_root
@pytest.mark.parametrize("which", ["mesh.toml", "."])
def test_a_project_of_another_user_is_refused_and_named(below: Path, which: str):
    os.chown(below / which, ANOTHER_USER, ANOTHER_USER)
    message = refused({})
    assert str(below / "mesh.toml") in message
    assert str(ANOTHER_USER) in message
    assert "MESH_CONFIG" in message


@pytest.mark.parametrize("which", ["mesh.toml", "."])
def test_a_project_that_every_user_can_write_is_refused(below: Path, which: str):
    (below / which).chmod(0o777)
    assert "0777" in refused({})


@needs_root
def test_a_project_that_is_named_is_read_as_it_is(below: Path):
    os.chown(below, ANOTHER_USER, ANOTHER_USER)
    file = below / "mesh.toml"
    os.chown(file, ANOTHER_USER, ANOTHER_USER)
    assert load(env={"MESH_CONFIG": str(file)}).mesh.name == "theirs"
    assert load(file, env={}).mesh.name == "theirs"
    assert project_root({"MESH_CONFIG": str(file)}) == below


@needs_root
def test_the_user_who_called_sudo_is_trusted(below: Path):
    for path in (below, below / "mesh.toml"):
        os.chown(path, ANOTHER_USER, ANOTHER_USER)
    assert load(env={"SUDO_UID": str(ANOTHER_USER)}).mesh.name == "theirs"


@needs_root
@pytest.mark.parametrize(
    "command",
    [["run", "evil"], ["run"], ["up"], ["down"], ["ps"], ["doctor"], ["gateway"], ["store"], ["hub"], ["config"]],
    ids=" ".join,
)
def test_no_command_imports_or_starts_what_another_user_left_above(below: Path, command: list[str]):
    """The exit code is that of a wrong configuration; nothing was imported, started or made."""
    (below / "mesh.toml").write_text('[mesh]\nservices = ["evil"]\n[services.evil]\nclass = "evil:Evil"\n')
    (below / "evil.py").write_text(f"open({str(below / 'imported')!r}, 'w')\n")
    (below / "supervisord.conf").write_text("[program:evil]\ncommand=/bin/touch imported\n")
    for name in (".", "mesh.toml", "evil.py", "supervisord.conf"):
        os.chown(below / name, ANOTHER_USER, ANOTHER_USER)
    before = sorted(below.rglob("*"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "SUDO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode not in (0, 70), done.stderr
    assert str(ANOTHER_USER) in done.stderr + done.stdout
    assert sorted(below.rglob("*")) == before


@needs_root
def test_a_supervisord_conf_of_another_user_is_refused_where_there_is_no_mesh_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    conf = tmp_path / "supervisord.conf"
    conf.write_text("[program:evil]\ncommand=/bin/true\n")
    os.chown(conf, ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(ConfigError):
        conf_file(None)
    assert conf_file(str(conf)) == conf
