"""Deployed to as somebody who is not root, and becomes root by sudo. Root cannot log in here at all.

The tests are one story, in the order of the file.
"""

from __future__ import annotations

import pytest

from .deploy_fleet import Fleet

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]


@pytest.mark.long
def test_root_cannot_log_in_and_what_the_user_makes_is_for_nobody_else(by_sudo: Fleet) -> None:
    """Else what follows would show nothing."""
    host, root = by_sudo.hosts[0], by_sudo.root
    words = ["ssh", "-i", f"{root}/id", "-o", f"UserKnownHostsFile={root}/known_hosts", "-o", "BatchMode=yes"]
    assert "Permission denied" in by_sudo.network.run([*words, f"root@{host.address}", "true"]).stderr
    told = by_sudo.network.run([*words, f"deployer@{host.address}", "id -un; umask; sudo sh -c 'id -un; umask'"])
    assert told.stdout.split() == ["deployer", "0077", "root", "0077"], told.stderr


@pytest.mark.long
def test_a_login_user_deploys_by_sudo(by_sudo: Fleet) -> None:
    """From bare to running, and a second run changes nothing; what runs is neither root's nor the login user's."""
    first = by_sudo.play("deploy").good()
    print(f"deploy to a bare host by sudo: {first.seconds:.0f} s")
    assert by_sudo.answers() == ["Hello, ujun!"]
    host = by_sudo.hosts[0]
    assert host.run("pgrep", "-u", "root,deployer", "-f", "bin/mesh").stdout == ""
    assert host.run("pgrep", "-u", "mesh", "-f", "bin/mesh").stdout != ""
    assert by_sudo.play("deploy").good().count("changed") == {"a": 0}


@pytest.mark.long
def test_a_login_user_scales_backs_up_and_stops_by_sudo(by_sudo: Fleet) -> None:
    """What is brought home belongs to whoever asked for it, and is nobody else's to read."""
    by_sudo.play("scale", mesh_scale="greeting=2").good()
    host = by_sudo.hosts[0]
    assert "greeting:greeting_1" in by_sudo.mesh(host, "ps")
    by_sudo.play("backup").good()
    assert len(list((by_sudo.root / "backups/a").glob("*.db"))) == 1
    by_sudo.play("stop").good()
    assert host.run("pgrep", "-u", "mesh").stdout == ""


@pytest.mark.long
def test_a_login_user_goes_back_by_sudo(by_sudo: Fleet) -> None:
    """A new release on what stands still, then the one before it."""
    by_sudo.project.says("Welcome")
    by_sudo.play("deploy").good()
    assert by_sudo.answers() == ["Welcome, ujun!"]
    by_sudo.play("rollback").good()
    assert by_sudo.answers() == ["Hello, ujun!"]
