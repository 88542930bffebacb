"""What the playbooks write and decide: files of a host, what brings a release there, which one to go back to."""

from __future__ import annotations

import argparse
import configparser
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mesh.supervisord import layout as layouts

from .deploy_project import BIN, ROOT, environment


def module(path: str) -> ModuleType:
    """One of the playbooks' own Python files."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "playbooks" / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


files = module("filter_plugins/mesh_filters.py")
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
    with pytest.raises(files.AnsibleFilterError, match=r"mesh_settings: mesh\.name: None "):
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
    with pytest.raises(files.AnsibleFilterError, match=r"\[program:stoer\]; .*hub, store"):
        files.host_conf(text, "/p", ["stoer"])


GOOD = ["1.2-cccc-a1", "1.1-bbbb-a1", "1.1-bbbb-00", "1.0-aaaa-a1"]


@pytest.mark.parametrize(
    ("current", "wanted", "found"),
    [
        ("1.2-cccc-a1", "", "1.1-bbbb-a1"),
        ("1.1-bbbb-00", "", "1.0-aaaa-a1"),
        ("1.0-aaaa-a1", "", ""),
        ("1.3-dddd-a1", "", "1.2-cccc-a1"),
        ("1.0-aaaa-a1", "1.2", "1.2-cccc-a1"),
        ("1.1-bbbb-a1", "1.1-bbbb", "1.1-bbbb-00"),
        ("1.2-cccc-a1", "1.2-cccc", "1.2-cccc-a1"),
        ("1.2-cccc-a1", "0.9", ""),
    ],
)
def test_a_rollback_goes_to_what_was_good_before(current: str, wanted: str, found: str) -> None:
    """One further back each time; the newest good one, when the current one never was; or what is named."""
    assert files.earlier(GOOD, current, wanted) == found


@pytest.mark.parametrize(
    ("names", "replaced"),
    [
        (["orders"], {"all": False, "names": ["orders"]}),
        (["hub", "mesh-store", "client"], {"all": False, "names": ["hub"]}),
        (["orders@a", "gateway@b"], {"all": False, "names": ["orders"]}),
        (["everybody"], {"all": True, "names": ["everybody"]}),
        ([], {"all": False, "names": []}),
    ],
)
def test_a_new_key_replaces_those_who_bear_it(names: list[str], replaced: dict[str, Any]) -> None:
    """On host a, which runs a hub and no store; a name of nothing that is known may be anybody's."""
    assert files.bearers(names, {"services": {"orders": {}}}, ["hub"], "a") == replaced


def test_a_host_gets_the_secret_keys_of_its_own() -> None:
    paths = [f"/k/{name}.secret" for name in ("hub", "orders@a", "orders@b", "other")]
    assert files.secret_keys(paths, ["hub", "orders@a", "orders@b"], "a") == ["/k/hub.secret", "/k/orders@a.secret"]


def test_a_host_that_went_back_and_one_that_vanished_are_told_apart() -> None:
    """Others go back because of the first, and stay where they are because of the second."""
    turns: dict[str, Any] = {
        "a": {"activate_turn": {"failure": "", "now": "2 runs"}},
        "b": {"activate_turn": {"failure": "2 did not go live: …", "now": "1 runs"}},
        "c": {"activate_turn": {"unreachable": True, "msg": "Connection timed out"}},
        "d": {},
    }
    assert set(files.troubles("abcd", turns)) == {"b", "c"}
    assert files.troubles("abcd", turns, "failure") == {"b": "2 did not go live: …\n1 runs on b"}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The systemd unit as a host gets it, but for a prefix that is here."""
    jinja2 = pytest.importorskip("jinja2", reason="comes with ansible")
    text = (ROOT / "playbooks/roles/boot/templates/mesh.service.j2").read_text()
    python = tmp_path / "current/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    names = {"mesh_environment": "two", "mesh_user": "mesh", "mesh_group": "mesh", "mesh_prefix": str(tmp_path)}
    written = tmp_path / "mesh.service"
    written.write_text(jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text).render(names))
    return written


def test_the_unit_runs_supervisord_of_the_current_release(unit: Path) -> None:
    """As the mesh's user, in the foreground; it may take its time to stop, and a `mesh down` is no failure.

    What systemd would do by itself and must not: give it up, end all for one that had too much memory, try again what
    supervisord refuses. What it does is told in tests/hosts/test_deploy_systemd.py.
    """
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(unit)
    service = read["Service"]
    python = unit.parent / "current/.venv/bin/python"
    conf = unit.parent / "current/supervisord.conf"
    assert service["ExecStart"] == f"{python} -m supervisor.supervisord -n -c {conf}"
    assert (service["User"], service["Group"]) == ("mesh", "mesh")
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert int(service["TimeoutStopSec"]) >= 60
    assert service["OOMPolicy"] == "continue"
    assert service["RestartPreventExitStatus"] == "2"
    assert read["Unit"]["StartLimitIntervalSec"] == "0"
    assert read["Unit"]["ConditionPathExists"] == f"{unit.parent}/current"
    assert read["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt install systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert not [line for line in done.stderr.splitlines() if unit.name in line], done.stderr


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


def test_a_bundle_has_the_version_of_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when pyproject.toml leaves the version to the build backend."""
    wheel, pip = tmp_path / "shop-1.2.0rc1-py3-none-any.whl", tmp_path / "pip-30.0-py3-none-any.whl"
    wheel.touch()
    pip.touch()
    monkeypatch.setattr(bundle, "_wheel", lambda project, build: (wheel, False))
    monkeypatch.setattr(bundle, "_wheelhouse", lambda asked, described, own: (tmp_path, False))
    (tmp_path / "build").mkdir()
    asked = argparse.Namespace(code=[], extras="", build=tmp_path / "build")
    monkeypatch.setattr(bundle, "_tar", lambda build, kind, entries: ({}, False))
    assert bundle._build(asked, tmp_path, {"name": "shop", "dynamic": ["version"]})["version"] == "1.2.0rc1"


def test_a_misspelt_variable_is_known_by_what_it_is_near_to():
    """An inventory's own are left alone."""
    known = ["mesh_settings", "mesh_gates", "mesh_gate_tries", "mesh_host"]
    assert files.misspelt(["mesh_address", "mesh_settings", "ansible_host", "setings"], known) == []
    assert [(line.split()[0], line.split()[-1]) for line in files.misspelt(["mesh_gate", "mesh_setings"], known)] == [
        ("mesh_gate", "mesh_gates?"),
        ("mesh_setings", "mesh_settings?"),
    ]


def test_an_error_in_json_is_told_in_words():
    """And what is none, as it is."""
    assert files.told('{"error": {"code": "x", "message": "no", "details": {"tail": ["a"]}}}') == "no\n  | a"
    assert files.told("Traceback …\n") == "Traceback …"
    assert files.told('{"error": 1}') == '{"error": 1}'


def test_one_run_at_a_time_builds(tmp_path: Path):
    """Two environments that are deployed at once share a directory of wheels: the second one waits."""
    with bundle.alone(tmp_path), open(tmp_path / ".lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_another_run_may_still_bring_to_its_hosts_is_kept(tmp_path: Path):
    """Beyond the last three only what nobody has used for an hour goes."""
    now = time.time()
    for age_s in (0, 60, 120, 180, 240, 2 * bundle.IN_USE_S):
        path = tmp_path / f"code-{age_s:.0f}.tar"
        path.touch()
        os.utime(path, (now - age_s, now - age_s))
    bundle._forget_old(tmp_path, "code", tmp_path / "code-0.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"code-{age_s}.tar" for age_s in (0, 120, 180, 240, 60)]


def inventory(root: Path, **texts: str) -> Path:
    """An inventory of the hosts a and b, with these files: `group` and `host` for a, or the inventory itself."""
    (root / "group_vars/mesh").mkdir(parents=True)
    (root / "host_vars").mkdir()
    (root / "hosts.yml").write_text(texts.get("hosts", "mesh: { hosts: { a: {}, b: {} } }\n"))
    (root / "group_vars/mesh/main.yml").write_text(texts.get("group", ""))
    (root / "host_vars/a.yml").write_text(texts.get("host", ""))
    return root


GROUP = "mesh_settings:\n  mesh: { bind: 'tcp://eth0:*' }\n  gateway: { host: 0.0.0.0 }\n"


def test_settings_that_would_replace_others_are_refused(tmp_path: Path) -> None:
    """In host_vars, in the inventory itself, in another group; the host that has them in one place is left alone."""
    own = "mesh_settings: { services: { greeting: { replicas: 1 } } }\nmesh_secret: !vault |\n  $ANSIBLE_VAULT;1.1\n"
    two = inventory(tmp_path / "two", group=GROUP, host=own)
    (said,) = files.replaced([str(two)], "a", ["mesh"])
    assert "host_vars/a.yml" in said
    assert "group_vars/mesh/main.yml" in said
    assert files.replaced([str(two)], "b", ["mesh"]) == []
    inline = "mesh: { hosts: { a: { mesh_settings: { log: { level: debug } } }, b: {} } }\n"
    three = inventory(tmp_path / "three", group=GROUP, hosts=inline)
    assert len(files.replaced([str(three / "hosts.yml")], "a", ["mesh"])) == 1
    assert files.replaced([str(three)], "b", ["mesh"]) == []


def test_settings_of_hosts_and_groups_are_merged(tmp_path: Path) -> None:
    """Key by key: what the group says of other keys holds, and the host's own wins."""
    pytest.importorskip("ansible", reason="comes with zeromesh[deploy]")
    host = "mesh_host_settings: { services: { greeting: { replicas: 3 } } }\n"
    more = "mesh_settings_extra: { services: { greeting: { replicas: 2, memory: 64MB } }, mesh: { name: x } }\n"
    root = inventory(tmp_path / "inventory", group=GROUP + more, host=host)
    for name in ("group_vars", "filter_plugins", "roles"):
        (tmp_path / name).symlink_to(ROOT / "playbooks" / name)
    # Not the whole of it: the play only shows what a host would get.
    (tmp_path / "show.yml").write_text(
        "- hosts: mesh\n  gather_facts: false\n  connection: local\n  tasks:\n"
        "    - ansible.builtin.copy: { content: '{{ mesh_merged | to_json }}', dest: '"
        + str(tmp_path)
        + "/{{ inventory_hostname }}' }\n"
    )
    words = ["ansible-playbook", "-i", str(root), str(tmp_path / "show.yml"), "-e", f"mesh_project={ROOT}"]
    words += ["-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=tmp_path,
        env=environment(tmp_path / "ansible"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert (a["mesh"]["bind"], a["gateway"]["host"], a["mesh"]["name"]) == ("tcp://eth0:*", "0.0.0.0", "x")
    assert (a["services"]["greeting"]["replicas"], b["services"]["greeting"]["replicas"]) == (3, 2)
    assert a["services"]["greeting"]["class"] == b["services"]["greeting"]["class"]


def test_services_have_the_secrets_of_their_release() -> None:
    """What stands for the file of the host means that of the release, so that each release has its own."""
    merged = {"services": {"a": {"env_file": "/srv/mesh/secrets.env"}, "b": {"env_file": "/etc/b.env"}, "c": {}}}
    own = files.own_secrets(merged, "/srv/mesh")["services"]
    assert (own["a"], own["b"], own["c"]) == ({"env_file": "secrets.env"}, {"env_file": "/etc/b.env"}, {})


def test_the_reason_of_pip_comes_first() -> None:
    """Not after a screen of what led to it."""
    said = "\n".join(
        [
            "  error: subprocess-exited-with-error",
            *(f"  line {number}" for number in range(30)),
            "ERROR: Could not find a version that satisfies the requirement nosuch>=1 (from versions: none)",
            "ERROR: No matching distribution found for nosuch>=1",
        ]
    )
    assert bundle.reason(said).splitlines()[0].startswith("ERROR: Could not find a version")
    assert bundle.reason("just this\n") == "just this"


def test_keys_can_be_made_where_only_ansible_is_installed(tmp_path: Path) -> None:
    """A `mesh` of the project's own environment serves; of another program of that name nothing is believed."""
    tool = module("roles/keys/files/tool.py")
    other = tmp_path / "mesh"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    assert not tool._works(str(other))
    project = tmp_path / "project"
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/mesh").symlink_to(BIN / "mesh")
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    done = subprocess.run(
        [sys.executable, ROOT / "playbooks/roles/keys/files/tool.py", "--project", project, "--build", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tool._works(done.stdout)
