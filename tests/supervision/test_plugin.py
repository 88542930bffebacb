"""What mesh adds to supervisord: started by hand it runs what mesh.toml says, and HTTP outlives a restart."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from supervision_project import until
from supervisor import events
from supervisor.states import ProcessStates

from mesh.errors import ConfigError, SetupError
from mesh.supervisord import plugin as plugins
from mesh.supervisord.control import Control
from mesh.supervisord.layout import read


def supervisord(project) -> subprocess.CompletedProcess[str]:
    """Start it as one does without mesh."""
    for name in ("run", "logs"):
        (project.root / name).mkdir(mode=0o700, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"],
        cwd=project.root,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_a_plain_supervisord_runs_what_mesh_toml_says(project):
    """In a fresh clone too: the program files are made on the way."""
    done = supervisord(project)
    assert done.returncode == 0, done.stderr
    assert set(project.states()) >= {"hub", "greeting:greeting_0", "greeting:greeting_1", "gateway:gateway_0"}
    assert project.up().processes
    # Not even supervisor itself thinks that anything has changed since.
    assert "No config updates" in project.command("supervisorctl", "reread").stdout


def test_a_plain_supervisord_follows_what_mesh_toml_says_now(project):
    """Files of an earlier mesh.toml are made anew; `supervisorctl reload` does the same."""
    project.write(greetings=3)
    project.up()
    project.command("mesh", "down")
    project.write(greetings=1)
    assert supervisord(project).returncode == 0
    assert [name for name in project.pids() if name.startswith("greeting")] == ["greeting:greeting_0"]
    project.write(greetings=2)
    project.command("supervisorctl", "reload")
    until(lambda: _names(project, "greeting") == ["greeting:greeting_0", "greeting:greeting_1"])


def _names(project, group: str) -> list[str]:
    control = Control(project.layout.socket)
    try:
        return [each.name for each in control.processes() if each.program == group] if control.alive() else []
    except Exception:
        return []
    finally:
        control.close()


def test_a_wrong_mesh_toml_stops_a_plain_supervisord_by_its_own_words(project):
    """It says which line is wrong, not that some interface could not be made."""
    (project.root / "mesh.toml").write_text("[gateway]\nreplicas = -1\n")
    done = supervisord(project)
    assert done.returncode != 0
    assert "mesh.toml:2: gateway.replicas: -1 " in done.stderr
    assert project.members() == []


def test_restarting_all_gateways_at_once_refuses_nobody(project):
    """supervisor alone would close the socket: here a connection waits until somebody serves it."""
    project.up()
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", project.port, timeout=15)
            connection.request("GET", "/hello/you")
            answers.append(connection.getresponse().status)
            connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: len(answers) > 5)
    project.command("supervisorctl", "restart", "gateway:*")
    seen = len(answers)
    until(lambda: len(answers) > seen + 5)
    over.set()
    thread.join()
    assert set(answers) == {200}


def test_a_supervisord_without_the_plugin_is_told(project):
    """One that an earlier release started: what to do stands in the message."""
    conf = project.root / "supervisord.conf"
    text = conf.read_text()
    factory = "supervisor.rpcinterface_factory=mesh.supervisord.plugin:make\n"
    conf.write_text(text.replace("[rpcinterface:mesh]\n" + factory, ""))
    (project.root / "mesh.toml").write_text("[services.greeting]\nconcurrency = 1\n")
    assert not read(conf).plugged
    for name in ("run", "logs"):
        (project.root / name).mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"\[rpcinterface:mesh\]"):
        project.up()
    supervisord(project)
    conf.write_text(text)
    with pytest.raises(SetupError, match=r"\[rpcinterface:mesh\].*`mesh down && mesh up`"):
        project.up()


# --- in supervisord's place -----------------------------------------------------------------------------


@contextmanager
def plugged():
    """The plugin in a supervisord that is a stand-in, with one group of one gateway."""
    process = types.SimpleNamespace(
        pid=7,
        state=100,
        delay=0.0,
        backoff=0,
        spawnerr="Bad exit code 1",
        exitstatus=1,
        config=types.SimpleNamespace(
            name="gateway_0", autorestart=True, startretries=100, stdout_logfile=None, stderr_logfile=None
        ),
    )
    listener = socket.socket()
    manager = types.SimpleNamespace(get_socket=lambda: listener)
    group = types.SimpleNamespace(
        config=types.SimpleNamespace(name="gateway"), processes={"gateway_0": process}, socket_manager=manager
    )
    process.group = group
    events.clear()
    try:
        options = types.SimpleNamespace(
            pidhistory={},
            waitpid=lambda: (process.pid, signal.SIGKILL),
            logfile=None,
            pidfile=os.devnull,
            httpservers=[],
        )
        yield plugins.Plugin(types.SimpleNamespace(process_groups={"gateway": group}, options=options)), process
    finally:
        listener.close()
        events.clear()


def test_a_socket_that_nobody_serves_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch):
    """`supervisorctl stop gateway:*` means it: clients are refused in the end, and do not wait for nobody."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with plugged() as (plugin, process):
        events.notify(events.ProcessStateStartingEvent(process, 0))
        events.notify(events.Tick5Event(0, None))
        assert plugin._sockets
        process.pid = 0
        for now[0] in (5.0, 10.0, 15.0):
            events.notify(events.Tick5Event(0, None))
            assert plugin._sockets
        now[0] = 5.0 + plugins.KEEP_S
        events.notify(events.Tick5Event(0, None))
        assert not plugin._sockets
        # And it is open again with the first that starts.
        events.notify(events.ProcessStateStartingEvent(process, 0))
        assert plugin._sockets
        # Nothing is kept across a reload, which closes all files by number.
        events.notify(events.SupervisorStoppingEvent())
        assert not plugin._sockets


def test_a_held_process_waits_and_says_why():
    """EXITED becomes BACKOFF, with the reason; without a hold supervisor goes its own way."""
    with plugged() as (plugin, process):
        ended = events.ProcessStateExitedEvent(process, 20, False)
        events.notify(ended)
        assert process.state == 100
        plugin.hold("gateway:gateway_0", 2.5, "it ended 7 times")
        events.notify(ended)
        assert (process.state, process.backoff, process.spawnerr) == (30, 3, "it ended 7 times")
        assert 2.0 < process.delay - time.time() <= 2.5
        plugin.hold("gateway:gateway_0", 0, "")
        process.state = 100
        events.notify(ended)
        assert process.state == 100


def test_what_ended_a_process_is_known():
    """Which signal it was, of one that died in its first second, too; supervisor itself says -1, or nothing."""
    with plugged() as (plugin, process):
        assert plugin.status("gateway:gateway_0") == -2
        plugin._supervisord.options.waitpid()
        process.exitstatus = None
        events.notify(events.ProcessStateBackoffEvent(process, 10))
        assert plugin.status("gateway:gateway_0") == -109


def test_the_words_of_a_process_are_those_since_somebody_started_it(tmp_path: Path):
    """An earlier release's are not its; those from before a crash, after which it came back by itself, are."""
    log = tmp_path / "gateway_0.log"
    with plugged() as (plugin, process):
        process.config.stdout_logfile = str(log)
        assert plugin.words("gateway:gateway_0", 100) == ""
        log.write_text("the release before\n")
        events.notify(events.ProcessStateStartingEvent(process, ProcessStates.STOPPED))
        with log.open("a") as more:
            more.write("it breaks\n")
        events.notify(events.ProcessStateStartingEvent(process, ProcessStates.EXITED))
        with log.open("a") as more:
            more.write("it breaks again \x1b[0m\n")
        # XML could not carry an escape.
        assert plugin.words("gateway:gateway_0", 100) == "it breaks\nit breaks again \ufffd[0m\n"
        assert plugin.words("gateway:gateway_0", 5) == "\ufffd[0m\n"
        log.write_text("rotated\n")
        assert plugin.words("gateway:gateway_0", 100) == "rotated\n"


def test_a_stop_that_was_lost_is_told_again_once():
    """Only to a process that was stopped in its first moment: a second signal makes others hurry."""
    killed: list[tuple[int, int]] = []
    with plugged() as (plugin, process):
        plugin._supervisord.options = types.SimpleNamespace(
            kill=lambda pid, signal: killed.append((pid, signal)),
            logger=types.SimpleNamespace(info=lambda text: None),
        )
        process.config.stopwaitsecs, process.config.stopsignal = 40, 15
        process.state, process.laststart, process.delay = 40, 1000.0, 1040.2
        events.notify(events.Tick5Event(0, None))
        events.notify(events.Tick5Event(0, None))
        assert killed == [(7, 15)]
        # One that has had time to begin is left to finish what it has.
        process.pid, process.delay = 8, 1050.0
        events.notify(events.Tick5Event(0, None))
        assert killed == [(7, 15)]


def test_a_held_process_really_waits(project):
    """In a real supervisord: it shows the reason, and starts when the time is over."""
    project.up()
    with closing(Control(project.layout.socket)) as control:
        control.hold("greeting:greeting_0", 5.0, "it ended 5 times")
        project.kill(project.pids()["greeting:greeting_0"])
        until(lambda: project.states()["greeting:greeting_0"] == "BACKOFF")
        began = time.monotonic()
        process = project.processes()["greeting:greeting_0"]
        assert process.trouble == "it ended 5 times"
        assert "it ended 5 times" in project.command("supervisorctl", "status", check=False).stdout
        until(lambda: project.states()["greeting:greeting_0"] == "RUNNING", 15)
        assert time.monotonic() - began > 4.0
