"""A new release goes live under load and nobody notices; a bad one goes back by itself, and nobody notices either."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import mesh

from .conftest import LONG, Load
from .durable_set import settled, tell
from .side_by_side import SHOP, Releases, side_by_side

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("wrk"), pytest.mark.timeout(240)]

ALL = [
    "gateway:gateway_0",
    "gateway:gateway_1",
    "hub",
    "ledger:ledger_0",
    "shop:shop_0",
    "shop:shop_1",
    "store",
    "watch",
]

#: `mesh roll` as people type it, and shorter where there are many tests.
SETTLE = () if LONG else ("--settle", "0.3")

BAD = {
    "broken": ("raise RuntimeError('this release is broken')\n", "RuntimeError: this release is broken"),
    "never": (
        SHOP.replace("import mesh\n", "import asyncio\n\nimport mesh\n", 1)
        + """
    async def started(self):
        print("waiting for a database that is not there", flush=True)
        await asyncio.Event().wait()
""",
        "waiting for a database that is not there",
    ),
}


@pytest.fixture(scope="module")
def released() -> Iterator[Releases]:
    with side_by_side() as made:
        yield made


class Deferred:
    """Tasks put off all the while, one after the other.

    Attributes:
        entries: those that were confirmed.
        slowest_s: how long the slowest of them took to be.
    """

    def __init__(self, made: Releases, prefix: str) -> None:
        self.entries: list[str] = []
        self.slowest_s = 0.0
        self._made = made
        self._prefix = prefix
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            asyncio.run(self._defer())
        except BaseException as exc:  # told by the test's own thread
            self._error = exc

    async def _defer(self) -> None:
        async with mesh.connect(path=self._made.root / "current/mesh.toml", wait_s=10.0) as n:
            while not self._over.is_set():
                entry = f"{self._prefix}-{len(self.entries)}"
                began = time.monotonic()
                await n.defer("ledger.book", entry)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.entries.append(entry)
                await asyncio.sleep(0.005)
            await settled(n, "ledger")
            for each in self.entries:
                assert (await n.state("ledger").get(each)).value is not None, f"{each} was confirmed and never ran"
            self.sums = {name: (await n.state("sums").get(name)).value for name in ("booked", "heard")}
            # A second run of the same entry ends there.
            self.dead = [queue.dead for queue in await n.durable.engines.of("queues").leases.queues(timeout_s=10.0)]

    def __enter__(self) -> Deferred:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


@contextmanager
def under_load(made: Releases) -> Iterator[list[Load]]:
    """wrk while the block runs; what it saw is in the list afterwards."""
    seen: list[Load] = []
    with made.load("/release", 200, connections=16) as load:
        made.get("/release")
        time.sleep(0.5)
        yield seen
        seen.append(load.end())


@contextmanager
def leading(made: Releases, name: str) -> Iterator[None]:
    """`current` leads there for as long; then back to where it led."""
    before = made.get("/release")
    made.lead(name)
    try:
        yield
    finally:
        made.lead(before)


def test_a_new_release_of_everything_is_not_noticed(released: Releases, capsys: pytest.CaptureFixture[str]) -> None:
    """Code and directory are others afterwards, of every process: no non-2xx, no socket error, each task exactly
    once."""
    booked = 0
    for name in ("two", "three", "four") if LONG else ("two",):
        released.make(name)
        before = released.pids()
        with Deferred(released, name) as deferred, under_load(released) as seen:
            released.lead(name)
            began = time.monotonic()
            done = released.run("mesh", "roll", "--json", *SETTLE)
            took_s = time.monotonic() - began
        after = released.pids()
        assert sorted(after) == sorted(before) == ALL
        assert not [each for each in before if before[each] == after[each]]
        assert released.releases() == dict.fromkeys(ALL, name)
        assert released.get("/release") == name
        seen[0].assert_spotless()
        booked += len(deferred.entries)
        assert deferred.sums == {"booked": booked, "heard": booked}
        assert not any(deferred.dead)
        counts = {each["name"]: each["replaced"] for each in json.loads(done.stdout)}
        assert counts == {"hub": 1, "store": 1, "shop": 2, "ledger": 1, "gateway": 2, "watch": 1}
        assert released.run("supervisorctl", "update").stdout == ""
        assert released.pids() == after
        tell(
            capsys,
            f"rolled in {took_s:.1f} s; {seen[0].requests} requests; {len(deferred.entries)} tasks, the slowest "
            f"confirmed after {deferred.slowest_s * 1000:.0f} ms",
        )


@pytest.mark.parametrize("bad", sorted(BAD))
def test_a_bad_release_goes_back_by_itself(released: Releases, bad: str) -> None:
    """Exit code 1, the reason and the end of its log in the last lines, the earlier release everywhere, no failed
    request. One that cannot be imported would not even be begun; here it fails where imports are not tried first."""
    before = released.releases()
    code, said = BAD[bad]
    released.make(bad, shop=code)
    with under_load(released) as seen, leading(released, bad):
        # One is of a roll of everything, the other of the service alone.
        names = ("shop",) if bad == "never" else ()
        done = released.run("mesh", "roll", "--no-preflight", "--timeout", "4", *SETTLE, *names, check=False)
        assert released.releases() == before
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("mesh: "))
    assert lines[first].startswith("mesh: shop:shop_2 does not become ready: "), done.stderr
    assert lines[first + 1].startswith("      the roll was aborted; "), done.stderr
    went = lines[first + 1].removeprefix("      the roll was aborted; ").split("; ")
    assert {f"{name} runs as before" for name in names or ("hub", "store", "shop")} <= set(went)
    assert any(said in line for line in lines[-8:]), done.stderr
    seen[0].assert_spotless()
    # Nothing of the bad one is left in what runs, and nothing is left to do.
    assert json.loads(released.run("mesh", "up", "--json").stdout)["earlier"] == []
    assert not list((released.root / "run/programs").glob("*.pin.conf"))
    assert "available" not in released.run("supervisorctl", "reread").stdout


def test_a_release_that_cannot_be_imported_is_not_begun(released: Releases) -> None:
    """Exit code 1, the reason; every process is the one that ran before, and no request failed."""
    before = released.pids()
    code, said = BAD["broken"]
    released.make("unread", shop=code)
    with under_load(released) as seen, leading(released, "unread"):
        done = released.run("mesh", "roll", *SETTLE, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert released.pids() == before
    seen[0].assert_spotless()


@pytest.mark.parametrize("program", ["hub", "store"])
def test_a_bad_program_of_supervisord_conf_goes_back(released: Releases, program: str) -> None:
    """A hub that does not start is the earlier one again; for a store that does not, the old one never leaves."""
    before = released.pids()
    name = f"no-{program}"
    released.make(name, conf=(f"command=mesh {program}", f"command=mesh {program} --no-such-option"))
    with under_load(released) as seen, leading(released, name):
        done = released.run("mesh", "roll", program, *SETTLE, check=False)
        assert released.releases() == dict.fromkeys(ALL, released.get("/release"))
    assert done.returncode == 1
    assert f"the roll was aborted; {program} runs as before" in done.stderr
    assert "--no-such-option" in done.stderr.splitlines()[-1]
    seen[0].assert_spotless()
    changed = {each for each, pid in released.pids().items() if before[each] != pid}
    assert changed == ({"hub"} if program == "hub" else set())
    assert json.loads(released.run("mesh", "up", "--json").stdout)["earlier"] == []
