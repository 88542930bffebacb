"""Backups: to one directory, by operators, over nothing; and the command that brings them elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_process import Project

import mesh
from mesh.cli.backup_file import check_target, move
from mesh.clock import ManualClock
from mesh.engines.sqlite.core import Core
from mesh.errors import BadRequest, Forbidden, SetupError
from mesh.store.backups import Backups


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    core = Core(tmp_path / "data")
    core.open()
    yield core
    core.close()


def backups(core: Core, directory: Path) -> Backups:
    return Backups(core, directory, ManualClock(), "here")


async def test_a_backup_goes_to_its_directory(core: Core, tmp_path: Path) -> None:
    """Which is made, private; its name is the caller's or the instant's."""
    directory = tmp_path / "data" / "backups"
    made = await backups(core, directory).make("monday.db")
    assert (made.path, made.host) == (str(directory / "monday.db"), "here")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "monday.db").stat().st_mode & 0o777 == 0o600
    unnamed = await backups(core, directory).make()
    assert Path(unnamed.path).parent == directory
    assert Path(unnamed.path).name.endswith("Z.db")


@pytest.mark.parametrize(
    "name",
    ["/etc/cron.d/x", "../mesh.db", "a/b.db", "..", ".hidden", "-rf", "a\nb", "a\0b", "a b", "ü.db", "x" * 201, "/"],
)
async def test_no_other_place_can_be_named(core: Core, tmp_path: Path, name: str) -> None:
    """A name is a file's name alone; nothing is made."""
    with pytest.raises(BadRequest):
        await backups(core, tmp_path / "backups").make(name)
    assert not (tmp_path / "backups").exists()


async def test_nothing_is_overwritten_and_no_link_followed(core: Core, tmp_path: Path) -> None:
    """Neither a file nor what a link names, also one that leads nowhere."""
    directory = tmp_path / "backups"
    directory.mkdir(mode=0o700)
    (directory / "old.db").write_text("old")
    (tmp_path / "victim").write_text("mine")
    (directory / "link.db").symlink_to(tmp_path / "victim")
    (directory / "dangling.db").symlink_to(tmp_path / "made-by-nobody")
    for name in ("old.db", "link.db", "dangling.db"):
        with pytest.raises(SetupError):
            await backups(core, directory).make(name)
    assert (directory / "old.db").read_text() == "old"
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["backups", "data", "data.id", "victim"]
    assert sorted(os.listdir(directory)) == ["dangling.db", "link.db", "old.db"]


async def test_a_directory_that_others_may_write_to_is_refused(core: Core, tmp_path: Path) -> None:
    """They could put a link under the next name."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(SetupError, match="chmod go-w"):
        await backups(core, directory).make("x.db")
    assert list(directory.iterdir()) == []


async def test_one_name_is_made_once_at_a_time(core: Core, tmp_path: Path) -> None:
    """Two callers at once do not write one file."""
    own = backups(core, tmp_path / "backups")
    first, second = await asyncio.gather(own.make("x.db"), own.make("x.db"), return_exceptions=True)
    assert not isinstance(first, BaseException)
    assert isinstance(second, BadRequest)
    assert Core(tmp_path / "backups").path.parent.joinpath("x.db").exists()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_device", [False, True])
def test_a_backup_is_moved_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_device: bool) -> None:
    """Within a file system and between two: whole or not at all, and replaced only when told to."""
    if other_device:
        link, replace = os.link, os.replace

        def exdev(source: object, target: object, **options: object) -> None:
            if ".partial" not in str(source):
                raise OSError(18, "Invalid cross-device link")
            (link if options else replace)(source, target, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "link", exdev)
        monkeypatch.setattr(os, "replace", exdev)
    source, target = tmp_path / "backup.db", tmp_path / "new" / "copy.db"
    source.write_bytes(b"data")
    move(source, target, size_bytes=4, overwrite=False)
    assert (target.read_bytes(), source.exists()) == (b"data", False)
    source.write_bytes(b"more")
    with pytest.raises(SetupError):
        move(source, target, size_bytes=4, overwrite=False)
    assert (target.read_bytes(), source.read_bytes()) == (b"data", b"more")
    move(source, target, size_bytes=4, overwrite=True)
    assert (target.read_bytes(), source.exists()) == (b"more", False)
    assert [path.name for path in target.parent.iterdir()] == ["copy.db"]


def test_only_what_the_store_made_is_moved(tmp_path: Path) -> None:
    """A link, or another file, stays where it is."""
    (tmp_path / "secret").write_bytes(b"1234")
    (tmp_path / "link.db").symlink_to(tmp_path / "secret")
    for source, size in ((tmp_path / "link.db", 4), (tmp_path / "secret", 5), (tmp_path / "none", 0)):
        with pytest.raises(SetupError):
            move(source, tmp_path / "copy.db", size_bytes=size, overwrite=True)
    assert (tmp_path / "secret").read_bytes() == b"1234"
    assert not (tmp_path / "copy.db").exists()


def test_the_target_is_looked_at_first(tmp_path: Path) -> None:
    """Before the store copies gigabytes for it."""
    (tmp_path / "here").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SetupError):
        check_target(tmp_path / "here", overwrite=False)
    with pytest.raises(SetupError):
        check_target(tmp_path, overwrite=True)
    check_target(tmp_path / "here", overwrite=True)


async def test_operators_command_and_nobody_elses_program(tmp_path: Path) -> None:
    """With [access], `mesh` does all that a program of the same user may not: its role is its own."""
    project = Project({"access.operators": '["operator"]'})
    try:
        project.start_store()
        for words in (
            ("store", "check"),
            ("tasks",),
            ("call", "mesh-store.namespaces"),
            ("store", "backup", "copy.db"),
        ):
            done = await asyncio.to_thread(project.run, *words)
            assert done.returncode == 0, (words, done.stderr)
        assert (project.root / "copy.db").stat().st_size > 0
        assert list((project.data / "backups").iterdir()) == []
        kept = await asyncio.to_thread(project.run, "store", "backup", "--json")
        assert Path(json.loads(kept.stdout)["path"]).parent == project.data / "backups"
        async with project.engine() as engine:
            with pytest.raises(Forbidden) as caught:
                await engine.admin.backup("mine.db")
            assert "[access] operators" in caught.value.message
        async with mesh.connect(path=project.root / "mesh.toml", wait_s=30.0) as n:
            with pytest.raises(Forbidden):
                await n.call("mesh-store.backup", str(project.root / "mesh.toml"))
        assert (project.root / "mesh.toml").read_text().startswith("[access]")
        assert len(list((project.data / "backups").iterdir())) == 1
        assert project.stop() == 0
    finally:
        project.end()
