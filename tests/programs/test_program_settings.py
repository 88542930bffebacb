"""The keys of a program in mesh.toml: what is read, and that every mistake is refused at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.cli.main import run
from mesh.config import load
from mesh.errors import ConfigError


def loaded(tmp_path: Path, text: str):
    (tmp_path / "mesh.toml").write_text(f"[services.shop]\n{text}\n")
    return load(tmp_path / "mesh.toml", env={}).services["shop"]


def test_a_command_is_split_as_a_shell_does_without_a_shell(tmp_path: Path):
    """Quotes group words; nothing is expanded. An array is taken as it is."""
    assert loaded(tmp_path, "command = \"node 'my server.js' --x=$HOME\"").command == [
        "node",
        "my server.js",
        "--x=$HOME",
    ]
    assert loaded(tmp_path, 'command = ["node", "a b"]').command == ["node", "a b"]
    assert loaded(tmp_path, 'command = "x"\nroute = "/shop/"').route == ["/shop"]
    assert loaded(tmp_path, 'command = "x"\nroute = ["/a", "/b/c"]').route == ["/a", "/b/c"]


@pytest.mark.parametrize(
    "http", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "{host}:{port}", "10.1.2.3:{port}"]
)
def test_addresses_of_programs(tmp_path: Path, http: str):
    """An address of this machine, with a port of its own for every copy."""
    assert loaded(tmp_path, f'command = "x"\nhttp = "{http}"').http == http


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("command", "command = ''"),
        ("command", 'command = "node \'server"'),
        ("command", "command = []"),
        ("command", "command = [1]"),
        ("command", 'command = "x"\nclass = "a:B"'),
        ("http", 'command = "x"\nhttp = "127.0.0.1:8000"'),
        ("http", 'command = "x"\nhttp = "0.0.0.0:{port}"'),
        ("http", 'command = "x"\nhttp = "[::]:{port}"'),
        ("http", 'command = "x"\nhttp = "::1:{port}"'),
        ("http", 'command = "x"\nhttp = "example.org:{port}"'),
        ("http", 'command = "x"\nhttp = "http://127.0.0.1:{port}"'),
        ("http", 'command = "x"\nhttp = "unix:/tmp/x"'),
        ("route", 'command = "x"\nroute = "shop"'),
        ("route", 'command = "x"\nroute = "/a/../b"'),
        ("route", 'command = "x"\nroute = "/a//b"'),
        ("route", 'class = "a:B"\nroute = "/shop"'),
        ("health", 'command = "x"\nhealth = "http://x/"'),
        ("health", 'command = "x"\nhealth = "/a b"'),
        ("health", 'class = "a:B"\nhealth = "/x"'),
        ("health_failures", 'command = "x"\nhealth_failures = -1'),
        ("target_in_flight", 'command = "x"\ntarget_in_flight = 5'),
        ("target_latency", 'command = "x"\ntarget_latency = "1s"'),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, key: str, line: str):
    """The error names the key."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, line)
    assert f"services.shop.{key}" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["shop", "--check", "--", "python3", "x.py"], 0),
        (["shop", "--check", "--http", "unix:{socket}", "--", "python3", "{socket}"], 0),
        (["shop", "--check", "--", "no-such-program-anywhere"], 1),
        (["shop"], 2),
        (["shop", "--http", "127.0.0.1:80", "--", "x"], 2),
        (["shop", "--health", "x", "--", "x"], 2),
        (["shop", "--limit", "memory=1MB", "--", "x"], 2),
        (["shop", "--limit", "speed=1", "--", "x"], 2),
    ],
)
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int):
    """Mistakes are refused before anything is started."""
    monkeypatch.chdir(tmp_path)
    assert run(["program", *words]) == code
