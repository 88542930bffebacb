"""An empty directory where a store was, or another store's files, are refused until a person accepts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_process import PATIENCE_S, Project, environment, new_task

from mesh.engines.contract import Unit
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.identity import WrongStore, note, note_of, noted


@pytest.fixture
def project() -> Iterator[Project]:
    project = Project({"log.format": '"json"'})
    try:
        yield project
    finally:
        project.end()


def opened(dir: Path, *, replace: bool = False) -> str:
    """Open and close a store; its id."""
    core = Core(dir)
    core.open(replace=replace)
    with core.turn(1.0) as turn:
        turn.apply([Unit("u", tasks=[new_task("t")])])
    id = core.id
    core.close()
    return id


def test_a_store_keeps_its_id(tmp_path: Path) -> None:
    dir = tmp_path / "data"
    id = opened(dir)
    assert len(id) == 16
    assert noted(dir) == id
    assert note_of(dir).stat().st_mode & 0o777 == 0o600
    assert opened(dir) == id
    note_of(dir).unlink()
    assert opened(dir) == id == noted(dir)


def test_the_id_is_noted_although_a_process_was_killed_while_it_noted_it(tmp_path: Path) -> None:
    """In a container each process may have the same pid."""
    dir = tmp_path / "data"
    left = dir.with_name(f".data.id.{os.getpid()}.new")
    left.write_text("half")
    assert opened(dir) == noted(dir)
    assert not left.exists()


@pytest.mark.parametrize("gone", ["directory", "file", "contents"])
def test_an_empty_directory_where_a_store_was_is_refused(tmp_path: Path, gone: str) -> None:
    dir = tmp_path / "data"
    id = opened(dir)
    if gone == "directory":
        shutil.rmtree(dir)
    elif gone == "file":
        (dir / "mesh.db").unlink()
    else:
        os.truncate(dir / "mesh.db", 0)
    with pytest.raises(WrongStore) as caught:
        opened(dir)
    assert id in caught.value.message
    assert noted(dir) == id
    new = opened(dir, replace=True)
    assert new != id
    assert opened(dir) == new == noted(dir)


def test_another_stores_files_are_refused(tmp_path: Path) -> None:
    dir, other = tmp_path / "data", tmp_path / "other"
    id, foreign = opened(dir), opened(other)
    shutil.copy(other / "mesh.db", dir / "mesh.db")
    with pytest.raises(WrongStore):
        opened(dir)
    assert noted(dir) == id
    assert opened(dir, replace=True) == foreign == noted(dir)


def test_a_backup_is_the_same_store(tmp_path: Path) -> None:
    dir = tmp_path / "data"
    id = opened(dir)
    core = Core(dir)
    core.open()
    core.backup(tmp_path / "copy.db")
    core.close()
    shutil.rmtree(dir)
    dir.mkdir(mode=0o700)
    shutil.copy(tmp_path / "copy.db", dir / "mesh.db")
    assert opened(dir) == id


def test_a_directory_beside_which_nothing_can_be_noted_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that belongs to others; here, one in which the note is a directory."""
    dir = tmp_path / "data"
    note_of(dir).mkdir()
    assert opened(dir) == opened(dir)


def test_the_commands(project: Project) -> None:
    made = project.run("store", "init", "--json")
    assert made.returncode == 0, made.stderr
    id = json.loads(made.stdout)["id"]
    assert json.loads(project.run("store", "init", "--json").stdout)["id"] == id
    shutil.rmtree(project.data)
    for words in (["store"], ["store", "init"]):
        refused = project.run(*words)
        assert refused.returncode == 5
        assert id in refused.stderr
        assert "--replace" in refused.stderr
    assert not (project.data / "mesh.db").exists()
    again = project.run("store", "init", "--replace", "--json")
    assert again.returncode == 0, again.stderr
    new = json.loads(again.stdout)["id"]
    assert new not in ("", id)
    project.start_store()
    assert json.loads(project.run("store", "info", "--json").stdout)["id"] == new
    assert project.stop() == 0


def test_supervisor_does_not_start_it_again(project: Project) -> None:
    """Exit code 5 is meant for people: also of a store that finds at once what is wrong."""
    project.data.mkdir(mode=0o700)
    (project.data / "mesh.db").write_bytes(b"\xa5" * 8192)
    conf = project.root / "supervisord.conf"
    conf.write_text(
        f"""\
[supervisord]
nodaemon=true
logfile={project.root}/supervisord.log
pidfile={project.root}/supervisord.pid
[program:store]
command={sys.executable} -m mesh.cli.main store
directory={project.root}
autorestart=unexpected
exitcodes=5
startsecs=1
startretries=100
redirect_stderr=true
stdout_logfile={project.root}/store.log
"""
    )
    log = project.root / "supervisord.log"
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    project.started.append(supervisor)
    end = time.monotonic() + PATIENCE_S
    while not log.exists() or "exited: store (exit status 5; expected)" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    # A failed start would be tried again one second later.
    time.sleep(1.5)
    assert log.read_text().count("spawned: 'store'") == 1
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0


def test_a_short_write_leaves_no_half_of_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take a part of what is written (disk_faults.py, "write: short")."""
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, bytes(data)[:3]))
    (tmp_path / "data").mkdir()
    note(tmp_path / "data", "0123456789abcdef")
    assert noted(tmp_path / "data") == "0123456789abcdef"
