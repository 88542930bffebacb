"""Deployments that meet each other or a command, and one that is cut off; `deploy_races` repeats that by command."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.deploy import deployment_lock
from mesh.errors import LockTaken
from mesh.supervisord import layout as layouts

from .deploy_project import ROOT, Deployment, Project
from .deploy_races import agreed, meet, power


@pytest.fixture(scope="module")
def live(deployment: Deployment) -> Deployment:
    """It was deployed to already."""
    done = deployment.play("deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    return deployment


@pytest.mark.long
@pytest.mark.hosts
@pytest.mark.timeout(480)
def test_two_deployments_at_once_go_live_one_after_the_other(live: Deployment) -> None:
    """What is current, what runs, and what both report agree."""
    other = Project(live.prefix.parent / "other")
    meet(live, other, 0, 0.5)


@pytest.mark.hosts
@pytest.mark.timeout(480)
def test_a_host_that_loses_its_power_in_the_middle_is_deployed_to_again(live: Deployment) -> None:
    """It starts as one release, whichever that is, and the next deployment makes it the new one."""
    power(live, 0, 5.0)


@pytest.mark.hosts
@pytest.mark.timeout(480)
def test_a_deployment_that_another_keeps_waiting_too_long_touches_nothing(live: Deployment) -> None:
    """It is refused, and says which one that is; commands by hand are refused likewise."""
    before = live.current
    with held(live.prefix, what="deploy.yml", who="ujun@elsewhere (pid 7)"):
        live.project.says("Refused")
        done = live.play("deploy", mesh_wait_s=0)
        assert done.returncode == 2
        assert "deploy.yml of ujun@elsewhere (pid 7)" in done.stdout
        by_hand = subprocess.run(
            [live.prefix / "bin/mesh", "up", "--timeout", "0.5", "--json"], capture_output=True, text=True, timeout=60
        )
        assert by_hand.returncode != 0
        assert json.loads(by_hand.stderr)["error"]["code"] == LockTaken.code
    assert live.current == before
    agreed(live)


class held:
    """The lock of a host, as its keeper has it."""

    def __init__(self, prefix: Path, **about: str) -> None:
        self._path = prefix / ".deployment"
        (prefix / ".deployment.work").touch()
        self._about = about

    def __enter__(self) -> None:
        self._file = self._path.open("a+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(0)
        self._file.write(json.dumps(self._about))
        self._file.flush()

    def __exit__(self, *exc: object) -> None:
        self._file.close()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not pytest's: a unix socket's path has room for 107 characters."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        yield Path(directory).resolve()


@pytest.fixture
def project(tmp_path: Path) -> layouts.Layout:
    """A release of a deployed mesh, which runs nothing."""
    release = tmp_path / "releases/1.0"
    release.mkdir(parents=True)
    (release / "supervisord.conf").write_text((ROOT / "supervisord.conf").read_text())
    (tmp_path / ".deployment").touch()
    (tmp_path / ".deployment.work").touch()
    (tmp_path / "current").symlink_to("releases/1.0")
    return layouts.read(tmp_path / "current/supervisord.conf")


def test_a_command_by_hand_keeps_out_of_a_deployment(
    project: layouts.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the deployment itself has called does not; and where none is under way nothing is refused."""
    with deployment_lock.enter(project):
        pass
    with held(tmp_path, token="mine", what="deploy.yml", who="ujun@elsewhere"):
        with pytest.raises(LockTaken) as caught:
            deployment_lock.enter(project)
        assert caught.value.details == {"what": "deploy.yml", "who": "ujun@elsewhere"}
        monkeypatch.setenv(deployment_lock.VARIABLE, "mine")
        with deployment_lock.enter(project):
            pass


def alone(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Something done with module_utils/mesh_alone.py, in a process of its own: its keepers are forked from that."""
    pytest.importorskip("ansible", reason="comes with zeromesh[deploy]")
    script = f"""
import sys, os, importlib.util, types
sys.path.insert(0, {str(ROOT / "playbooks")!r})
import ansible.module_utils as utils
utils.__path__.append({str(ROOT / "playbooks/module_utils")!r})
from ansible.module_utils import mesh_alone
mesh_alone.LEASE_S = float(os.environ.get("LEASE_S", "60"))
alone = mesh_alone.Alone({str(tmp_path)!r})
print({" ".join(words)})
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)


def test_a_deployment_waits_for_a_command_and_a_second_deployment_for_the_first(
    project: layouts.Layout, tmp_path: Path
) -> None:
    """Until the command is done, and the first one has let go; nothing of either is left over."""
    take = 'repr(alone.take("{}", {{"what": "deploy.yml", "who": "{}"}}))'
    with deployment_lock.enter(project):
        assert "changing" in alone(tmp_path, take.format("1", "ujun")).stdout
    assert alone(tmp_path, take.format("1", "ujun")).stdout.strip() == "''"
    assert "deploy.yml of ujun" in alone(tmp_path, take.format("2", "gela")).stdout
    alone(tmp_path, 'alone.leave("2")')
    assert "ujun" in alone(tmp_path, take.format("2", "gela")).stdout
    alone(tmp_path, 'alone.leave("1")')
    free(tmp_path)


def test_the_lock_of_a_control_machine_that_is_gone_ends_by_itself(
    project: layouts.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not while something that it began still works here."""
    monkeypatch.setenv("LEASE_S", "0.5")
    monkeypatch.setenv(deployment_lock.VARIABLE, "1")
    with deployment_lock.enter(project):
        alone(tmp_path, 'alone.take("1", {})')
        threading.Event().wait(1.5)
        assert alone(tmp_path, "alone.holder()").stdout.strip() != "{}"
    free(tmp_path)


def free(prefix: Path) -> None:
    """Wait until no keeper has the lock: flock gives it to the one that waits."""
    with (prefix / ".deployment").open("rb") as file:
        waiting = threading.Thread(target=fcntl.flock, args=(file, fcntl.LOCK_EX), daemon=True)
        waiting.start()
        waiting.join(10)
        assert not waiting.is_alive()
