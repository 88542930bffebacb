"""A host that systemd has started: supervisord is a unit there, and all that it starts belongs to that unit.

The tests are one story, in the order of the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.deploy.deploy_project import NOT_AT_THE_TRY

from .deploy_fleet import PORT, PREFIX, Fleet
from .host_systemd import SystemdHost

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]


#: What a busy machine may need for what takes a second on an idle one.
PATIENCE_S = 30.0
#: Of a request that waits for something: within the gateway's own limit for what it still has when it stops.
SLOW_S = 2

SLOW = f"""\

    @http.get("/slow")
    @rpc
    async def slow(self) -> str:
        import asyncio
        from pathlib import Path

        Path("{PREFIX}/data/asked").touch()
        await asyncio.sleep({SLOW_S})
        return "slept"
"""


@pytest.fixture(scope="module")
def host(under_systemd: Fleet) -> SystemdHost:
    host = under_systemd.hosts[0]
    assert isinstance(host, SystemdHost)
    return host


def eventually(true: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.2)


def says(fleet: Fleet, word: str) -> bool:
    try:
        return bool(fleet.get(fleet.hosts[0], "/hello/ujun") == f"{word}, ujun!")
    except AssertionError:
        return False


def main_pid(host: SystemdHost) -> str:
    """supervisord's, "0" when the unit has none."""
    return host.systemctl("show", "--property", "MainPID", "--value", "mesh")


def of_the_mesh(host: SystemdHost) -> set[str]:
    """Every process of its user."""
    return set(host.run("pgrep", "-u", "mesh").stdout.split())


def assert_all_in_the_unit(host: SystemdHost) -> None:
    """No process of the mesh is outside of what systemd watches."""
    inside = host.run("cat", "/sys/fs/cgroup/system.slice/mesh.service/cgroup.procs").stdout.split()
    assert of_the_mesh(host) == set(inside)
    assert main_pid(host) in inside


def test_a_bare_host_becomes_one_with_a_unit_that_runs(under_systemd: Fleet, host: SystemdHost) -> None:
    """Which starts with the host; a second deployment changes nothing. Nor does a stop before the first one."""
    assert under_systemd.play("stop").good().count("changed") == {"a": 0}
    under_systemd.project.also(SLOW)
    done = under_systemd.play("deploy").good()
    print(f"deploy to a bare host with systemd: {done.seconds:.0f} s")
    assert host.systemctl("is-active", "mesh") == "active"
    assert host.systemctl("is-enabled", "mesh") == "enabled"
    assert says(under_systemd, "Hello")
    assert_all_in_the_unit(host)
    again = under_systemd.play("deploy").good()
    assert again.count("changed") == {"a": 0}, again.text


def test_a_supervisord_that_is_killed_comes_back(under_systemd: Fleet, host: SystemdHost) -> None:
    """By itself, and nothing that the dead one had started runs beside what the new one starts."""
    before, supervisord = of_the_mesh(host), main_pid(host)
    began = time.monotonic()
    assert host.run("kill", "-KILL", supervisord).returncode == 0
    eventually(lambda: main_pid(host) not in ("0", supervisord), "another supervisord")
    eventually(lambda: says(under_systemd, "Hello"), "an answer")
    print(f"killed supervisord, and the next answer: {time.monotonic() - began:.1f} s")
    assert not before & of_the_mesh(host)
    assert_all_in_the_unit(host)


def test_stopping_the_unit_lets_requests_end(under_systemd: Fleet, host: SystemdHost) -> None:
    """One that is under way gets its answer; then no process is left, and the unit has not failed."""
    asked = host.root / f"{PREFIX.lstrip('/')}/data/asked"
    ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=30).read().decode())"
    slow = under_systemd.network.popen(
        [sys.executable, "-c", ask, f"http://{host.address}:{PORT}/slow"], stdout=subprocess.PIPE
    )
    with slow:
        eventually(asked.exists, "a worker that has the request")
        host.run("systemctl", "stop", "mesh")
        assert slow.communicate(timeout=PATIENCE_S)[0].strip() == json.dumps("slept")
    assert of_the_mesh(host) == set()
    assert host.systemctl("is-active", "mesh") == "inactive"


def test_the_unit_starts_and_restarts(under_systemd: Fleet, host: SystemdHost) -> None:
    """All that supervisord starts is there again."""
    host.run("systemctl", "start", "mesh")
    eventually(lambda: says(under_systemd, "Hello"), "an answer")
    before = of_the_mesh(host)
    host.run("systemctl", "restart", "mesh")
    eventually(lambda: says(under_systemd, "Hello"), "an answer")
    assert not before & of_the_mesh(host)
    assert_all_in_the_unit(host)


def test_it_starts_with_the_host(under_systemd: Fleet, host: SystemdHost) -> None:
    """After a loss of power, with nobody to start it."""
    host.kill()
    began = time.monotonic()
    host.start()
    eventually(lambda: says(under_systemd, "Hello"), "an answer")
    print(f"from switching the host on to an answer: {time.monotonic() - began:.1f} s")
    assert host.systemctl("is-active", "mesh") == "active"
    assert_all_in_the_unit(host)


@pytest.mark.long
def test_a_release_goes_live_below_the_same_supervisord(under_systemd: Fleet, host: SystemdHost) -> None:
    """Every process is another one, and systemd notices nothing of it."""
    supervisord, before = main_pid(host), of_the_mesh(host)
    under_systemd.project.says("Welcome")
    under_systemd.play("deploy", mesh_settle_s=0.2).good()
    assert says(under_systemd, "Welcome")
    assert main_pid(host) == supervisord
    assert before & of_the_mesh(host) == {supervisord}
    assert_all_in_the_unit(host)


@pytest.mark.long
def test_a_bad_release_goes_back_below_the_same_supervisord(under_systemd: Fleet, host: SystemdHost) -> None:
    """By itself, as on any other host."""
    supervisord, good = main_pid(host), under_systemd.current(host)
    under_systemd.project.fails(*NOT_AT_THE_TRY, "    raise RuntimeError('it is broken')")
    done = under_systemd.play("deploy", mesh_settle_s=0.2)
    assert done.code == 2, done.text
    assert f"{good} runs on a" in done.last(), done.text
    assert says(under_systemd, "Welcome")
    assert under_systemd.current(host) == good
    assert main_pid(host) == supervisord
    assert_all_in_the_unit(host)


def test_what_operates_it_by_hand_and_from_afar_goes_by_the_unit(under_systemd: Fleet, host: SystemdHost) -> None:
    """`mesh down` is no failure that systemd mends, root's `mesh up` starts the unit, stop.yml stops it."""
    before = under_systemd.get(host, "/hello/ujun")
    under_systemd.mesh(host, "down")
    assert of_the_mesh(host) == set()
    assert host.systemctl("is-active", "mesh") == "inactive"
    under_systemd.mesh(host, "up")
    assert under_systemd.get(host, "/hello/ujun") == before
    assert_all_in_the_unit(host)
    under_systemd.play("stop").good()
    assert of_the_mesh(host) == set()
    assert host.systemctl("is-active", "mesh") == "inactive"
    status = under_systemd.play("status").good()
    assert status.count("changed") == {"a": 0}
    assert f"release: {under_systemd.current(host)}" in status.text
    assert "no answer" in status.text


@pytest.mark.long
def test_a_set_that_somebody_started_by_hand_is_left_alone(under_systemd: Fleet, host: SystemdHost) -> None:
    """By the unit, and by root's `mesh up`; when it has ended, the next deployment starts the unit."""
    assert host.run(f"{PREFIX}/bin/mesh", "up", user="mesh").returncode == 0
    before = of_the_mesh(host)
    host.run("systemctl", "start", "mesh")
    under_systemd.mesh(host, "up")
    assert host.systemctl("is-active", "mesh") == "inactive"
    assert of_the_mesh(host) == before
    assert says(under_systemd, "Welcome")
    under_systemd.mesh(host, "down")
    under_systemd.project.says("Welcome")
    under_systemd.play("deploy", mesh_settle_s=0.2).good()
    assert host.systemctl("is-active", "mesh") == "active"
    assert_all_in_the_unit(host)


@pytest.mark.long
def test_a_host_with_no_release_to_start_starts_without_it(under_systemd: Fleet, host: SystemdHost) -> None:
    """As after a first release that did not hold: nothing has failed there."""
    link = host.root / f"{PREFIX.lstrip('/')}/current"
    release = link.readlink()
    link.unlink()
    host.kill()
    host.start()
    eventually(lambda: host.systemctl("is-system-running") == "running", "a host that is up")
    assert host.systemctl("is-active", "mesh") == "inactive"
    link.symlink_to(release)
