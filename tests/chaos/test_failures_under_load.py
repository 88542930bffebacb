"""What users see when processes die or leave under load: nothing."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from .conftest import Set, seconds

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("wrk"), pytest.mark.timeout(180)]


def test_a_worker_killed_every_second_is_not_noticed(mesh_set: Set) -> None:
    """kill -9 of one of three workers each second: an idempotent route answers every request with 200."""
    rng = random.Random(1)
    duration = seconds(6, 20)
    killed = 0
    with mesh_set.load("/hello/ujun", duration) as load:
        while load.running:
            time.sleep(1.0)  # the promise is in seconds: one death in each
            victims = {name: pid for name, pid in mesh_set.pids().items() if name.startswith("greeting:")}
            # Never the last one: what nobody can answer is another promise.
            if load.running and len(victims) > 1:
                os.kill(victims[rng.choice(sorted(victims))], signal.SIGKILL)
                killed += 1
        result = load.result()
    assert killed >= duration / 2
    result.assert_spotless()
    mesh_set.wait_until(lambda: len(mesh_set.instances("greeting")) == 3)


def test_restarting_everything_one_by_one_is_not_noticed(mesh_set: Set) -> None:
    """supervisorctl restart of every worker and gateway in turn, under load."""
    before = mesh_set.pids()
    names = [name for name in before if ":" in name]
    services = {"greeting": 3, "thumbnails": 1, "textstats": 1}
    assert len(names) == sum(services.values()) + 2
    with mesh_set.load("/hello/ujun", 100) as load:
        time.sleep(0.5)  # the load is under way
        for name in names:
            mesh_set.run("supervisorctl", "restart", name)
            for service, copies in services.items():
                if name.startswith(service):
                    mesh_set.wait_until(lambda s=service, n=copies: len(mesh_set.instances(s)) == n)
        result = load.end()
    after = mesh_set.pids()
    assert all(before[name] != after[name] for name in names)
    result.assert_spotless()


def test_the_hub_may_die_and_stay_dead(mesh_set: Set) -> None:
    """kill -9 of the hub, which then stays away: everything that runs goes on, and it is found again after."""
    with mesh_set.load("/hello/ujun", seconds(5, 12)) as load:
        time.sleep(0.5)  # the load is under way
        os.kill(mesh_set.pids()["hub"], signal.SIGKILL)
        mesh_set.run("supervisorctl", "stop", "hub")
        assert "hub" not in mesh_set.pids()
        result = load.result()
    assert "hub" not in mesh_set.pids()
    result.assert_spotless()
    assert len(mesh_set.instances("greeting")) == 3
    mesh_set.run("supervisorctl", "start", "hub")
    # A worker that starts now is found through the new hub.
    mesh_set.run("supervisorctl", "restart", "greeting:greeting_0")
    pid = mesh_set.pids()["greeting:greeting_0"]
    mesh_set.wait_until(lambda: pid in [each["pid"] for each in mesh_set.instances("greeting")])


def test_a_killed_gateway_loses_only_its_open_requests(mesh_set: Set) -> None:
    """kill -9 of one gateway: the listening socket never closes, and the process is back within seconds."""
    with mesh_set.load("/hello/ujun", seconds(4, 8), connections=16) as load:
        time.sleep(1.0)  # the load is under way
        os.kill(mesh_set.pids()["gateway:gateway_0"], signal.SIGKILL)
        result = load.result()
    assert result.requests > 500, result.text
    assert not result.non_2xx, result.text
    assert "connect 0" in result.socket_errors or not result.socket_errors, result.text
    mesh_set.wait_until(lambda: "gateway:gateway_0" in mesh_set.pids())
    assert mesh_set.get("/hello/again") == "Hello, again!"
