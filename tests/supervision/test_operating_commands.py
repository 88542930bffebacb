"""The command line of operation, as its users type it: what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from supervision_project import until

from mesh.cli.confine import RESERVE_BYTES


@pytest.fixture
def project(running) -> Iterator:
    """The running set; each test leaves two greetings and one gateway."""
    yield running
    for path in running.root.glob("trouble*"):
        path.unlink()
    running.write()
    running.command("mesh", "scale", "greeting=2", "gateway=1")
    assert not [name for name, state in running.states().items() if state != "RUNNING"]


# --- scale, roll ----------------------------------------------------------------------------------------


def test_scale_shows_does_and_says_where_it_is_kept(project):
    """Without words a table; with them what changed; --json for programs."""
    rows = [line.split() for line in project.command("mesh", "scale").stdout.splitlines()]
    assert ["greeting", "2", "2", "2", "–", "–"] in rows
    (line,) = project.command("mesh", "scale", "greeting=3").stderr.splitlines()
    assert line.startswith("greeting: 2 → 3 (mesh.toml says 2")
    kept = json.loads((project.run / "programs/replicas.json").read_text())
    assert kept == {"greeting": {"chosen": 3, "declared": 2}}
    told = json.loads(project.command("mesh", "scale", "greeting=declared", "--json").stdout)
    assert told == [{"name": "greeting", "before": 3, "after": 2, "declared": 2, "running": True}]
    shown = {row["name"]: row for row in json.loads(project.command("mesh", "scale", "--json").stdout)}
    assert shown["greeting"]["running"] == shown["greeting"]["wanted"] == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("greeting",), 2, "'greeting': "),
        (("greeting=many",), 2, "'many' "),
        (("greeting=5000",), 1, "greeting=5000 is out of range (0–1024)"),
        (("greting=2",), 1, '"greeting"?'),
        (("greeting=2", "hub=2"), 1, "`mesh roll hub`"),
    ],
)
def test_scale_refuses_what_cannot_be(project, words: tuple[str, ...], code: int, says: str):
    """Nothing is changed, and the message says what would be right."""
    before = project.pids()
    done = project.command("mesh", "scale", *words, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert project.pids() == before


def test_scale_while_nothing_runs_is_for_the_next_start(project):
    """The number is kept, and `mesh up` starts so many."""
    project.command("mesh", "down")
    told = project.command("mesh", "scale", "greeting=3").stderr
    assert told.startswith("greeting: ")
    assert "`mesh up` starts 3 " in told
    project.command("mesh", "up")
    assert "greeting:greeting_2" in project.pids()


def test_roll_says_what_was_replaced(project):
    """One line for each; --json for programs."""
    said = project.command("mesh", "roll", "greeting", "--settle", "0").stderr
    assert re.fullmatch(r"greeting: 2 replaced in \d+\.\d s\n", said)
    done = project.command("mesh", "roll", "nothing", check=False)
    assert (done.returncode, "[services.nothing]" in done.stderr) == (1, True)


def test_a_roll_that_fails_exits_with_one_and_the_reason_comes_last(project):
    """Which one, why, what runs now, and what it wrote."""
    project.trouble("broken", "greeting_2")
    done = project.command("mesh", "roll", "greeting", check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("mesh: greeting:greeting_2 ")
    assert lines[1].endswith("; greeting runs as before")
    assert f"{project.root}/logs/greeting_2.log" in lines[2]
    assert lines[-1] == "  | Traceback: the service is broken"


def test_code_that_cannot_be_imported_is_found_before_anything_is_replaced(project):
    """The exit code is 1, the line of mesh.toml is named, and every process runs as before."""
    before = project.pids()
    project.trouble("broken")
    done = project.command("mesh", "roll", "greeting", check=False)
    assert done.returncode == 1
    assert re.match(r"mesh: mesh\.toml:\d+: services\.greeting\.class: ", done.stderr)
    assert project.pids() == before


def test_without_a_supervisord_roll_says_so(project):
    """Exit code 3: the same may succeed later."""
    project.command("mesh", "down")
    done = project.command("mesh", "roll", check=False)
    assert done.returncode == 3
    assert str(project.run / "supervisor.sock") in done.stderr
    project.command("mesh", "up")


def test_a_second_command_is_told_who_is_at_it(project):
    """Exit code 3, and the first goes on."""
    words = [sys.executable, "-m", "mesh.cli.main", "roll", "greeting", "--settle", "0.3"]
    with subprocess.Popen(words, cwd=project.root, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as first:
        until(lambda: "greeting:greeting_2" in project.pids())
        done = project.command("mesh", "scale", "greeting=3", check=False)
        assert done.returncode == 3
        assert f"mesh roll (pid {first.pid})" in done.stderr
        assert first.wait(60) == 0
        assert first.stderr is not None
        assert b"greeting: 2 replaced" in first.stderr.read()


def test_a_roll_that_is_interrupted_says_so_and_ends_as_by_the_signal(project):
    """Ctrl-C half way: everything is as it was, and a loop around it stops, too."""
    # It waits so long behind the first replacement: whatever the machine does besides, this is in the middle.
    words = [sys.executable, "-m", "mesh.cli.main", "roll", "greeting", "--settle", "4"]
    with subprocess.Popen(words, cwd=project.root, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as rolling:
        until(lambda: project.states().get("greeting:greeting_0") not in ("RUNNING", None))
        rolling.send_signal(signal.SIGINT)
        assert rolling.wait(60) == -signal.SIGINT
        assert rolling.stderr is not None
        assert b"mesh: interrupted; greeting " in rolling.stderr.read()
    assert "greeting:greeting_2" not in project.pids()
    assert "already" in project.command("mesh", "up").stderr


def test_a_roll_that_is_killed_is_mended_by_up(project):
    """Half way: the spare one is there, one may be missing; `mesh up` brings all in line."""
    # It waits so long behind the first replacement: whatever the machine does besides, this is in the middle.
    words = [sys.executable, "-m", "mesh.cli.main", "roll", "greeting", "--settle", "4"]
    with subprocess.Popen(words, cwd=project.root, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as rolling:
        until(lambda: project.states().get("greeting:greeting_0") not in ("RUNNING", None))
        rolling.kill()
        rolling.wait(20)
    assert "greeting:greeting_2" in project.pids()
    project.command("mesh", "up")
    assert sorted(name for name in project.pids() if name.startswith("greeting")) == [
        "greeting:greeting_0",
        "greeting:greeting_1",
    ]


def test_env_file_and_limits_reach_the_worker(project):
    """As mesh.toml says; a restart takes what the file says by then."""
    (project.root / "secret.env").write_text("COLOUR=gold\n")
    project.write(more='env_file = "secret.env"\nmemory = "2GiB"\nfiles = 2000\nnice = 1')
    project.command("mesh", "roll", "greeting", "--settle", "0")
    pid = project.pids()["greeting:greeting_0"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    # The hard limit leaves the room that a worker needs to drain when it has reached the soft one.
    assert re.search(rf"Max data size +{2 * 2**30} +{2 * 2**30 + RESERVE_BYTES}", limits)
    assert re.search(r"Max open files +2000 +2000", limits)
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 1
    assert "gold" not in (project.run / "programs/greeting_0.conf").read_text()
    told = project.command("mesh", "call", "greeting.environment", "COLOUR").stdout
    assert told == "gold\n"


# --- logs, top ------------------------------------------------------------------------------------------


def test_logs_of_all_of_one_and_as_json(project):
    """Each line with who wrote it."""
    project.command("mesh", "call", "greeting.hello", "you")
    lines = project.command("mesh", "logs", "-n", "200").stdout.splitlines()
    assert any(" hub " in line and "ready" in line for line in lines)
    assert any(" supervisord " in line for line in lines)
    only = project.command("mesh", "logs", "greeting:greeting_1", "--json").stdout.splitlines()
    assert {json.loads(line)["process"] for line in only} == {"greeting_1"}
    done = project.command("mesh", "logs", "nobody", check=False)
    assert done.returncode == 2
    assert "nobody" in done.stderr
    assert "gateway, greeting, hub" in done.stderr


def test_logs_are_followed(project):
    """The last line, and then what is written from now on."""
    words = [sys.executable, "-m", "mesh.cli.main", "logs", "-f", "-n", "1", "hub", "greeting"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, cwd=project.root, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline()  # it has looked once
        project.command("supervisorctl", "restart", "greeting:greeting_0")
        first = following.stdout.readline()
        following.send_signal(signal.SIGINT)
        following.wait(60)
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} greeting_0  worker\.draining ", first)


def test_top_once_and_as_json(project):
    """A table of processes for people, everything for programs."""
    table = project.command("mesh", "top", "--once", "--every", "0.3").stdout.splitlines()
    assert table[0].split() == [
        *("name▲", "state", "pid", "up", "calls/s", "errors/s", "mean", "p99", "≤", "in", "flight", "waiting"),
        *("cpu", "memory"),
    ]
    assert any(line.startswith("greeting:greeting_0 ") for line in table)
    frame = json.loads(project.command("mesh", "top", "--once", "--json", "--every", "0.3").stdout)
    greeting = next(row for row in frame["processes"] if row["name"] == "greeting:greeting_0")
    assert greeting["sample"]["answered"]
    assert greeting["sample"]["memory_bytes"] > 2**20


def test_top_at_a_terminal_scales_by_a_key_and_leaves_the_terminal_as_it_was(project):
    """Select, +, wait, q."""
    screen = pexpect.spawn(
        sys.executable,
        ["-m", "mesh.cli.main", "top", "--every", "0.3"],
        cwd=str(project.root),
        dimensions=(30, 150),
        timeout=20,
        encoding="utf-8",
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        screen.expect("mesh top")
        screen.expect("greeting")
        screen.send("/gree\r")
        screen.expect("filter: gree")
        screen.send("+")
        screen.expect("greeting: 3")
        screen.send("q")
        screen.expect(pexpect.EOF)
    finally:
        screen.close()
    assert screen.exitstatus == 0
    assert "greeting:greeting_2" in project.pids()


def test_watch_is_for_supervisor(project):
    """Typed by hand it says so; it is not among the commands that are listed."""
    done = project.command("mesh", "watch", check=False)
    assert done.returncode == 2
    assert "[eventlistener:watch]" in done.stderr
    assert " watch " not in project.command("mesh", "--help").stdout


def test_autoscale_without_anything_to_scale_says_what_to_write(project):
    """Exit code 2: mesh.toml is not as it would have to be."""
    done = project.command("mesh", "autoscale", "--dry-run", check=False)
    assert done.returncode == 2
    assert "`maximum = 8`" in done.stderr
