"""From two bare hosts to a running set, by the project's own playbooks over SSH, with keys; and on from there.

The tests are one story, in the order of the file. `make chaos` tells its less eventful chapters, too.
"""

from __future__ import annotations

import os
import stat
import time

import pytest

from tests.deploy.deploy_project import NOT_AT_THE_TRY

from .deploy_fleet import PREFIX, Fleet, Played

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]


#: What a deployment without downloads may take. On two cores, which are both hosts and the control host at once.
DEPLOY_S = 120.0


def told(what: str, played: Played) -> None:
    print(f"{what}: {played.seconds:.0f} s, changed {played.count('changed')}")


def in_time(played: Played) -> None:
    """Within DEPLOY_S, unless this machine is busy with other things: then time says nothing."""
    if os.getloadavg()[0] < 2 * (os.cpu_count() or 1):
        assert played.seconds < DEPLOY_S


def assert_whole(fleet: Fleet) -> None:
    """Each process on each host is of the current release."""
    for host in fleet.hosts:
        release = f"{PREFIX}/releases/{fleet.current(host)}"
        places = host.run("bash", "-c", "for p in $(pgrep -u mesh -f bin/mesh); do readlink /proc/$p/cwd; done").stdout
        assert set(places.split()) == {release}, places


def test_a_check_run_on_bare_hosts_changes_nothing(fleet: Fleet) -> None:
    """It says what it would do, also where neither user nor directory is there to look at."""
    done = fleet.play("deploy", "--check", "--diff").good()
    assert "would be installed in /srv/mesh" in done.text
    for host in fleet.hosts:
        assert not (host.root / "srv/mesh").exists()
        assert "mesh" not in (host.root / "etc/passwd").read_text()


def test_two_bare_hosts_become_a_set_and_a_second_run_changes_nothing(fleet: Fleet) -> None:
    """User, directories, keys, release, processes; each host answers over HTTP and knows the other."""
    first = fleet.play("deploy").good()
    told("deploy to two bare hosts", first)
    assert fleet.answers() == ["Hello, ujun!", "Hello, ujun!"]
    second = fleet.play("deploy").good()
    told("deploy again", second)
    assert second.count("changed") == {"a": 0, "b": 0}, second.text
    in_time(first)
    in_time(second)
    b = fleet.hosts[1]
    shown = fleet.mesh(b, "ps")
    assert shown.count("greeting-") == 2, shown
    assert "mesh-store-" in shown, shown
    for host in fleet.hosts:
        # Code belongs to root, secrets to nobody but their user.
        release = host.root / f"srv/mesh/releases/{fleet.current(host)}"
        assert (release / "services/greeting/service.py").stat().st_uid == 0
        secret = (host.root / "srv/mesh/keys/greeting.secret").stat()
        assert stat.S_IMODE(secret.st_mode) == 0o600
        assert secret.st_uid != 0
        assert host.run("pgrep", "-u", "root", "-f", "bin/mesh").stdout == ""
    assert_whole(fleet)


@pytest.mark.long
def test_a_check_run_shows_what_would_change_and_changes_nothing(fleet: Fleet) -> None:
    """On hosts that run, down to the line of mesh.toml."""
    before = [fleet.current(host) for host in fleet.hosts]
    fleet.project.settings('[calls]\ntimeout = "7s"\n')
    done = fleet.play("deploy", "--check", "--diff").good()
    fleet.project.settings("")
    assert done.text.count('+timeout = "7s"') == 2, done.text
    assert "every process would be replaced" in done.text
    assert [fleet.current(host) for host in fleet.hosts] == before


def test_a_new_release_takes_over_under_load(fleet: Fleet) -> None:
    """On both hosts, all processes of it, and no request fails."""
    fleet.project.says("Welcome")
    with fleet.load() as seen:
        done = fleet.play("deploy").good()
        assert fleet.answers() == ["Welcome, ujun!", "Welcome, ujun!"]
    told("a new release over a running one", done)
    for load in seen:
        load.assert_spotless()
    assert_whole(fleet)
    in_time(done)


@pytest.mark.long
def test_a_release_that_does_not_become_ready_goes_back_by_itself(fleet: Fleet) -> None:
    """Where it was tried; the other host is not touched; no request fails, and the reason stands in the last lines."""
    before = [fleet.current(host) for host in fleet.hosts]
    fleet.project.fails(*NOT_AT_THE_TRY, "    import time; time.sleep(600)")
    with fleet.load() as seen:
        done = fleet.play("deploy", mesh_ready_s=4)
    told("a bad release and the way back", done)
    assert done.code == 2, done.text
    assert "greeting:greeting_1 does not become ready: it is not in the registry after 4 s" in done.last(), done.text
    assert f"{before[0]} runs on a" in done.last()
    for load in seen:
        load.assert_spotless()
    assert [fleet.current(host) for host in fleet.hosts] == before
    assert fleet.answers() == ["Welcome, ujun!", "Welcome, ujun!"]
    assert_whole(fleet)


@pytest.mark.long
def test_a_release_that_is_bad_on_the_second_host_goes_back_on_both(fleet: Fleet) -> None:
    """The first one ran it already, and takes it back; no request fails."""
    before = [fleet.current(host) for host in fleet.hosts]
    fleet.project.fails(
        "import socket, sys",
        "if socket.gethostname() == 'b' and '--check' not in sys.argv:",
        "    raise RuntimeError('not on b')",
    )
    with fleet.load() as seen:
        done = fleet.play("deploy")
    told("a release that is bad on the second host, and the way back on both", done)
    assert done.code == 2, done.text
    assert "not on b" in done.last(), done.text
    assert f"{before[1]} runs on b" in done.last()
    assert f"a: {before[0]} runs" in done.text
    for load in seen:
        load.assert_spotless()
    assert [fleet.current(host) for host in fleet.hosts] == before
    assert fleet.answers() == ["Welcome, ujun!", "Welcome, ujun!"]


@pytest.mark.long
def test_keys_are_rotated_under_load(fleet: Fleet) -> None:
    """On both hosts; no call between them fails, and afterwards the earlier keys are nobody's."""
    before = (fleet.root / "keys/greeting.public").read_text()
    with fleet.load() as seen:
        done = fleet.play("keys", mesh_rotate="greeting,hub,gateway").good()
    told("three keys rotated", done)
    for load in seen:
        load.assert_spotless()
    for host in fleet.hosts:
        there = (host.root / "srv/mesh/keys/greeting.public").read_text()
        assert there == (fleet.root / "keys/greeting.public").read_text() != before
        assert "greeting" in (host.root / "srv/mesh/keys/revoked.keys").read_text()
    assert fleet.answers() == ["Welcome, ujun!", "Welcome, ujun!"]


def test_rollback_goes_back_one_good_release_at_a_time(fleet: Fleet) -> None:
    """Under load, and no request fails; where there is none left to go back to, nothing happens."""
    with fleet.load() as seen:
        done = fleet.play("rollback").good()
        assert fleet.answers() == ["Hello, ujun!", "Hello, ujun!"]
    told("rollback", done)
    for load in seen:
        load.assert_spotless()
    assert_whole(fleet)
    again = fleet.play("rollback")
    assert again.code == 2
    assert "a has no earlier good release" in again.text
    assert fleet.answers() == ["Hello, ujun!", "Hello, ujun!"]


@pytest.mark.long
def test_hosts_are_operated_over_ssh(fleet: Fleet) -> None:
    """status, scale, restart, backup, stop."""
    fleet.play("scale", mesh_scale="greeting=3").good()
    status = fleet.play("status").good()
    assert status.text.count("greeting:greeting_2 ") == 2, status.text
    assert status.count("changed") == {"a": 0, "b": 0}
    fleet.play("scale", mesh_scale="greeting=declared").good()
    with fleet.load() as seen:
        fleet.play("restart").good()
    for load in seen:
        load.assert_spotless()
    fleet.play("restart", mesh_whole=True).good()
    assert fleet.answers() == ["Hello, ujun!", "Hello, ujun!"]
    fleet.play("backup").good()
    assert len(list((fleet.root / "backups/a").glob("*.db"))) == 1
    fleet.play("stop").good()
    for host in fleet.hosts:
        assert host.run("pgrep", "-u", "mesh").stdout == ""
    assert fleet.play("stop").good().count("changed") == {"a": 0, "b": 0}
    fleet.project.says("Onwards")
    fleet.play("deploy").good()


@pytest.mark.long
def test_two_control_machines_deploy_one_after_the_other(fleet: Fleet) -> None:
    """In another order of the hosts; neither leaves its release on half of them, and both report what happened."""
    other = fleet.elsewhere()
    fleet.project.says("Here")
    other.project.says("There")
    here, there = fleet.begin("deploy"), other.begin("deploy")
    assert (here().code, there().code) == (0, 0)
    (answer,) = set(fleet.answers())
    assert answer in ("Here, ujun!", "There, ujun!")
    assert_whole(fleet)
    fleet.play("deploy").good()


@pytest.mark.long
def test_a_host_that_vanishes_in_the_middle_ends_the_run(fleet: Fleet) -> None:
    """What runs on the others is said; nothing is taken back, and another run goes on from there."""
    fleet.project.says("Further")
    a = fleet.hosts[0]
    playing = fleet.begin("deploy")
    until = time.monotonic() + 120
    before = fleet.current(a)
    while fleet.current(a) == before and time.monotonic() < until:
        time.sleep(0.1)
    fleet.network.unplug("b")
    done = playing()
    fleet.network.plug("b")
    assert done.code == 2
    assert "b became unreachable" in done.last(), done.text
    assert f"a: {fleet.current(a)} runs" in done.text
    assert fleet.get(a, "/hello/ujun") == "Further, ujun!"
    fleet.play("deploy").good()
    assert fleet.answers() == ["Further, ujun!", "Further, ujun!"]


@pytest.mark.long
def test_a_host_that_loses_its_power_in_the_middle_is_taken_up_again(fleet: Fleet) -> None:
    """What it then has of each release is not taken for a whole one."""
    a = fleet.hosts[0]
    fleet.project.says("Powerful")
    before = fleet.current(a)
    playing = fleet.begin("deploy")
    until = time.monotonic() + 120
    while fleet.current(a) == before and time.monotonic() < until:
        time.sleep(0.05)
    a.kill()
    assert playing().code == 2
    a.start()
    done = fleet.play("deploy").good()
    assert done.count("changed")["a"] > 0, done.text
    assert fleet.answers() == ["Powerful, ujun!", "Powerful, ujun!"]
    assert_whole(fleet)


@pytest.mark.long
def test_a_revoked_key_is_replaced_by_another(fleet: Fleet) -> None:
    """It has leaked: it ends at once, and its name goes on with another."""
    fleet.play("keys", mesh_revoke="greeting").good()
    assert fleet.answers() == ["Powerful, ujun!", "Powerful, ujun!"]


def test_a_host_without_a_fitting_python_is_told_so(fleet: Fleet) -> None:
    """In words, before anything is touched."""
    done = fleet.play("deploy", account_oldest_python="3.99")
    assert done.code == 2
    assert "and mesh needs 3.99 or later" in done.last()
