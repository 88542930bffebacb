"""A release that cannot be imported changes nothing; one that answers with errors goes back."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from supervision_project import SERVICE, Project
from supervision_releases import BROKEN, Releases

from mesh.deploy.error_gate import ErrorGate, ErrorsRise, Limits
from mesh.deploy.roll import RollFailed, roll
from mesh.discovery.record import Instance

FAILING = SERVICE.replace('return f"Hello, {name}!"', 'raise RuntimeError("it is bad")')
DECLARED = SERVICE.replace(
    "class Greeting",
    'class NoSuchName(mesh.ServiceError):\n    code = "no_such_name"\n    status = 404\n\n\nclass Greeting',
).replace('return f"Hello, {name}!"', 'raise NoSuchName("no such name")')

#: It ends as soon as it has seen enough.
LIMITS = Limits(seconds=10.0, ratio=0.05, calls=5)


@contextmanager
def traffic(project: Project, begins: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Requests, one after the other, all the while, from the moment on at which `begins` holds."""
    over = threading.Event()

    def ask() -> None:
        while not begins() and not over.wait(0.01):
            pass
        while not over.wait(0.01):
            try:
                urllib.request.urlopen(f"{project.url}/hello/you", timeout=10).read()
            except urllib.error.HTTPError as exc:
                exc.close()
            except OSError:
                pass

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_release_that_answers_with_errors_goes_back(releases: Releases) -> None:
    """It is ready in every other respect. One whose errors are declared answers is as good as any."""
    own = releases.hubs
    releases.make("2", {"mesh": {"hubs": own}}, code=FAILING)
    with traffic(releases.project):
        with pytest.raises(RollFailed) as caught:
            releases.roll(LIMITS)
        assert isinstance(caught.value.__cause__, ErrorsRise)
        details = caught.value.details
        assert (details["service"], details["undone"]) == ("greeting", True)
        assert details["calls"] >= LIMITS.calls
        # All calls of the new release fail; workers of the old one may have answered the new gateway's first requests.
        assert LIMITS.ratio * details["calls"] < details["failed"] <= details["calls"]
        releases.lead("1")
        releases.up()
        assert releases.places == {"1"}
        releases.make("3", {"mesh": {"hubs": own}}, code=DECLARED)
        releases.roll(Limits(seconds=1.0))
    assert releases.places == {"3"}


class Told:
    """Stands in for the processes of a roll: a worker with these errors among so many calls, since the roll began."""

    def __init__(self, count: int, **errors: int) -> None:
        self.node = self
        self._began = False
        self._sample = {"side": "http", "service": "greeting", "method": "hello", "count": count, "errors": errors}

    def instances(self) -> dict[int, list[Instance]]:
        there, self._began = self._began, True
        return {1: [Instance("greeting", "greeting-1", 1, worker="one")]} if there else {}

    async def call(self, *_: object, **__: object) -> dict[str, Any]:
        return {"methods": [self._sample]}


@pytest.mark.parametrize(
    ("told", "count"),
    [
        (Told(10, handler_error=8, unavailable=2), (8, 8)),
        (Told(30, handler_error=10, draining=3, overloaded=4, cancelled=3), (20, 10)),
    ],
)
async def test_requests_that_no_instance_ran_are_not_counted(told: Told, count: tuple[int, int]) -> None:
    """A gateway that has just started may refuse some; they say nothing about the release."""
    gate = ErrorGate(cast(Any, told), LIMITS)
    await gate.begin()
    with pytest.raises(ErrorsRise) as caught:
        await gate.check()
    assert (caught.value.details["calls"], caught.value.details["failed"]) == count


async def test_a_release_whose_requests_were_all_refused_is_not_judged() -> None:
    gate = ErrorGate(cast(Any, Told(10, unavailable=10)), LIMITS)
    await gate.begin()
    assert await gate.check() == {}


def test_what_cannot_be_imported_is_told_before_anything_is_replaced(project: Project) -> None:
    """Each service that could not begin is named; `--check` alone changes nothing in any case."""
    project.write(greetings=1)
    project.up()
    before = project.pids()
    assert project.command("mesh", "roll", "--check").returncode == 0
    (project.root / "svc.py").write_text(BROKEN)
    done = project.command("mesh", "roll", "--json", check=False)
    assert done.returncode != 0
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (error["code"], error["details"]["services"]) == ("preflight_failed", ["greeting"])
    assert project.pids() == before


def test_code_that_was_changed_in_its_place_and_answers_with_errors_is_stopped(project: Project) -> None:
    """There is no earlier code to go back to: what was not replaced runs on, and no copy of the new code does."""
    project.up()
    before = project.pids()
    (project.root / "svc.py").write_text(FAILING)
    # Not before a copy was told to leave: the spare one is not judged before.
    log = project.root / "logs" / "greeting_0.log"
    with pytest.raises(RollFailed) as caught, traffic(project, lambda: '"worker.draining"' in log.read_text()):
        asyncio.run(roll(project.layout, project.settings, ["greeting"], settle_s=1.0, gate=LIMITS))
    assert isinstance(caught.value.__cause__, ErrorsRise)
    assert caught.value.details["service"] == "greeting"
    states = project.states()
    assert "greeting:greeting_2" not in states
    assert sorted(states[f"greeting:greeting_{n}"] for n in range(2)) == ["RUNNING", "STOPPED"]
    runs = next(n for n in range(2) if states[f"greeting:greeting_{n}"] == "RUNNING")
    assert project.pids()[f"greeting:greeting_{runs}"] == before[f"greeting:greeting_{runs}"]
    for _ in range(10):
        assert urllib.request.urlopen(f"{project.url}/hello/you", timeout=10).status == 200
    (project.root / "svc.py").write_text(SERVICE)
    project.up()
    assert sorted(project.pids()) == sorted(before)
