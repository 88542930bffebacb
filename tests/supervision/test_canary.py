"""Releases by traffic share, with real processes under load: a good one is promoted, a bad one goes back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from canary_load import load
from supervision_project import SERVICE, Project, until
from supervision_releases import Releases

from mesh.config import load as load_settings
from mesh.deploy.canary import abort, roll_canary
from mesh.deploy.canary_plan import CanaryRejected, CanarySample, Plan, Promoted, capped, copies
from mesh.deploy.canary_state import StateFiles
from mesh.deploy.error_gate import Limits
from mesh.deploy.processes import StartFailed
from mesh.deploy.roll import RollFailed, RollInterrupted
from mesh.policy.canary import Rules
from mesh.supervisord.roster import Roster

pytestmark = pytest.mark.timeout(120)

ANSWER = 'return f"Hello, {name}!"'
GOOD = SERVICE.replace(ANSWER, 'return f"Hi, {name}!"')
BAD = SERVICE.replace(
    ANSWER, "import random\n        if random.random() < 0.2:\n            raise RuntimeError\n        " + ANSWER
)
SLOW = SERVICE.replace(ANSWER, "await asyncio.sleep(0.05)\n        " + ANSWER)
HANGS = SERVICE.replace(ANSWER, "time.sleep(1000)")

RULES = Rules(step_s=1.0, hold_s=30.0)
PLAN = Plan((0.2, 0.5), RULES, every_s=0.5, settle_s=0.1, gate=Limits(seconds=1.0))


def test_a_host_takes_no_more_than_its_part() -> None:
    """Of 20 copies on four hosts, five are here: at most a quarter of the calls, which is observed, too."""
    assert capped((0.05, 0.25, 0.5), 1.0) == (0.05, 0.25, 0.5)
    assert capped((0.05, 0.2, 0.5), 0.25) == (0.05, 0.2, 0.25)
    assert capped((0.05, 0.25), 0.04) == (0.04,)
    assert capped((), 0.25) == ()
    assert [copies(share, 20, 5) for share in (0.0, 0.05, 0.051, 0.25, 1.0)] == [1, 1, 2, 5, 5]
    assert copies(0.5, 3, 3) == 2


def release(project: Project, code: str) -> None:
    """Another release, in the place of the former."""
    (project.root / "svc.py").write_text(code)


def roll(project: Project, plan: Plan = PLAN) -> tuple[Promoted, list[CanarySample]]:
    lines: list[CanarySample] = []
    return asyncio.run(roll_canary(project.layout, project.settings, "greeting", plan, report=lines.append)), lines


def greetings(project: Project) -> list[str]:
    return sorted(name for name in project.states() if name.startswith("greeting:"))


def assert_as_before(project: Project, before: dict[str, int]) -> None:
    """The same processes as before, none besides, and no trace of a roll."""
    assert project.pids() == before
    assert not list(project.root.glob("run/**/.canary*"))


def test_a_good_release_is_promoted(running: Project) -> None:
    """Step by step; no request fails, and afterwards there are as many processes as before, all of the new release."""
    before = running.pids()
    with load(f"{running.url}/hello/you") as asked:
        release(running, GOOD)
        done, lines = roll(running)
        at = asked.at_s
        until(lambda: asked.at_s > at + 0.5)
    assert (done.name, done.replaced) == ("greeting", 2)
    assert list(dict.fromkeys(line.share for line in lines)) == [0.2, 0.5]
    assert [line.verdict for line in lines if line.verdict != "hold"] == ["promote", "promote"]
    assert done.new.calls >= 200
    assert set(asked.statuses) == {200}
    assert set(asked.words(at)) == {"Hi"}
    after = running.pids()
    assert set(after) == set(before)
    assert all(after[name] != before[name] for name in greetings(running))


def test_a_release_with_more_errors_goes_back(running: Project) -> None:
    """Only the share was at risk."""
    before = running.pids()
    with load(f"{running.url}/hello/you") as asked:
        release(running, BAD)
        with pytest.raises(CanaryRejected) as caught:
            roll(running)
        assert_as_before(running, before)
        at = asked.at_s
        until(lambda: asked.at_s > at + 0.5)
    details = caught.value.details
    assert (details["service"], details["share"]) == ("greeting", 0.2)
    assert details["new"]["failed"] > 0
    assert details["old"]["failed"] == 0
    assert set(asked.statuses) == {200, 500}
    assert asked.statuses[500] <= 0.06 * len(asked.answers)
    assert {status for when, status, _ in asked.answers if when >= at} == {200}


def test_a_slower_release_goes_back(running: Project) -> None:
    """No call fails."""
    before = running.pids()
    with load(f"{running.url}/hello/you", 150) as asked:
        release(running, SLOW)
        with pytest.raises(CanaryRejected) as caught:
            roll(running, PLAN._replace(rules=RULES._replace(step_s=20.0)))
    assert "slower" in caught.value.details["why"]
    assert set(asked.statuses) == {200}
    assert_as_before(running, before)


@pytest.mark.long
@pytest.mark.chaos
def test_a_release_that_hangs_goes_back(running: Project) -> None:
    """Its loop is blocked by the first call; it does not even report its counters."""
    before = running.pids()
    with load(f"{running.url}/hello/you", 40, connections=40):
        release(running, HANGS)
        with pytest.raises(RollFailed) as caught:
            roll(running)
    assert isinstance(caught.value.__cause__, StartFailed | CanaryRejected)
    assert_as_before(running, before)


def test_a_release_that_does_not_start_changes_nothing(running: Project) -> None:
    """It gets no call."""
    before = running.pids()
    running.trouble("never")
    try:
        with pytest.raises(RollFailed) as caught:
            roll(running, PLAN._replace(patience_s=2.0))
    finally:
        running.trouble("")
    assert isinstance(caught.value.__cause__, StartFailed)
    assert caught.value.details["undone"]
    assert_as_before(running, before)


def test_copies_of_calls_change_nothing_and_are_compared(running: Project) -> None:
    """All answers come from the old release. `mesh ps` shows the copies, and the metrics count them apart."""
    before = running.pids()
    release(running, GOOD)
    plan = PLAN._replace(shares=(), mirror=0.5)
    shown: list[str] = []

    def look(line: CanarySample) -> None:
        if not shown:
            shown.append(running.command("mesh", "ps").stdout)
            with urlopen(f"{running.url}/metrics", timeout=10) as page:
                shown.append(page.read().decode())

    with load(f"{running.url}/hello/you", 100) as asked:
        work = roll_canary(running.layout, running.settings, "greeting", plan, report=look)
        done = asyncio.run(work)
    assert done.replaced == 0
    assert set(asked.words()) <= {"Hello", "Hi"}  # by whichever code the workers of this file run at present
    assert len(asked.words()) == 1
    assert sum(done.mirrored.values()) >= 10
    assert "canary 0 % + copies of 50 %" in shown[0]
    assert re.search(r'mesh_service_info\{canary="yes",.*service="greeting"', shown[1])
    assert re.search(r'mesh_requests_total\{.*side="mirror"', shown[1])
    assert_as_before(running, before)


def test_a_canary_that_dies_ends_the_roll(running: Project) -> None:
    """Killed while it is observed: its calls go to the old release."""
    before = running.pids()
    release(running, GOOD)
    with load(f"{running.url}/hello/you", 100) as asked, Command(running) as command:
        command.observes()
        canary = next(pid for name, pid in running.pids().items() if name not in before)
        os.kill(canary, signal.SIGKILL)
        assert command.end() == 1
    assert command.error["code"] == "roll_failed"
    assert set(asked.statuses) == {200}  # the method may be repeated
    assert_as_before(running, before)


class Command:
    """`mesh roll greeting --canary 20%` in a process of its own."""

    def __init__(self, project: Project, *options: str) -> None:
        words = ["roll", "greeting", "--canary", "20%", "--every", "0.25", "--settle", "0.1", "--json", *options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli.main", *words],
            cwd=project.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.error: dict[str, Any] = {}

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def observes(self) -> None:
        """Return when the first sample was reported."""
        assert self._process.stdout is not None
        assert "sample" in json.loads(self._process.stdout.readline())

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """The exit code."""
        _, errors = self._process.communicate(timeout=60)
        if errors.strip():
            self.error = json.loads(errors.splitlines()[-1])["error"]
        return self._process.returncode


def test_interrupting_goes_back(running: Project) -> None:
    """Ctrl-C, and `--abort` from elsewhere."""
    before = running.pids()
    release(running, GOOD)
    with Command(running) as command:
        command.observes()
        assert len(running.pids()) == len(before) + 1
        command.signal(signal.SIGINT)
        assert command.end() != 0
    assert command.error["code"] == "interrupted"
    assert_as_before(running, before)
    with Command(running) as command:
        command.observes()
        assert asyncio.run(abort(running.layout, running.settings, "greeting")) == 1
        assert command.end() != 0
    assert command.error["code"] == "interrupted"
    assert_as_before(running, before)


@pytest.mark.chaos
@pytest.mark.parametrize("remedy", ["abort", pytest.param("up", marks=pytest.mark.long)])
def test_a_killed_command_leaves_a_canary_without_calls(project: Project, remedy: str) -> None:
    """Its share ends with the lease, `mesh ps` shows it, and `--abort`, the next roll or `mesh up` removes it."""
    running = project
    running.up()
    before = running.pids()
    release(running, GOOD)
    with load(f"{running.url}/hello/you", 100) as asked:
        with Command(running) as command:
            command.observes()
            until(lambda: asked.words()["Hi"])
            command.signal(signal.SIGKILL)
        killed = asked.at_s
        until(lambda: asked.at_s > killed + 11.5)
        silent = asked.at_s
        until(lambda: asked.at_s > silent + 1.0)
    assert set(asked.words(silent)) == {"Hello"}
    assert asked.words(killed)["Hi"]
    shown = json.loads(running.command("mesh", "ps", "--json").stdout)
    shares = [each["meta"]["mesh.share"] for each in shown["instances"] if "mesh.share" in each.get("meta", {})]
    assert shares == ["0"]
    assert "canary 0 %" in running.command("mesh", "ps").stdout
    if remedy == "abort":
        assert json.loads(running.command("mesh", "roll", "greeting", "--abort", "--json").stdout) == {"ended": 1}
    else:
        running.up()
    assert running.pids() == before


@pytest.mark.long
@pytest.mark.chaos
def test_the_releases_of_a_host_take_turns(releases: Releases) -> None:
    """The canary runs from the directory of the new release, and so do all workers once it is promoted. A roll that is
    aborted while the regular workers are replaced goes back with them."""
    own = releases.hubs
    pids = releases.project.pids()

    def places() -> set[str]:
        found = releases.project.pids().items()
        return {Path(os.readlink(f"/proc/{pid}/cwd")).name for name, pid in found if name.startswith("greeting:")}

    async def canary(aborted: bool = False) -> Promoted:
        settings = load_settings(releases.root / "current/mesh.toml")
        files = StateFiles(Roster(releases.layout, settings))

        def look(line: CanarySample) -> None:
            if aborted and line.share == PLAN.shares[-1] and line.verdict == "promote":
                files.ask_to_abort()

        return await roll_canary(releases.layout, settings, "greeting", PLAN, report=look)

    with load(f"{releases.project.url}/hello/you") as asked:
        releases.make("2", {"mesh": {"hubs": own}}, code=BAD)
        with pytest.raises(CanaryRejected):
            asyncio.run(canary())
        assert (places(), releases.project.pids()) == ({"1"}, pids)
        releases.make("3", {"mesh": {"hubs": own}}, code=GOOD)
        failed = asked.statuses[500]
        with pytest.raises(RollInterrupted):
            asyncio.run(canary(aborted=True))
        assert places() == {"1"}
        assert asyncio.run(canary()).replaced == 1
    assert places() == {"3"}
    assert asked.statuses[500] == failed
