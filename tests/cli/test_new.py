"""`mesh new`: what it makes works at once, and it touches nothing that exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_project import command, environment, free_port

import mesh
from mesh.cli import exits, report, scaffold
from mesh.cli.commands.playbooks import directory

ROOT = Path(mesh.__file__).parents[1]
FILES = [
    ".gitignore",
    "README.md",
    "inventory/local/group_vars/mesh/main.yml",
    "inventory/local/hosts.yml",
    "inventory/production/group_vars/mesh/main.yml",
    "inventory/production/hosts.yml",
    "mesh.toml",
    "my_shop/__init__.py",
    "my_shop/service.py",
    "pyproject.toml",
    "supervisord.conf",
    "tests/test_my_shop.py",
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as found:
        yield Path(found)


def run(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=90, check=False
    )


def test_a_new_project_passes_its_tests_and_runs(place: Path):
    """Made, tested, started under supervisor, asked over HTTP, stopped; nothing is left running."""
    done = run("new", "my-shop", "--json", cwd=place)
    assert done.returncode == exits.OK, done.stderr
    assert json.loads(done.stdout) == {"path": str(place / "my-shop"), "service": "my_shop", "files": FILES}
    shop = place / "my-shop"
    assert sorted(str(path.relative_to(shop)) for path in shop.rglob("*") if path.is_file()) == FILES
    assert not [path for path in FILES if re.search("@[A-Z]+@", (shop / path).read_text())]

    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=shop, env=environment(), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert (tested.returncode, tested.stdout.splitlines()[-1].split(" in ")[0]) == (0, "2 passed"), tested.stdout

    port = free_port()
    try:
        up = run("up", cwd=shop, MESH_GATEWAY_PORT=str(port))
        assert up.returncode == exits.OK, up.stderr
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/hello/you", timeout=10) as answer:
            assert json.load(answer) == "Hello, you!"
        called = run("call", "my_shop.hello", "name=ujun", cwd=shop)
        assert called.stdout == "Hello, ujun!\n"
    finally:
        down = run("down", cwd=shop)
    assert down.returncode == exits.OK, down.stderr
    assert not list(shop.glob("run/*.sock"))


def test_the_inventories_name_the_hosts_and_the_project(place: Path):
    """Ansible reads them, and the playbooks find the project from them."""
    if (inventory := shutil.which("ansible-inventory", path=str(Path(sys.executable).parent))) is None:
        pytest.skip("ansible-core is not installed: pip install --group test")
    assert run("new", "shop", cwd=place).returncode == exits.OK
    for name, host in (("local", "here"), ("production", "web-2")):
        done = subprocess.run(
            [inventory, "-i", f"shop/inventory/{name}", "--host", host, "--playbook-dir", str(directory())],
            cwd=place, env=environment({"HOME": str(place)}), capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        known = json.loads(done.stdout)
        assert known["mesh_project"] == "{{ inventory_dir | dirname | dirname }}"
        assert known["mesh_code"] == []


def test_the_current_directory_may_become_the_project(place: Path):
    (place / "shop").mkdir()
    done = run("new", ".", cwd=place / "shop")
    assert done.returncode == exits.OK
    assert (place / "shop/shop/service.py").is_file()
    assert "cd " not in done.stderr


@pytest.mark.parametrize("name", ["shop", "my-shop", "a", "shop2", "service", "x_y"])
def test_possible_names(name: str):
    found = scaffold.names(name)
    assert found.package.isidentifier()
    assert found.cls.isidentifier()
    assert all("@" not in str(path) for path, _ in scaffold.render(found))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("class", "class-service"),  # a keyword
        ("email", "email-service"),  # of the standard library
        ("click", "click-service"),  # installed
        ("mesh", "shop"),
        ("mesh-hub", "shop"),
        ("hub", "hub-service"),
        ("logs", "logs-service"),
        ("tests", "tests-service"),
        ("MyShop", "my-shop"),
        ("9lives", "lives"),
        ("shop-", "shop"),
        ("läden", "l-den"),
        ("a b", "a-b"),
        ("", "shop"),
        ("x" * 64, "x" * 40),
    ],
)
def test_impossible_names_come_with_a_possible_one(name: str, advice: str):
    """The error is one of the command line, and what it advises works."""
    with pytest.raises(scaffold.BadName) as caught:
        scaffold.names(name)
    assert exits.code_of(caught.value) == exits.USAGE
    assert report.advice_for(caught.value).endswith(f"mesh new {advice}")
    assert scaffold.names(advice)


def test_a_directory_with_contents_is_refused_and_unchanged(place: Path):
    (place / "shop").mkdir()
    (place / "shop/notes.txt").write_text("mine")
    done = run("new", "shop", "--json", cwd=place)
    assert done.returncode == exits.FAILED
    assert json.loads(done.stderr)["error"]["code"] == "occupied"
    assert [path.name for path in (place / "shop").iterdir()] == ["notes.txt"]
    assert run("new", "shop/notes.txt", "--name", "notes", cwd=place).returncode == exits.USAGE


def test_what_was_written_is_removed_after_an_error(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Also the directories above that were missing."""
    whole = dict(scaffold.render(scaffold.names("shop")))

    def broken(names: scaffold.Names) -> Iterator[tuple[Path, str]]:
        yield from list(whole.items())[:5]
        yield Path("README.md/no"), ""

    monkeypatch.setattr(scaffold, "render", broken)
    with pytest.raises(scaffold.Occupied):
        scaffold.write(place / "deep/er/shop", scaffold.names("shop"))
    assert list(place.iterdir()) == []


def test_the_directories_are_completed(place: Path):
    """As for other commands, by the shell: the command says that it is a directory."""
    done = run(cwd=place, _MESH_COMPLETE="bash_complete", COMP_WORDS="mesh new sh", COMP_CWORD="2")
    assert done.stdout.split(",")[0] == "dir"


def test_the_wheel_contains_the_templates_and_the_playbooks(place: Path):
    """`mesh new` and `mesh playbooks` work from an installed wheel."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT, check=True, capture_output=True, timeout=90,
    )  # fmt: skip
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert not [name for name in names if "__pycache__" in name]
        archive.extractall(place / "installed")
    for below in ("mesh/cli/project", "playbooks"):
        expected = {
            str(path.relative_to(ROOT))
            for path in (ROOT / below).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        prefix = "" if below.startswith("mesh") else "mesh/"
        assert {f"{prefix}{path}" for path in expected} <= names
    installed = {"PYTHONPATH": str(place / "installed")}
    shown = run("playbooks", cwd=place, **installed)
    assert shown.stdout == f"{os.path.realpath(place)}/installed/mesh/playbooks\n"
    assert run("new", "shop", cwd=place, **installed).returncode == exits.OK
    assert (place / "shop/supervisord.conf").is_file()
