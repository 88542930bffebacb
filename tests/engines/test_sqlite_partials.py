"""Copies that a killed process left unfinished are removed; one that is being made, and anything else, is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlite_bench import Bench

from mesh.engines.sqlite import partials

MAKER = """
import sys
from pathlib import Path
from mesh.engines.sqlite.partials import partial
with partial(Path(sys.argv[1])) as made:
    Path(f"{made}-journal").touch()
    print(made.name, flush=True)
    sys.stdin.read()
"""


def maker(path: Path) -> subprocess.Popen[str]:
    """A process that is making a copy."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("when", ["start", "next copy"])
def test_what_a_killed_process_left_is_removed(bench: Bench, tmp_path: Path, when: str) -> None:
    """At the next start of the store, wherever copies were made before, and when the next one is made there."""
    bench.core.backup(tmp_path / "first.db")
    killed, running = maker(tmp_path / "copy.db"), maker(tmp_path / "other.db")
    try:
        kill(killed)
        assert len(list(tmp_path.glob(".copy.db.*"))) == 2
        if when == "start":
            bench.core.close()
            bench.core.open()
        else:
            bench.core.backup(tmp_path / "second.db")
        assert list(tmp_path.glob(".copy.db.*")) == []
        assert len(list(tmp_path.glob(".other.db.*"))) == 2
    finally:
        kill(running)


def test_only_unfinished_copies_are_removed(tmp_path: Path) -> None:
    """No other file, no directory, no pipe, and not what a link leads to."""
    kept = tmp_path / "kept"
    kept.write_text("kept")
    (tmp_path / ".link.1.partial").symlink_to(kept)
    (tmp_path / ".directory.1.partial").mkdir()
    os.mkfifo(tmp_path / ".pipe.1.partial")
    (tmp_path / "copy.1.partial").touch()
    (tmp_path / ".copy.partial").touch()
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / ".copy.db.1.partial").touch()
    (tmp_path / ".gone.db.1.partial-journal").touch()
    assert sorted(partials.clean(tmp_path)) == [".copy.db.1.partial", ".gone.db.1.partial-journal"]
    assert {path.name for path in tmp_path.iterdir()} == before
    assert kept.read_text() == "kept"


def test_a_copy_is_not_made_through_a_link(bench: Bench, tmp_path: Path) -> None:
    """Neither into the file of another program, nor over it."""
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / f".copy.db.{os.getpid()}.partial").symlink_to(other)
    with pytest.raises(Exception, match=r"copy\.db"):
        bench.core.backup(tmp_path / "copy.db")
    assert other.read_text() == "theirs"
