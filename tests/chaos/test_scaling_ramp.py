"""The number of workers follows a real load on real processors: up with it, down after it, and still in between."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mesh

from .conftest import LONG, Set, project, seconds
from .durable_set import tell

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

# Each call computes for so long by the wall's clock. On a machine that others use as well it has a processor for a part
# of that time, and waits for one in the rest, which counts alike: what others take is not what is judged here.
SERVICE = """\
import time

import mesh
from mesh import rpc


class Burning(mesh.Service):
    @rpc(idempotent=True)
    async def burn(self, seconds: float) -> int:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        return 1
"""

# A third of a core for each worker. The low load takes an eighth of a core, ten times of it more than one worker has.
SETTINGS = """
[services.burning]
class = "burning:Burning"
minimum = 1
maximum = 6
target_cpu = 0.3
[autoscale]
every = "500ms"
up_after = "1s"
down_after = "4s"
cooldown = "1500ms"
"""

CALL_S = 0.003
#: Under the low load one worker is enough, where this machine has nothing else to do.
QUIET = 1 if LONG else 2
LOW = 40


@pytest.fixture
def burning(tmp_path: Path) -> Iterator[Set]:
    def write(root: Path) -> None:
        (root / "burning.py").write_text(SERVICE)

    with project({"greeting": 1}, SETTINGS, gateways=1, before=write) as made:
        yield made


class Load:
    """Calls at a rate that can be changed, sent on time whether answers come or not."""

    def __init__(self, node: mesh.Node, rate: int, target: str, *args: object) -> None:
        self.rate = rate
        self._target = target
        self._args = args
        self.took: list[tuple[float, float]] = []
        self.failed: list[BaseException] = []
        self._node = node
        self._calls: set[asyncio.Task[None]] = set()
        self._over = False
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        due = time.monotonic()
        while not self._over:
            due = max(due + 1 / self.rate, time.monotonic() - 0.5)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            call = asyncio.create_task(self._call())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self) -> None:
        began = time.monotonic()
        try:
            await self._node.call(self._target, *self._args, timeout=60.0)
        except mesh.MeshError as exc:
            self.failed.append(exc)
        self.took.append((began, time.monotonic() - began))

    async def end(self) -> None:
        self._over = True
        await self._task
        await asyncio.gather(*self._calls)

    def p99(self, begun: float, ended: float) -> float:
        return statistics.quantiles([took for at, took in self.took if begun <= at < ended], n=100)[98]

    @property
    def under_way(self) -> int:
        return len(self._calls)

    def told(self) -> str:
        return f"{len(self.took)} answered, {len(self.failed)} failed, {self.under_way} under way"


async def test_replicas_follow_a_ramp_up_and_down(
    burning: Set, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1× → 10× → 1× of a service that only computes: 1 → 4 and more → 1, no call fails, and one turn in all."""
    monkeypatch.chdir(burning.root)
    begun = time.monotonic()
    seen: list[int] = []
    story: list[str] = []

    def workers() -> int:
        count = sum(name.startswith("burning:") for name in burning.pids())
        if not seen or seen[-1] != count:
            seen.append(count)
            story.append(f"{time.monotonic() - begun:.0f} s: {count}")
        return count

    async def until(holds: Callable[[], bool], limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < end, (seen, load.told(), (burning.root / "logs/autoscale.log").read_text())
            await asyncio.sleep(0.1)

    async with mesh.connect() as node:
        load = Load(node, LOW, "burning.burn", CALL_S)
        # What this machine makes of calls that ask for nothing: nobody's p99 can be better than theirs.
        idle = Load(node, LOW, "greeting.hello", "you")
        await asyncio.sleep(seconds(3, 10))  # long enough to have scaled, if it wanted to
        assert workers() <= QUIET
        quiet = load.p99(begun, time.monotonic())
        load.rate, risen = 10 * LOW, time.monotonic()
        await until(lambda: workers() >= 4, 40)
        if LONG:
            # What had piled up on the first ones is answered by them; from then on nobody waits.
            await until(lambda: load.under_way < 30, 20)
            scaled = time.monotonic()
            while time.monotonic() < scaled + 20:
                assert workers() >= 4
                await asyncio.sleep(0.1)
            ended = time.monotonic() - 0.5
            before, after, least = load.p99(risen, scaled), load.p99(scaled, ended), idle.p99(scaled, ended)
            story.append(
                f"p99 at 1× {quiet * 1000:.0f} ms, while scaling {before * 1000:.0f}, scaled {after * 1000:.0f}, "
                f"of calls that do nothing {least * 1000:.0f}"
            )
            assert after < max(0.5, 5 * least), (load.told(), story)
        story.append(f"{time.monotonic() - begun:.0f} s: back to 1×")
        load.rate = LOW
        await until(lambda: workers() <= QUIET, 40)
        await load.end()
        await idle.end()
    assert not load.failed
    steps = [b - a for a, b in itertools.pairwise(seen)]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(steps))
    assert turns <= 1, story
    tell(capsys, f"workers: {', '.join(story)}; {turns} turn; {load.told()}")
    said = (burning.root / "logs/autoscale.log").read_text()
    assert re.search(r'"why":"cpu [0-9.]+ of 0.3 each → [0-9.]+; up from 1 to 2"', said), said


def test_a_dry_run_explains_itself_and_changes_nothing(burning: Set) -> None:
    """What was seen, what is wanted, and why it waits; for people and for programs."""
    said = burning.run("mesh", "autoscale", "--dry-run", "--looks", "2").stdout
    assert re.search(r"burning: 1  cpu [0-9.]+ of 0.3 each → [0-9.]+; stays 1\n", said), said
    line = burning.run("mesh", "autoscale", "--dry-run", "--looks", "1", "--json").stdout
    assert json.loads(line)["service"] == "burning"
    assert json.loads(line)["advised"] == 1
    # Nothing follows the load any more when somebody says so.
    burning.run("mesh", "scale", "autoscale=0")
    assert "autoscale" not in burning.pids()
