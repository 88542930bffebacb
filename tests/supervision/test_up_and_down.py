"""A real supervisord is brought up, broken, and taken down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supervision_project import until

from mesh.config import load
from mesh.deploy import down as going_down
from mesh.deploy.down import take_down
from mesh.deploy.up import StartFailed
from mesh.errors import AddressInUse, ConfigError, SetupError, Unavailable
from mesh.supervisord import layout
from mesh.supervisord.control import RUNNING, Control
from mesh.supervisord.roster import Roster
from mesh.telemetry import heartbeats


def test_up_starts_all_and_down_leaves_nothing(project):
    """After up everything is known to the gateways; after down no process, socket or pid file is left."""
    up = project.up()
    assert not up.already
    assert [process.name for process in up.processes] == [
        "watch",
        "hub",
        "store",
        "greeting:greeting_0",
        "greeting:greeting_1",
        "gateway:gateway_0",
    ]
    assert all(process.state == RUNNING for process in up.processes)
    assert {process.pid for process in up.processes if process.program not in ("hub", "watch")} <= up.instances.keys()

    again = project.up()
    assert again.already
    assert [each.pid for each in again.processes] == [each.pid for each in up.processes]

    down = take_down(project.layout, project.run)
    assert down.processes == 7
    assert project.members() == []
    assert not any(path.is_socket() or path.suffix == ".pid" for path in project.run.iterdir())

    assert take_down(project.layout, project.run).processes == 0


def test_up_starts_again_what_was_stopped(project):
    """`mesh up` means that everything runs, also when somebody stopped a part of it."""
    before = project.up()
    control = Control(project.layout.socket)
    control.stop("greeting:*")
    control.close()
    up = project.up()
    assert not up.already
    assert all(process.state == RUNNING for process in up.processes)
    hub = [process.pid for process in before.processes if process.name == "hub"]
    assert hub == [process.pid for process in up.processes if process.name == "hub"]


def test_a_killed_process_comes_back(project):
    """kill -9 of a worker: supervisord starts another, and `up` waits for it."""
    first = project.up().processes[3]
    project.kill(first.pid)
    second = project.up().processes[3]
    assert second.name == first.name
    assert second.pid != first.pid


def test_a_broken_service_is_told_with_the_end_of_its_log(project):
    """The reason stands in the error, nobody has to look for the file."""
    project.trouble("broken", "greeting_1")
    with pytest.raises(StartFailed) as caught:
        project.up()
    assert caught.value.details["process"] == "greeting:greeting_1"
    assert caught.value.details["tail"][-1] == "Traceback: the service is broken"
    assert caught.value.details["log"] == str(project.root / "logs/greeting_1.log")

    # Once it is fixed, nobody waits for supervisor's next try.
    project.trouble("", "greeting_1")
    assert all(process.state == RUNNING for process in project.up().processes)


def test_what_never_answers_is_named(project):
    """A process that runs without registering is called by its name when patience is over."""
    project.up()
    project.trouble("never", "greeting_0")
    project.kill(project.pids()["greeting:greeting_0"])
    with pytest.raises(Unavailable) as caught:
        project.up(patience_s=3.0)
    assert caught.value.details["process"] == "greeting:greeting_0"
    assert len(caught.value.details["missing"]) == 1


def test_a_taken_port_is_told_before_anything_starts(project):
    """supervisord would end without a word to anybody."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", project.port))
        other.listen()
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{project.port} "):
            project.up()
    assert not (project.run / "supervisord.pid").exists()


def test_stale_files_of_a_killed_set_do_not_hinder_a_start(project):
    """A pid file that names nobody and sockets without listeners are what a power cut leaves."""
    project.run.mkdir(mode=0o700)
    for name in ("supervisor.sock", "old.sock"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(project.run / name))
    (project.run / "supervisord.pid").write_text("4194304\n")
    assert all(process.state == RUNNING for process in project.up().processes)
    down = take_down(project.layout, project.run)
    assert [path.name for path in down.removed] == ["old.sock"]


def test_down_cleans_up_when_nothing_runs(project):
    """Stale files alone are removed and named."""
    project.run.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(project.run / "supervisor.sock"))
    # A number that is somebody's, but no supervisord's.
    (project.run / "supervisord.pid").write_text(str(os.getpid()))
    down = take_down(project.layout, project.run)
    assert down.processes == 0
    assert {path.name for path in down.removed} == {"supervisor.sock", "supervisord.pid"}


def test_down_leaves_a_socket_alone_that_somebody_listens_on(project):
    """A worker that a developer runs by hand in the same directory is not supervisord's."""
    project.run.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as mine:
        mine.bind(str(project.run / "mine.sock"))
        mine.listen()
        assert take_down(project.layout, project.run).left == [project.run / "mine.sock"]


def test_down_neither_waits_for_nor_kills_what_only_has_the_number_of_one_that_ended(project):
    """A pid is given to a new process in time; when that started tells them apart."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            began = heartbeats.started(stranger.pid)
            assert began is not None
            going_down._wait(project.layout, {stranger.pid: began - 1}, going_down.now() - 1.0, lambda text: None)
            assert stranger.poll() is None
            going_down._wait(project.layout, {stranger.pid: began}, going_down.now() - 1.0, lambda text: None)
            assert stranger.wait(5.0) == -signal.SIGKILL
        finally:
            stranger.kill()


def test_a_killed_supervisord_is_told_by_up_and_mended_by_down(project):
    """Its children live on and hold the port; they are found by what supervisord wrote into their environment."""
    project.up()
    project.kill(project.supervisord())
    with pytest.raises(SetupError, match=r"\b[56] .*`mesh down && mesh up`"):
        project.up()
    # `watch` hears that supervisord is gone, and may have left by itself.
    assert take_down(project.layout, project.run).processes in (5, 6)
    assert project.members() == []
    assert project.up().processes


def test_supervisorctl_works_from_the_root_without_options(project):
    """`supervisorctl status`, as its users type it."""
    project.up()
    command = [sys.executable, "-m", "supervisor.supervisorctl"]
    status = subprocess.run([*command, "status"], cwd=project.root, capture_output=True, text=True, check=False)
    assert status.returncode == 0, status.stdout + status.stderr
    assert status.stdout.count("RUNNING") == 6
    restart = subprocess.run(
        [*command, "restart", "greeting:*"], cwd=project.root, capture_output=True, text=True, check=False
    )
    assert restart.returncode == 0, restart.stdout + restart.stderr
    assert restart.stdout.count("started") == 2


def test_a_process_killed_every_second_is_never_given_up(project):
    """Dying within startsecs leads to BACKOFF, never to FATAL, and it runs again when the killing ends."""
    project.up()
    control = Control(project.layout.socket)
    seen = set()
    for _ in range(3):
        greeting = next(each for each in control.processes() if each.name == "greeting:greeting_0")
        if greeting.pid:
            project.kill(greeting.pid)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            seen |= {each.state for each in control.processes() if each.name == "greeting:greeting_0"}
            time.sleep(0.05)
    assert "FATAL" not in seen
    until(lambda: control.processes()[3].state == RUNNING)
    control.close()


def test_a_path_too_long_for_a_socket_is_told_by_its_length(tmp_path: Path):
    """The operating system's limit is known before supervisord stumbles over it."""
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    (deep / "supervisord.conf").write_text("[unix_http_server]\nfile=%(here)s/run/supervisor.sock\n[program:x]\n")
    with pytest.raises(ConfigError, match="at most 99 "):
        layout.read(deep / "supervisord.conf")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"--conf"),
        ("[supervisord]\n", r"\[unix_http_server\] file"),
        ("[unix_http_server]\nfile=/tmp/x.sock\n", r"\[program:"),
        ("not an ini file\n", r"supervisord\.conf: "),
        ("[unix_http_server]\nfile=/tmp/x.sock\n[program:a]\nnumprocs=two\n", r"\[program:a\]: .*'two'"),
    ],
)
def test_a_wrong_supervisord_conf_is_told_by_what_it_lacks(tmp_path: Path, text: str | None, says: str):
    """Each is a ConfigError that names the file."""
    if text is not None:
        (tmp_path / "supervisord.conf").write_text(text)
    with pytest.raises(ConfigError, match=says):
        layout.read(tmp_path / "supervisord.conf")


def test_the_projects_own_files_are_read(tmp_path: Path):
    """What `mesh up` runs here: hub first, gateways last, one address for HTTP."""
    for name in ("supervisord.conf", "mesh.toml"):
        (tmp_path / name).write_text((Path(__file__).parents[2] / name).read_text())
    settings = load(tmp_path / "mesh.toml", env={})
    Roster(layout.read(tmp_path / "supervisord.conf"), settings).refresh()
    there = layout.read(tmp_path / "supervisord.conf")
    groups = list(dict.fromkeys(program.group for program in there.programs))
    named = [name for name, service in settings.services.items() if service.classes]
    assert groups == ["watch", "hub", "store", *named, "gateway"]
    assert named[:2] == ["greeting", "thumbnails"]
    assert (there.listens, there.unix) == ("127.0.0.1:8080", "")
    assert there.socket == tmp_path / "run/supervisor.sock"


def test_a_project_without_a_supervisord_conf_gets_one(project):
    """mesh.toml and the code are enough; what is written is what mesh itself uses, and is never written over."""
    conf = project.root / "supervisord.conf"
    own = (Path(__file__).parents[2] / "supervisord.conf").read_text()
    conf.unlink()
    done = project.command("mesh", "up")
    assert done.stderr.startswith(f"wrote {conf}, ")
    assert conf.read_text() == own
    project.command("mesh", "down")
    conf.write_text(own + "; mine\n")
    assert "wrote" not in project.command("mesh", "up").stderr
    assert conf.read_text().endswith("; mine\n")


def test_without_services_no_supervisord_conf_is_made(project):
    """`mesh up` in the wrong directory leaves nothing behind."""
    (project.root / "supervisord.conf").unlink()
    (project.root / "mesh.toml").write_text("")
    done = project.command("mesh", "up", check=False)
    assert done.returncode == 2
    assert f"{project.root}/supervisord.conf: " in done.stderr
    assert not (project.root / "supervisord.conf").exists()


def test_two_ups_at_once_are_as_good_as_one(project):
    """The second waits for the first, and finds everything up."""
    words = [sys.executable, "-m", "mesh.cli.main", "up", "--json"]
    both = [
        subprocess.Popen(words, cwd=project.root, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    told = [json.loads(each.communicate(timeout=90)[0]) for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert sorted(each["already"] for each in told) == [False, True]
    assert len({process["pid"] for each in told for process in each["processes"]}) == 6
