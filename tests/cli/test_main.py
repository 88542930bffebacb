"""The command line as a whole: help, exit codes, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mesh
from mesh import errors
from mesh.cli import exits, report
from mesh.cli.main import COMMANDS, run

HEAVY = {"zmq", "aiohttp", "rich", "supervisor", "structlog", "IPython", "watchfiles"}


def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]):
    """`mesh --help` is the map of the tool."""
    assert run(["--help"]) == exits.OK
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "3 no answer in time" in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    """`mesh/__init__.py` is the one place of it; what is installed was built from there."""
    assert run(["--version"]) == exits.OK
    assert capsys.readouterr().out == f"mesh {mesh.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    """Each module loads, has a command of that name, and a short help that agrees with the list."""
    if name == "bench":
        return  # it passes --help on to the benchmarks
    assert run([name, "--help"]) == exits.OK
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: mesh {name} ")
    assert "--json" in shown


def test_help_loads_nothing_heavy():
    """ZeroMQ, aiohttp and rich are for commands that use them; help is there at once."""
    program = f"import sys; from mesh.cli.main import run; run(['--help']); print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistyped_command_or_option_is_usage(capsys: pytest.CaptureFixture[str]):
    """Exit code 2, and the nearest right word."""
    assert run(["cal", "x"]) == exits.USAGE
    assert '"call"?' in capsys.readouterr().err
    assert run(["call", "--no-such"]) == exits.USAGE
    assert run(["call", "greeting"]) == exits.USAGE
    assert "SERVICE.METHOD" in capsys.readouterr().err


def test_a_wrong_file_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """The line of the file, advice, no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.toml").write_text('[gateway]\nport = "80a"\n')
    assert run(["ps"]) == exits.USAGE
    told = capsys.readouterr().err.splitlines()
    assert told[0] == 'mesh: mesh.toml:2: gateway.port: "80a" is not a port (1–65535)'
    assert "mesh config" in told[1]
    assert run(["ps", "--json"]) == exits.USAGE
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "config_error"


def test_config_option_reaches_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """`mesh --config other.toml …` reads that file, and so do processes started from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESH_CONFIG", "")
    (tmp_path / "other.toml").write_text("[gateway]\nport = 7777\n")
    assert run(["--config", "other.toml", "config", "gateway.port", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out) == [
        {
            "key": "gateway.port",
            "value": 7777,
            "origin": "other.toml:2",
            "about": "the port that the gateway listens on",
        }
    ]


def test_config_shows_values_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """One line per key, greppable, not folded when piped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESH_CALLS_TIMEOUT", "3s")
    assert run(["config", "calls"]) == exits.OK
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("calls.timeout ")).split() == [
        "calls.timeout",
        "3s",
        "MESH_CALLS_TIMEOUT",
    ]
    assert run(["config", "cals"]) == exits.USAGE


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MESH_DEBUG=1 lets errors through as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESH_DEBUG", "1")
    (tmp_path / "mesh.toml").write_text("nonsense\n")
    with pytest.raises(errors.ConfigError):
        run(["config"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), exits.USAGE),
        (errors.AddressInUse("x"), exits.FAILED),
        (errors.Unavailable("x"), exits.UNAVAILABLE),
        (errors.DeadlineExceeded("x"), exits.UNAVAILABLE),
        (errors.UnknownMethod("x"), exits.REFUSED),
        (errors.RemoteError("x"), exits.FAILED),
    ],
)
def test_each_branch_of_the_tree_has_its_exit_code(error: errors.MeshError, code: int):
    """A script can tell "wrong" from "later"."""
    assert exits.code_of(error) == code


def test_a_reported_error_has_message_log_and_advice(capsys: pytest.CaptureFixture[str]):
    """Not a terminal, so no colours; the tail of a log is set apart."""
    report.tell(errors.Unavailable("no hub answers", details={"log": "hub.log", "tail": ["a", "b"]}), False)
    assert capsys.readouterr().err.splitlines() == [
        "mesh: no hub answers",
        "the end of hub.log:",
        "  | a",
        "  | b",
        "      `mesh ps` shows what runs; `mesh up` starts everything",
    ]
