"""Directories that are deleted while a set runs are made again, and a set without them can be stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import pytest
from supervision_project import Project, until

from mesh.config import usable
from mesh.doctor.doctor import examine
from mesh.doctor.finding import BAD


@pytest.fixture
def up(project: Project) -> Project:
    project.write(greetings=1)
    project.up()
    return project


def test_processes_start_and_write_their_logs_after_the_log_directory_was_deleted(up: Project):
    """One that ends comes back, and its log is there; the others write on within one tick."""
    shutil.rmtree(up.root / "logs")
    old = up.pids()["greeting:greeting_0"]
    up.kill(old)
    until(lambda: up.states()["greeting:greeting_0"] == "RUNNING" and up.pids()["greeting:greeting_0"] != old)
    assert (up.root / "logs" / "greeting_0.log").exists()
    assert (up.root / "logs").stat().st_mode & 0o777 == 0o700
    until(lambda: all((up.root / "logs" / f"{name}.log").exists() for name in ("hub", "store", "gateway_0", "watch")))
    until(lambda: (up.root / "logs" / "supervisord.log").exists())


def test_a_set_whose_run_directory_was_deleted_is_found_and_stopped(up: Project):
    """No control socket and no pid file: supervisord is found by the processes that it started."""
    supervisord = up.supervisord()
    shutil.rmtree(up.run)
    done = up.command("mesh", "--json", "down")
    assert '"processes":6' in done.stdout.replace(" ", "")
    assert up.members() == []
    assert not (up.run / "supervisord.pid").exists()
    until(lambda: up.command("mesh", "down").returncode == 0)
    up.up()
    assert up.supervisord() != supervisord


def test_supervisord_takes_orders_again_after_the_run_directory_was_deleted(up: Project):
    """Within one tick: control socket, pid file and program files are back, private as before."""
    supervisord = up.supervisord()
    shutil.rmtree(up.run)
    until(lambda: (up.run / "supervisor.sock").exists() and (up.run / "programs" / "greeting_0.conf").exists())
    assert up.run.stat().st_mode & 0o777 == 0o700
    assert (up.run / "supervisor.sock").stat().st_mode & 0o777 == 0o700
    assert up.supervisord() == supervisord
    assert up.states()["greeting:greeting_0"] == "RUNNING"
    up.command("supervisorctl", "update")
    assert up.states()["greeting:greeting_0"] == "RUNNING"


def test_the_doctor_and_ps_tell_that_the_run_directory_was_deleted(up: Project):
    """supervisord is not said to be gone; once it takes orders again, the deleted socket of the hub is named."""
    supervisord = up.supervisord()
    found = usable(up.root / "mesh.toml")

    async def look() -> dict[str, str]:
        return {
            each.about: each.told async for each in examine(up.root / "supervisord.conf", found) if each.grade == BAD
        }

    # It makes its socket again after some seconds: stopped, it cannot do so meanwhile.
    os.kill(supervisord, signal.SIGSTOP)
    try:
        shutil.rmtree(up.run)
        told = asyncio.run(look())
        ps = up.command("mesh", "ps", check=False)
    finally:
        os.kill(supervisord, signal.SIGCONT)
    assert told["supervisord"].startswith(f"pid {supervisord} runs")
    assert f"pid {supervisord}" in ps.stderr
    until(lambda: (up.run / "supervisor.sock").exists())
    told = asyncio.run(look())
    assert told["hub"].endswith(f"{up.run}/hub.sock was deleted")
