"""The playbooks put releases on a host, take back a bad one by themselves, and leave nothing behind.

The tests are one story, in the order of the file.
"""

from __future__ import annotations

import os

import pytest

from .deploy_project import Deployment, recap

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(480)]

#: Each run of a playbook takes its ten seconds: at home the story is told without its less eventful chapters.
long = pytest.mark.skipif(
    os.environ.get("MESH_CHAOS") != "long" and os.environ.get("MESH_REQUIRE_HOSTS") != "1",
    reason="a long one: MESH_CHAOS=long or MESH_REQUIRE_HOSTS=1",
)


@long
def test_a_check_run_on_a_bare_host_changes_nothing(deployment: Deployment) -> None:
    """It says what it would do, also where nothing is there to look at."""
    done = deployment.play("deploy", "--check", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would be installed in" in done.stdout
    assert not deployment.prefix.exists()


def test_the_first_run_deploys_and_the_second_changes_nothing(deployment: Deployment) -> None:
    """From nothing to a set that answers over HTTP."""
    first = deployment.play("deploy")
    assert first.returncode == 0, first.stdout + first.stderr
    assert deployment.get("/hello/ujun") == "Hello, ujun!"
    second = deployment.play("deploy")
    assert recap(second)["changed"] == 0, second.stdout
    assert recap(second)["failed"] == 0


@long
def test_a_check_run_shows_what_would_change_and_changes_nothing(deployment: Deployment) -> None:
    """On a host that runs, down to the line of mesh.toml."""
    before = deployment.current
    settings = {"gateway": {"port": deployment.port}, "calls": {"timeout": "7s"}}
    done = deployment.play("deploy", "--check", "--diff", mesh_settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '+timeout = "7s"' in done.stdout
    assert "every process would be replaced" in done.stdout
    assert deployment.current == before
    assert deployment.releases == {before}


@long
def test_a_new_release_takes_over_under_load_and_can_be_rolled_back(deployment: Deployment) -> None:
    """Neither way does a request fail."""
    first = deployment.current
    deployment.change("Welcome")
    with deployment.asked() as failed:
        forth = deployment.play("deploy")
        assert forth.returncode == 0, forth.stdout + forth.stderr
        assert deployment.get("/hello/ujun") == "Welcome, ujun!"
        back = deployment.play("rollback")
        assert back.returncode == 0, back.stdout + back.stderr
    assert deployment.get("/hello/ujun") == "Hello, ujun!"
    assert deployment.current == first
    assert not failed
    deployment.change("Hello")


def test_a_bad_release_goes_back_by_itself(deployment: Deployment) -> None:
    """No request fails, the earlier release runs on, and the reason stands in the last lines."""
    good = deployment.current
    path = deployment.project / "services/greeting/__init__.py"
    working = path.read_text()
    path.write_text("raise RuntimeError('it is broken')\n")
    with deployment.asked() as failed:
        done = deployment.play("deploy")
    path.write_text(working)
    assert done.returncode != 0
    last = "\n".join(done.stdout.splitlines()[-16:])
    assert "greeting:greeting_1 does not become ready" in last, done.stdout
    assert "it is broken" in last
    assert f"{good} runs on here" in last
    assert deployment.current == good
    assert deployment.get("/hello/ujun") == "Hello, ujun!"
    assert not failed


def test_stop_leaves_nothing_running(deployment: Deployment) -> None:
    """Neither a process nor a socket."""
    done = deployment.play("stop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert deployment.processes == []
    assert not [path for path in (deployment.prefix / "run").iterdir() if path.is_socket()]
