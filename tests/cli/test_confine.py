"""Environment files and limits: what supervisor cannot give a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.config.env_file import read_env_file
from mesh.errors import ConfigError

SHOW = """
import json, os, resource, sys
import click
from mesh.cli.confine import confine_options

@click.command()
@confine_options
def show():
    limits = [resource.getrlimit(each) for each in (resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)]
    print(json.dumps([os.environ.get("COLOUR"), *(soft for soft, _ in limits), os.nice(0)]))

show(sys.argv[1:])
"""


def shown(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_a_file_of_every_form(tmp_path: Path):
    """Comments, quotes, export, spaces, = in a value: as shells and systemd read such files."""
    path = tmp_path / "x.env"
    path.write_text(
        "# a comment\n\n"
        "PLAIN=value\n"
        "  export SPACED =  a b  # not this\n"
        "URL=postgres://u:p@h/db?x=1#part\n"
        'QUOTED="with # and \'" # a comment\n'
        "SINGLE='$HOME \"stays\"'\n"
        "EMPTY=\n"
        "NOTHING=''\n"
    )
    assert read_env_file(path) == {
        "PLAIN": "value",
        "SPACED": "a b",
        "URL": "postgres://u:p@h/db?x=1#part",
        "QUOTED": "with # and '",
        "SINGLE": '$HOME "stays"',
        "EMPTY": "",
        "NOTHING": "",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A=1\nsecret value\n", r"x\.env:2: "),
        ('A="half\n', r"x\.env:1: "),
        ('A="x" y\n', r"x\.env:1: "),
        ("1A=2\n", r"x\.env:1: "),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, text: str, says: str):
    """It may hold a password."""
    (tmp_path / "x.env").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_env_file(tmp_path / "x.env")
    assert "secret" not in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    """With the operating system's words."""
    with pytest.raises(ConfigError, match=r"none\.env: "):
        read_env_file(tmp_path / "none.env")


def test_both_have_taken_effect_when_the_command_begins(tmp_path: Path):
    """The variable, the memory, the files and the niceness."""
    (tmp_path / "x.env").write_text("COLOUR=red\n")
    done = shown(
        *("--env-file", str(tmp_path / "x.env")),
        *("--limit", "memory=900000000", "--limit", "files=333", "--limit", "nice=3"),
    )
    assert json.loads(done.stdout) == ["red", 900_000_000, 333, 3], done.stderr


@pytest.mark.parametrize("limit", ["memory", "memory=much", "disk=3", "=3"])
def test_a_limit_that_is_none_is_refused(limit: str):
    """With those that there are."""
    done = shown("--limit", limit)
    assert done.returncode == 2
    assert repr(limit) in done.stderr
    assert all(f"{name}=N" in done.stderr for name in ("memory", "memory_soft", "files", "nice"))
