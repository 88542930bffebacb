"""`supervisorctl`, `mesh` and kill -9 in any order: what each of them says is what truly runs."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from mesh.supervisord import process_tree

from .conftest import LONG, Set, project, seconds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 if LONG else 90)]

#: Each is another walk.
SEEDS = range(1, 6) if LONG else range(1, 2)
#: After a command everything comes to rest within this: a process that was killed too often waits a second.
REST_S = 15.0

DECLARED = {"greeting": 2, "textstats": 1, "gateway": 1}
FIXED = ["hub", "store", "watch"]


class Step(NamedTuple):
    """One command line, and what must hold once it succeeded."""

    words: tuple[str, ...]
    running: Mapping[str, int] = {}
    stopped: tuple[str, ...] = ()
    all_runs: bool = False

    def __str__(self) -> str:
        return " ".join(self.words)


STEPS = [
    Step(("supervisorctl", "stop", "greeting:greeting_0"), stopped=("greeting:greeting_0",)),
    Step(("supervisorctl", "stop", "greeting:*"), running={"greeting": 0}),
    Step(("supervisorctl", "start", "greeting:*")),
    Step(("supervisorctl", "restart", "greeting:*")),
    Step(("supervisorctl", "restart", "gateway:gateway_0")),
    Step(("supervisorctl", "restart", "store")),
    Step(("supervisorctl", "stop", "hub"), stopped=("hub",)),
    Step(("supervisorctl", "stop", "watch"), stopped=("watch",)),
    Step(("supervisorctl", "update")),
    Step(("supervisorctl", "reread")),
    Step(("supervisorctl", "remove", "textstats")),
    Step(("supervisorctl", "add", "textstats")),
    Step(("mesh", "scale", "greeting=3"), running={"greeting": 3}),
    Step(("mesh", "scale", "greeting=1"), running={"greeting": 1}),
    Step(("mesh", "scale", "textstats=2", "gateway=2"), running={"textstats": 2, "gateway": 2}),
    Step(("mesh", "scale", "textstats=0"), running={"textstats": 0}),
    Step(("mesh", "scale", *(f"{name}=declared" for name in DECLARED)), running=DECLARED),
    Step(("mesh", "roll", "--settle", "0.2", "textstats")),
    Step(("mesh", "roll", "--settle", "0.2", "greeting", "hub")),
    Step(("mesh", "roll", "--settle", "0.2", "store", "gateway")),
    Step(("mesh", "up"), all_runs=True),
    Step(("mesh", "up"), all_runs=True),
    Step(("kill", "greeting")),
    Step(("kill", "gateway")),
    Step(("kill", "store")),
    Step(("kill", "")),
]


@pytest.fixture(scope="module")
def mixed() -> Iterator[Set]:
    """Two greetings, one textstats, one gateway."""
    with project({"greeting": 2, "textstats": 1}, gateways=1) as made:
        yield made


@pytest.mark.parametrize("seed", SEEDS)
def test_neither_contradicts_the_other(mixed: Set, seed: int) -> None:
    """After each command both name the same processes in the same states, and those are what the kernel has; what a
    command said that it did is done; and in the end `mesh up` makes it what mesh.toml says."""
    rng = random.Random(seed)
    begun = time.monotonic()
    done: list[str] = []
    while time.monotonic() - begun < seconds(12, 60):
        step = rng.choice(STEPS)
        done.append(str(step))
        take(mixed, step, rng, done)
    for words in (("mesh", "up"), ("mesh", "scale", *(f"{name}=declared" for name in DECLARED)), ("mesh", "up")):
        done.append(" ".join(words))
        mixed.run(*words)
    expected = [f"{name}:{name}_{number}" for name, count in DECLARED.items() for number in range(count)]
    assert sorted(mixed.pids()) == sorted([*expected, *FIXED]), done
    assert mixed.get("/hello/ujun") == "Hello, ujun!"
    # Nothing of any roll is left behind.
    assert not list((mixed.root / "run/programs").glob("*.pin.conf")), done


def take(made: Set, step: Step, rng: random.Random, done: list[str]) -> None:
    """Do one step, and look."""
    if step.words[0] == "kill":
        pids = [pid for name, pid in made.pids().items() if name.startswith(step.words[1])]
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)
        at_rest(made, done)
        return
    told = made.run(*step.words, check=False)
    assert "Traceback" not in told.stderr, (done, told.stderr)
    assert "bug in mesh" not in told.stderr, (done, told.stderr)
    done[-1] += f" → {told.returncode}"
    if step.words[0] == "mesh" and told.returncode:
        done[-1] += f" {told.stderr.splitlines()[:2]}"
    states = at_rest(made, done)
    # supervisorctl ends with 0 whatever it was told by supervisord.
    if told.returncode or "ERROR" in told.stdout:
        return
    for name, count in step.running.items():
        there = [state for process, state in states.items() if process.startswith(f"{name}:")]
        assert there.count("RUNNING") == count, (done, states)
    for process in step.stopped:
        assert states.get(process, "STOPPED") == "STOPPED", (done, states)
    if step.all_runs:
        assert set(states.values()) == {"RUNNING"}, (done, states)


def at_rest(made: Set, done: list[str]) -> dict[str, str]:
    """Wait until all who can be asked say the same, and nothing changes; then: each process's state."""
    end = time.monotonic() + REST_S
    while why := (seen := Seen(made)).contradiction():
        assert time.monotonic() < end, (done, why, seen.by_supervisorctl, seen.by_mesh)
        time.sleep(0.1)
    return {name: state for name, (state, _) in seen.by_supervisorctl.items()}


class Seen:
    """One look at everything that can be asked."""

    def __init__(self, made: Set) -> None:
        self.made = made
        with ThreadPoolExecutor() as threads:
            # The exit codes tell that something does not run.
            looks: list[Callable[[], str]] = [
                lambda: made.run("supervisorctl", "status", check=False).stdout,
                lambda: made.run("mesh", "ps", "--json", check=False).stdout,
                lambda: made.run("supervisorctl", "reread").stdout,
            ]
            status, ps, self.reread = threads.map(lambda look: look(), looks)
        found = json.loads(ps)
        self.by_mesh = {each["name"]: (each["state"], each["pid"]) for each in found["processes"]}
        self.instances = {each["pid"] for each in found["instances"]}
        self.hub = any(each["view"] in ("learned", "learning") for each in found["hubs"])
        self.by_supervisorctl = dict(map(_status, status.splitlines()))

    def contradiction(self) -> str:
        """What does not fit together, or has not come to rest; "" when all does."""
        if self.by_mesh != self.by_supervisorctl:
            return "mesh ps and supervisorctl status differ"
        moving = {name for name, (state, _) in self.by_mesh.items() if state not in ("RUNNING", "STOPPED")}
        if moving:
            return f"{sorted(moving)} are on their way"
        for name, (state, pid) in self.by_mesh.items():
            if bool(pid) != (state == "RUNNING") or (pid and not process_tree.alive(pid)):
                return f"{name} is {state}, and the kernel does not think so"
        pids = {pid for _, pid in self.by_mesh.values() if pid}
        supervisord = int((self.made.root / "run/supervisord.pid").read_text())
        members = process_tree.members(f"unix://{self.made.root.resolve()}/run/supervisor.sock")
        children = {each.pid for each in members if process_tree.parent(each.pid) == supervisord}
        if children != pids:
            return f"supervisord's children are {children}, told are {pids}"
        if self.hub:
            registered = {
                pid for name, (_, pid) in self.by_mesh.items() if pid and name not in ("hub", "watch", "autoscale")
            }
            if self.instances != registered:
                return f"in the registry are {self.instances}, told are {registered}"
        return self._files()

    def _files(self) -> str:
        """A group that supervisorctl removed has its files, so that `add` finds it; all others are what they say."""
        groups = {name.partition(":")[0] for name in self.by_mesh}
        if "changed" in self.reread or "disappeared" in self.reread:
            return f"supervisord's files are not what it runs: {self.reread}"
        named = {
            path.stem
            for path in Path(self.made.root / "run/programs").glob("*_*.conf")
            if path.stem.partition("_")[0] in groups
        }
        known = {name.partition(":")[2] for name in self.by_mesh if name.startswith(("greeting:", "textstats:"))}
        return "" if named == known else f"program files are {named}, told are {known}"


def _status(line: str) -> tuple[str, tuple[str, int]]:
    """`greeting:greeting_0   RUNNING   pid 7, uptime 0:00:01`"""
    name, state, *rest = line.split()
    return name, (state, int(rest[1].rstrip(",")) if rest[:1] == ["pid"] else 0)
