"""Writes of other programs to a file between two points in time, with inotify and without."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.engines.sqlite import log_watch
from mesh.engines.sqlite.log_watch import LogWatch


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 5000)
    # In the past: the resolution of the file system's clock is not what is tested.
    os.utime(path, (1_000_000, 1_000_000))
    return path


@pytest.fixture(params=["inotify", "modification time"])
def watch(request: pytest.FixtureRequest, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogWatch]:
    if request.param != "inotify":
        monkeypatch.setattr(log_watch, "_notifications", lambda fd: -1)
    fd = os.open(log, os.O_RDONLY)
    made = LogWatch(fd)
    yield made
    made.close()
    made.close()
    os.close(fd)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"y")


def truncate(path: Path) -> None:
    os.truncate(path, 4999)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("act", [overwrite, truncate, append])
def test_a_write_is_noticed_and_stays_noticed(watch: LogWatch, log: Path, act: Callable[[Path], object]) -> None:
    """Asked again, the answer is the same."""
    assert not watch.changed()
    act(log)
    assert watch.changed()
    assert watch.changed()


def test_what_was_settled_is_the_stores_own(watch: LogWatch, log: Path) -> None:
    """Its length is known; reading is no change."""
    with log.open("ab") as file:
        for _ in range(1000):
            file.write(b"z" * 10)
            file.flush()
    assert watch.settle() == watch.size == watch.length() == 15000
    assert not watch.changed()
    log.read_bytes()
    assert not watch.changed()


def test_the_open_file_is_watched_and_not_its_name(watch: LogWatch, log: Path) -> None:
    """Another file under the same name is none of its business: the guard looks at names."""
    log.rename(log.with_name("elsewhere"))
    log.write_bytes(b"new")
    assert not watch.changed()
    overwrite(log.with_name("elsewhere"))
    assert watch.changed()
