"""Crashes are told with their reason, a loop is slowed down and shown wherever one looks, and it ends."""

from __future__ import annotations

import io
import json
import re
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from supervision_project import until

from mesh.errors import Unavailable
from mesh.supervisord.control import Process
from mesh.supervisord.watch import Watch, listen
from mesh.telemetry import crashes


class Control:
    """What the watch asks supervisord for."""

    def __init__(self) -> None:
        self.holds: list[tuple[str, float]] = []
        self.last: int | None = -11

    def processes(self) -> list[Process]:
        return [Process("greeting:greeting_0", "greeting", "RUNNING", 7, 1.0, "", "")]

    def hold(self, name: str, seconds: float, why: str) -> None:
        self.holds.append((name, seconds))

    def status(self, name: str) -> int | None:
        return self.last

    def tail(self, name: str) -> list[str]:
        return ["Traceback", "ConnectionError: no database", ""]


class Story:
    """A watch, and events by a clock that is turned by hand."""

    def __init__(self, run_dir: Path) -> None:
        self.now = 1_700_000_000.0
        self.control = Control()
        self.run_dir = run_dir
        self.watch = Watch(self.control, run_dir, ("hub",), wall=lambda: self.now)  # type: ignore[arg-type]
        # What an earlier watch held is let go.
        assert self.control.holds.pop() == ("greeting:greeting_0", 0.0)

    def tell(self, state: str, name: str = "greeting_0", group: str = "greeting") -> None:
        self.watch.event(f"PROCESS_STATE_{state}", {"processname": name, "groupname": group})

    def lives(self, seconds: float, end: str = "EXITED") -> None:
        self.tell("STARTING")
        self.now += seconds
        self.tell(end)

    def seen(self) -> list[crashes.Crash]:
        return crashes.read(self.run_dir)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_a_single_crash_is_told_and_nothing_is_slowed_down(story: Story):
    """The file has it, with the reason; supervisor starts it at once, as always."""
    story.lives(300.0)
    (crash,) = story.seen()
    assert (crash.process, crash.crashes, crash.looping) == ("greeting:greeting_0", 1, False)
    assert (crash.how, crash.words) == ("killed by SIGSEGV", "ConnectionError: no database")
    assert story.control.holds == []


def test_a_loop_is_held_longer_and_longer(story: Story):
    """From the fifth short life on; those that died in their first second count like those that exited."""
    for end in ("EXITED", "BACKOFF", "EXITED", "EXITED", "EXITED", "EXITED", "BACKOFF"):
        story.lives(0.5 if end == "BACKOFF" else 3.0, end)
    assert story.control.holds == [("greeting:greeting_0", seconds) for seconds in (1.0, 2.0, 4.0)]
    (crash,) = story.seen()
    assert crash.looping
    assert crash.next_at == story.now + 2.0
    assert crash.told(story.now) == (
        "greeting:greeting_0 ends again and again: 7 times in 13 s, killed by SIGSEGV; next try in 2 s"
    )
    story.tell("STARTING")
    assert story.seen()[0].next_at == 0.0


def test_what_is_killed_from_outside_is_back_within_a_second(story: Story):
    """It is told like any loop; but whoever kills it, or the kernel for its memory, finds it again."""
    story.control.last = -signal.SIGKILL
    for _ in range(9):
        story.lives(3.0)
    assert {seconds for _, seconds in story.control.holds} == {1.0}
    (crash,) = story.seen()
    assert (crash.looping, crash.how) == (True, "killed by SIGKILL")
    # By itself it has not failed once yet.
    story.control.last = 1
    for _ in range(6):
        story.lives(3.0)
    assert [seconds for _, seconds in story.control.holds[-6:]] == [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]


def test_what_others_stand_on_never_waits_long(story: Story):
    """A hub that fails is tried each five seconds: its absence costs more than its tries."""
    for _ in range(12):
        story.tell("STARTING", "hub", "hub")
        story.now += 2.0
        story.tell("EXITED", "hub", "hub")
    assert [seconds for _, seconds in story.control.holds] == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0]


def test_a_minute_of_good_life_ends_the_loop(story: Story):
    """The hold is taken back, at the next tick."""
    for _ in range(6):
        story.lives(2.0)
    story.tell("STARTING")
    story.now += 59.0
    story.watch.event("TICK_5", {"when": "1"})
    assert story.seen()[0].looping
    story.now += 5.0
    story.watch.event("TICK_5", {"when": "2"})
    assert story.control.holds[-1] == ("greeting:greeting_0", 0.0)
    assert not story.seen()[0].looping


def test_stopping_it_by_hand_ends_the_loop(story: Story):
    """`supervisorctl restart`, `mesh up`, a roll: somebody takes care of it."""
    for _ in range(6):
        story.lives(2.0)
    story.tell("STOPPED")
    assert story.control.holds[-1] == ("greeting:greeting_0", 0.0)
    assert not story.seen()[0].looping


def test_a_process_alone_in_its_group_has_one_name(story: Story):
    """As supervisorctl writes it: hub, not hub:hub."""
    story.tell("STARTING", "hub", "hub")
    story.tell("EXITED", "hub", "hub")
    assert story.seen()[0].process == "hub"


def test_a_supervisord_that_does_not_answer_is_lived_with(story: Story, monkeypatch: pytest.MonkeyPatch):
    """What cannot be asked is left out; the crash is told all the same."""

    def silent(*_: object) -> None:
        raise Unavailable("no supervisord answers")

    for name in ("hold", "status", "tail"):
        monkeypatch.setattr(story.control, name, silent)
    for _ in range(6):
        story.lives(2.0)
    assert story.seen()[0].looping
    assert story.seen()[0].how == ""


def test_the_event_protocol(tmp_path: Path):
    """READY, an event, RESULT, and again; what cannot be read does not end the conversation."""
    payload = b"processname:hub groupname:hub from_state:RUNNING expected:0 pid:7"
    events = b""
    for name, body in (
        (b"PROCESS_STATE_EXITED", payload),
        (b"PROCESS_STATE_EXITED", b"\xff\xfe"),
        (b"TICK_5", b"when:5"),
    ):
        events += (
            b"ver:3.0 server:mesh serial:1 pool:watch poolserial:1 eventname:%b len:%d\n" % (name, len(body)) + body
        )
    given = io.BytesIO()
    watch = Watch(Control(), tmp_path)  # type: ignore[arg-type]
    listen(watch, io.BytesIO(events), given)
    assert given.getvalue() == b"READY\nRESULT 2\nOK" * 3 + b"READY\n"
    assert [each.process for each in crashes.read(tmp_path)] == ["hub"]


def test_old_news_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A watch that died tells nothing; neither does a damaged file."""
    crashes.write(tmp_path, [crashes.Crash("x", 1)])
    assert crashes.read(tmp_path)
    later = time.time() + crashes.FRESH_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert crashes.read(tmp_path) == []
    (tmp_path / crashes.FILE).write_text("{")
    assert crashes.read(tmp_path) == []


def test_a_crash_loop_is_shown_everywhere_and_slowed_down(project):
    """supervisorctl, /readyz, `mesh ps`: the same truth; and a restart by hand ends it."""
    project.up()
    name = "greeting:greeting_0"
    for _ in range(6):
        until(lambda: project.states()[name] == "RUNNING")
        project.kill(project.pids()[name])
        until(lambda: project.states()[name] != "RUNNING")
    until(lambda: project.states()[name] == "BACKOFF")
    assert re.search(r"\b[56]\b", project.processes()[name].trouble)
    # supervisord makes it wait at once; the watch writes when it has heard of it.
    until(lambda: any(each.short == 6 for each in crashes.read(project.run)))
    (crash,) = (each for each in crashes.read(project.run) if each.looping)
    assert crash.process == name
    assert crash.how == "killed by SIGKILL"
    with urllib.request.urlopen(project.url + "/readyz", timeout=5) as answer:
        text = answer.read().decode()
    assert re.search(rf"^\[!\] supervisor: {name} .* 6 times", text, re.MULTILINE)
    assert text.endswith("ready\n")
    shown = project.command("mesh", "ps", "--json")
    assert [each["process"] for each in json.loads(shown.stdout)["crash_loops"]] == [name]
    assert name in project.command("mesh", "ps").stderr
    project.command("supervisorctl", "restart", name, check=False)
    until(lambda: not any(each.looping for each in crashes.read(project.run)))
    assert '"crash_loop.entered"' in (project.root / "logs/watch.log").read_text()
