"""A worker that is blocked, does not start, or is short of memory says so and ends to be replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from worker_running import HERE, worker

import mesh
from mesh.policy.liveness import EXIT_BLOCKED, EXIT_MEMORY, EXIT_START
from mesh.testing import Mesh, no_leaks

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


async def lines(child: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    """What a worker that has ended, or is about to, has logged."""
    assert child.stderr is not None
    text = (await child.stderr.read()).decode()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


async def test_a_blocked_loop_ends_the_worker_with_its_stack(tmp_path):
    """The caller's link is lost soon after `liveness`, and an idempotent call is answered by the other worker."""
    settings = {"MESH_WORKER_LIVENESS": "400ms", "MESH_LOG_FORMAT": "json"}
    async with (
        Mesh(transport="ipc") as m,
        worker(m, "worker_hangs:Hangs", **settings) as one,
        worker(m, "worker_hangs:Hangs", **settings) as two,
    ):
        async with asyncio.timeout(20):
            while len(m.node.instances("hangs")) < 2:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.01)
        victim = await m.call("hangs.pid")
        instance = next(each for each in m.node.instances("hangs") if each.pid == victim)
        blocked = m.call("hangs.block", 30.0, instance=instance.id, timeout=20.0)
        asked = [m.call("hangs.pid", timeout=20.0) for _ in range(8)]
        with pytest.raises(mesh.LinkLost):
            await blocked
        other = two if victim == one.pid else one
        assert set(await asyncio.gather(*asked)) <= {other.pid, victim}
        child = one if victim == one.pid else two
        assert await child.wait() == EXIT_BLOCKED
        (line,) = [each for each in await lines(child) if each.get("reason") == "blocked"]
        assert "worker_hangs.py" in line["where"]
        assert line["where"].endswith("in block")
        assert "time.sleep(seconds)" in line["stack"]
        assert line["blocked_s"] >= 0.4


@pytest.mark.parametrize(("where", "told"), [("started", "in started"), ("blocked", "in started"), ("import", "")])
async def test_a_start_that_hangs_ends_the_worker(where: str, told: str):
    """Waiting, blocking, or at the import of its module."""
    settings = {"MESH_WORKER_START_TIMEOUT": "1s", "MESH_LOG_FORMAT": "json", "HANGS": where}
    async with Mesh(transport="ipc") as m, worker(m, "worker_hangs:Hangs", **settings) as child:
        assert await child.wait() == EXIT_START
        (line,) = [each for each in await lines(child) if each.get("reason") == "start_timeout"]
        assert told in line["stack"] + line["where"]
        assert "worker_hangs.py" in line["stack"]


async def test_a_start_may_block_for_longer_than_a_call():
    """`liveness` is for what answers calls; a block in the start is only told of."""
    settings = {"MESH_WORKER_LIVENESS": "300ms", "HANGS": "slow"}
    async with Mesh(transport="ipc") as m, worker(m, "worker_hangs:Hangs", **settings) as child:
        await m.node.wait_for("hangs", 20.0)
        assert await m.call("hangs.pid") == child.pid


async def test_a_worker_needs_no_standard_input():
    """As some launchers start it; nobody sits at a terminal then, and a blocked loop ends it."""
    settings = {"MESH_WORKER_LIVENESS": "300ms"}
    async with Mesh(transport="ipc") as m, worker(m, "worker_hangs:Hangs", closed=True, **settings) as child:
        await m.node.wait_for("hangs", 20.0)
        with pytest.raises(mesh.LinkLost):
            await m.call("hangs.block", 30.0, timeout=20.0)
        assert await child.wait() == EXIT_BLOCKED


async def test_a_short_block_is_told_with_its_line_and_counted():
    """The worker goes on."""
    settings = {"MESH_LOG_FORMAT": "json"}
    async with Mesh(transport="ipc") as m, worker(m, "worker_hangs:Hangs", **settings) as child:
        await m.node.wait_for("hangs", 20.0)
        await m.call("hangs.block", 0.3)
        assert await m.call("hangs.pid") == child.pid
        instance = m.node.instances("hangs")[0].id
        counters = {
            each["name"]: each["value"] for each in (await m.call("$worker.metrics", instance=instance))["counters"]
        }
        assert counters["loop_blocks"] >= 1
        assert counters["loop_blocked_seconds"] >= 0.25
        child.terminate()
        assert await child.wait() == 0
        told = [each for each in await lines(child) if each.get("where", "").endswith("in block")]
        assert len(told) == 1
        assert told[0]["level"] == "warning"
        assert "time.sleep(seconds)" in told[0]["stack"]


@pytest.mark.parametrize(("method", "mib"), [("keep", 200), ("take", 2000)])
async def test_memory_at_its_limit_replaces_the_worker(method: str, mib: int):
    """The call that fails is told; the worker then drains and ends."""
    async with (
        Mesh(transport="ipc") as m,
        worker(
            m,
            "worker_hangs:Hangs",
            HERE,
            HERE,
            ["--limit", "memory=268435456", "--limit", "memory_soft=200000000"],
            MESH_LOG_FORMAT="json",
        ) as child,
    ):
        await m.node.wait_for("hangs", 20.0)
        with contextlib.suppress(mesh.RemoteError):
            await m.call(f"hangs.{method}", mib)
        begun_at = time.monotonic()
        code = await child.wait()
        assert code == EXIT_MEMORY, (await child.stderr.read()).decode()  # type: ignore[union-attr]
        assert time.monotonic() - begun_at < 10.0
        (line,) = [each for each in await lines(child) if "hard" in each]
        assert (line["soft"], line["hard"]) == (200_000_000, 268_435_456)
