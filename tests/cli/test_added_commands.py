"""A package outside of mesh adds a command by an entry point; no file of mesh knows of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli import exits

CODE = '''
import click

@click.command("greet")
@click.argument("name")
def command(name: str) -> None:
    """Greet somebody."""
    click.echo(f"hello, {name}")

@click.command("ps")
def other() -> None:
    """Not the ps of mesh."""
    click.echo("not mesh")

number = 7
'''

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `mesh` beside a package that adds these commands."""
    (tmp_path / "greetings.py").write_text(CODE)
    info = tmp_path / "mesh_greetings-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mesh-greetings\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[mesh.commands]\ngreet = greetings:command\nps = greetings:other\nbroken = no_such_module:x\n"
        "number = greetings:number\n"
    )

    def mesh(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "mesh.cli.main", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return mesh


def test_the_command_runs_and_is_listed_with_its_package(run: Run):
    done = run("greet", "ujun")
    assert (done.returncode, done.stdout) == (exits.OK, "hello, ujun\n")
    assert "Greet somebody." in run("greet", "--help").stdout
    shown = run("--help").stdout
    line = next(line for line in shown.splitlines() if line.strip().startswith("greet "))
    assert "mesh-greetings 1.2" in line


def test_a_mistyped_one_is_suggested(run: Run):
    done = run("gret")
    assert done.returncode == exits.USAGE
    assert '"greet"' in done.stderr


def test_it_does_not_replace_a_command_of_mesh(run: Run):
    assert "not mesh" not in run("ps", "--help").stdout
    assert sum(line.strip().startswith("ps ") for line in run("--help").stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["broken", "number"])
def test_one_that_cannot_be_loaded_names_its_package_and_leaves_the_others(run: Run, name: str):
    done = run(name)
    assert done.returncode != exits.OK
    assert "mesh-greetings 1.2" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("greet", "x").returncode == exits.OK
