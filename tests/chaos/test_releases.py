"""A new release goes live under load and nobody notices; a bad one goes back by itself, and nobody notices either."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import LONG, Set, project, seconds

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("wrk"), pytest.mark.timeout(240)]

BAD = {
    "broken": "raise RuntimeError('this release is broken')\n",
    "never": """\
import asyncio
import services.greeting


class Greeting(services.greeting.Greeting):
    name = "greeting"

    async def started(self):
        print("waiting for a database that is not there", flush=True)
        await asyncio.Event().wait()
""",
}


@pytest.fixture(scope="module")
def released() -> Iterator[Set]:
    """Two greetings, one textstats, two gateways."""
    with project({"greeting": 2, "thumbnails": 0, "textstats": 1}) as made:
        yield made


def settle(made: Set) -> None:
    """The load is under way."""
    made.get("/hello/ujun")
    time.sleep(0.5)


def test_rolling_everything_under_load_is_not_noticed(released: Set) -> None:
    """Every worker and every gateway is another process afterwards; no non-2xx, no socket error."""
    before = released.pids()
    text = (released.root / "mesh.toml").read_text()
    greeting = 'class = "services.greeting:Greeting"\n'
    (released.root / "mesh.toml").write_text(text.replace(greeting, greeting + 'environment = { RELEASE = "2" }\n'))
    with released.load("/hello/ujun", 200) as load:
        settle(released)
        for _ in range(3 if LONG else 1):
            told = released.run("mesh", "roll", timeout=120)
        result = load.end()
    assert "greeting: 2 replaced in" in told.stderr
    assert "gateway: 2 replaced in" in told.stderr
    after = released.pids()
    assert sorted(after) == sorted(before)
    assert {name for name in before if before[name] == after[name]} == {"hub", "store", "watch"}
    result.assert_spotless()
    released.run("supervisorctl", "update")
    assert released.pids() == after


@pytest.mark.parametrize("bad", sorted(BAD))
def test_a_bad_release_goes_back_by_itself(released: Set, bad: str) -> None:
    """Exit code 1, the reason and the end of its log in the last lines, the earlier release everywhere, no failed
    request."""
    before = released.pids()
    good = (released.root / "mesh.toml").read_text()
    (released.root / f"{bad}.py").write_text(BAD[bad])
    (released.root / "mesh.toml").write_text(good.replace("services.greeting:Greeting", f"{bad}:Greeting"))
    try:
        with released.load("/hello/ujun", 100) as load:
            settle(released)
            done = released.run("mesh", "roll", "--timeout", "4", check=False)
            result = load.end()
    finally:
        (released.root / "mesh.toml").write_text(good)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("mesh: greeting:greeting_2 does not become ready: "), done.stderr
    assert lines[1] == "      the roll was stopped; greeting runs as before"
    said = {"broken": "RuntimeError: this release is broken", "never": "waiting for a database that is not there"}
    assert any(said[bad] in line for line in lines[-8:]), done.stderr
    result.assert_spotless()
    assert released.pids() == before


def test_a_release_that_fails_half_way_goes_back_whole(released: Set) -> None:
    """One service is replaced and good, then the next is not: the first goes back, too."""
    good = (released.root / "mesh.toml").read_text()
    (released.root / "mesh.toml").write_text(
        good.replace('RELEASE = "2"', 'RELEASE = "3"').replace("services.textstats:TextStats", "broken:TextStats")
    )
    (released.root / "broken.py").write_text(BAD["broken"])
    try:
        with released.load("/hello/ujun", 100) as load:
            settle(released)
            done = released.run("mesh", "roll", "greeting", "textstats", check=False, timeout=120)
            result = load.end()
    finally:
        (released.root / "mesh.toml").write_text(good)
    assert done.returncode == 1
    assert "the roll was stopped; textstats runs as before; greeting runs as before" in done.stderr
    result.assert_spotless()
    # Nothing of the bad one is left in what runs, and nothing is left to do.
    assert json.loads(released.run("mesh", "up", "--json").stdout)["earlier"] == []


def test_supervisorctl_and_mesh_in_any_order_do_not_contradict_each_other(released: Set) -> None:
    """After each of many random commands both name the same processes, and in the end all is well."""
    rng = random.Random(4)
    commands = [
        ("supervisorctl", "stop", "greeting:greeting_0"),
        ("supervisorctl", "stop", "greeting:*"),
        ("supervisorctl", "start", "greeting:*"),
        ("supervisorctl", "restart", "greeting:*"),
        ("supervisorctl", "restart", "gateway:gateway_1"),
        ("supervisorctl", "update"),
        ("supervisorctl", "remove", "greeting"),
        ("supervisorctl", "add", "greeting"),
        ("mesh", "scale", "greeting=3"),
        ("mesh", "scale", "greeting=1"),
        ("mesh", "scale", "textstats=2", "gateway=1"),
        ("mesh", "scale", "greeting=declared", "gateway=declared", "textstats=declared"),
        ("mesh", "roll", "textstats"),
        ("mesh", "up"),
        ("kill", "greeting"),
    ]
    begun = time.monotonic()
    done = []
    while time.monotonic() - begun < seconds(14, 120):
        words = rng.choice(commands)
        done.append(" ".join(words))
        if words[0] == "kill":
            pids = [pid for name, pid in released.pids().items() if name.startswith(words[1])]
            if pids:
                os.kill(rng.choice(pids), signal.SIGKILL)
        else:
            told = released.run(*words, check=False)
            assert "Traceback" not in told.stderr, (done, told.stderr)
            assert "bug in mesh" not in told.stderr, (done, told.stderr)
        agree(released, done)
    released.run("mesh", "scale", "greeting=declared", "gateway=declared", "textstats=declared")
    released.run("mesh", "up")
    assert sorted(released.pids()) == [
        "gateway:gateway_0",
        "gateway:gateway_1",
        "greeting:greeting_0",
        "greeting:greeting_1",
        "hub",
        "store",
        "textstats:textstats_0",
        "watch",
    ], done
    assert released.get("/hello/ujun") == "Hello, ujun!"


def agree(made: Set, done: list[str]) -> None:
    """What supervisorctl lists is what mesh lists, and what the program files say is what supervisord has."""
    by_mesh = {each["name"] for each in json.loads(made.run("mesh", "ps", "--json", check=False).stdout)["processes"]}
    lines = made.run("supervisorctl", "status", check=False).stdout.splitlines()
    assert {line.split()[0] for line in lines} == by_mesh, done
    removed = not any(name.startswith("greeting:") for name in by_mesh)
    said = made.run("supervisorctl", "reread").stdout
    assert "changed" not in said, done
    assert "available" not in said or removed, (done, said)
    named = {Path(path).stem for path in (made.root / "run/programs").glob("*_*.conf")}
    known = {name.partition(":")[2] for name in by_mesh if name.startswith(("greeting:", "textstats:"))}
    assert known == named or removed, done
