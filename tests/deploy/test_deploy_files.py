"""What the playbooks write: mesh.toml and supervisord.conf of a host, and the file that brings a release there."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mesh.supervision import layout as layouts

from .deploy_project import ROOT


def module(path: str) -> ModuleType:
    """One of the playbooks' own Python files."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "playbooks" / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


files = module("filter_plugins/mesh_files.py")
bundle = module("roles/bundle/files/bundle.py")

TREES: list[dict[str, Any]] = [
    {},
    {
        "gateway": {"port": 8080, "host": "127.0.0.1"},
        "mesh": {"hubs": ["tcp://10.0.0.1:7000"], "name": 'a "b" \\ ü\n\x7f'},
    },
    {"services": {"mail": {"config": {"password": {"secret": "env:X"}, "ratio": 0.5, "on": True}, "environment": {}}}},
    {"access": {"allow": [{"caller": ["a", "b"], "service": "c"}, {"caller": "d", "service": "e"}]}},
    {"services": {"a b.c": {"config": {"limits": [{"n": 1, "deep": {"x": [1, 2]}}, {}]}}}},
]


@pytest.mark.parametrize("tree", TREES)
def test_what_is_written_as_toml_reads_the_same(tree: dict[str, Any]) -> None:
    """Also quotes, control characters, empty tables, names that need quotes, and tables in arrays."""
    assert tomllib.loads(files.to_toml(tree)) == tree


def test_the_projects_own_settings_survive() -> None:
    """mesh.toml goes through a dictionary to a host."""
    text = (ROOT / "mesh.toml").read_text()
    assert tomllib.loads(files.to_toml(files.from_toml(text))) == tomllib.loads(text)


def test_a_value_that_toml_cannot_hold_is_named() -> None:
    with pytest.raises(files.AnsibleFilterError, match=r"mesh_settings: mesh\.name: None cannot stand"):
        files.to_toml({"mesh": {"name": None}})


def test_a_hosts_supervisord_conf_keeps_its_files_outside_of_the_release(tmp_path: Path) -> None:
    """As mesh reads it: every path is below the prefix, and only the chosen programs are there."""
    text = files.host_conf((ROOT / "supervisord.conf").read_text(), "/srv/mesh", ["hub"])
    (tmp_path / "supervisord.conf").write_text(text)
    layout = layouts.read(tmp_path / "supervisord.conf")
    assert layout.socket == Path("/srv/mesh/run/supervisor.sock")
    assert layout.pidfile == Path("/srv/mesh/run/supervisord.pid")
    assert layout.directory == Path("/srv/mesh/run/programs")
    assert [program.name for program in layout.programs] == ["watch", "hub"]
    assert layout.plugged


def test_a_program_that_is_commented_out_can_be_chosen() -> None:
    """And one that is not there is named."""
    text = "[program:hub]\ncommand=mesh hub\n\n; [program:store]\n; command=mesh store\n; priority=15\n"
    assert "\n[program:store]\ncommand=mesh store\npriority=15\n" in files.host_conf(text, "/p", ["hub", "store"])
    assert files.fixed_programs(files.host_conf(text, "/p", ["hub"])) == ["hub"]
    with pytest.raises(files.AnsibleFilterError, match=r"no \[program:stoer\]; it has hub, store"):
        files.host_conf(text, "/p", ["stoer"])


def test_a_bundle_depends_on_its_contents_alone(tmp_path: Path) -> None:
    """Neither on times nor on the order; so the same sources are the same release."""
    for name in ("b.py", "a.py"):
        (tmp_path / name).write_text(name)
    entries = [(name, tmp_path / name) for name in ("b.py", "a.py")]
    bundle._write(tmp_path / "1.tar", entries)
    digest = bundle._digest_of(entries)
    (tmp_path / "a.py").touch()
    bundle._write(tmp_path / "2.tar", entries[::-1])
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert bundle._digest_of(entries[::-1]) == digest
    (tmp_path / "a.py").write_text("other")
    assert bundle._digest_of(entries) != digest
