"""Processes that answer no calls publish their metrics as files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mesh.telemetry import published
from mesh.telemetry.identity import release_of, supervised_name
from mesh.telemetry.metrics import Recorder


def test_what_was_published_is_read_until_it_is_withdrawn(tmp_path: Path):
    snapshot = Recorder().snapshot()
    published.publish(tmp_path, "hub", "hub-1", snapshot)
    (found,) = published.published(tmp_path)
    assert (found.role, found.identity) == ("hub", "hub-1")
    assert found.snapshot == snapshot
    file = next((tmp_path / published.DIRECTORY).iterdir())
    assert file.stat().st_mode & 0o777 == 0o600
    published.withdraw(tmp_path, "hub-1")
    assert published.published(tmp_path) == []
    published.withdraw(tmp_path, "hub-1")


def test_what_is_old_counts_as_a_process_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For some minutes, so that an alert fires; then it is no more shown."""
    published.publish(tmp_path, "watch", "watch", Recorder().snapshot())
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + published.FRESH_S + 1)
    assert [(each.identity, each.snapshot) for each in published.published(tmp_path)] == [("watch", None)]
    monkeypatch.setattr(time, "time", lambda: real + published.FORGOTTEN_S + 1)
    assert published.published(tmp_path) == []


def test_a_damaged_file_hides_no_other(tmp_path: Path):
    published.publish(tmp_path, "hub", "hub-1", Recorder().snapshot())
    (tmp_path / published.DIRECTORY / "broken.json").write_text('{"written_at": 1')
    (tmp_path / published.DIRECTORY / "wrong.json").write_text("[]")
    assert [each.identity for each in published.published(tmp_path)] == ["hub-1"]


def test_a_restarted_process_writes_over_what_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Under supervisor the file has the name of the process, not the id of one life of it."""
    monkeypatch.setattr(published, "this_process", lambda: type("P", (), {"name": "hub"})())
    published.publish(tmp_path, "hub", "hub-1", Recorder().snapshot())
    published.publish(tmp_path, "hub", "hub-2", Recorder().snapshot())
    assert [each.identity for each in published.published(tmp_path)] == ["hub-2"]
    assert os.listdir(tmp_path / published.DIRECTORY) == ["hub.json"]


@pytest.mark.parametrize(
    ("group", "process", "name"),
    [("greeting", "greeting_0", "greeting:greeting_0"), ("hub", "hub", "hub"), ("", "hub", "hub"), ("", "", "")],
)
def test_a_process_is_named_as_supervisorctl_names_it(group: str, process: str, name: str):
    assert supervised_name(group, process) == name


def test_the_release_is_the_directory_that_the_environment_is_in(tmp_path: Path):
    assert release_of(Path("/srv/mesh/releases/0.1.0-35665e3a/.venv")) == "0.1.0-35665e3a"
    assert release_of(tmp_path / ".venv") == ""
