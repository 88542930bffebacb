"""The processes that benchmarks start: ready, asked, ended."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from benchmarks.children import ChildFailed, Children, free_ports, wait_for_port

ANSWERS = """
import json, sys
print("a library's own chatter")
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    print(json.dumps({"twice": 2 * json.loads(line)["number"]}), flush=True)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print('{"ready": true, "grandchild": %d}' % grandchild.pid, flush=True)
time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_client_is_asked_line_by_line(tmp_path):
    """It is ready when it says so, chatter is passed over, each question has its answer."""
    async with Children(tmp_path) as children:
        client = await children.start_client("client", [sys.executable, "-c", ANSWERS])
        assert await client.ask({"number": 4}, 5) == {"twice": 8}
        assert await client.ask({"number": 5}, 5) == {"twice": 10}
    assert not _alive(client.pid)


async def test_what_will_not_stop_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    """No process outlives its benchmark."""
    monkeypatch.setattr("benchmarks.children.STOP_S", 0.1)
    async with Children(tmp_path) as children:
        child = await children.start("stubborn", [sys.executable, "-c", STUBBORN])
        grandchild = (await child.answer(5))["grandchild"]
        assert _alive(grandchild)
    assert not _alive(child.pid)
    async with asyncio.timeout(5):
        # Reaped by whoever adopted it.
        while _alive(grandchild):  # noqa: ASYNC110 - another process ends, there is no event
            await asyncio.sleep(0.01)


async def test_a_cancelled_benchmark_leaves_no_process(tmp_path):
    """Ctrl-C in the middle of a load ends everything."""
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def benchmark() -> None:
        async with Children(tmp_path) as children:
            client = await children.start_client("client", [sys.executable, "-c", ANSWERS])
            started.set_result(client.pid)
            await client.answer(60)

    task = asyncio.create_task(benchmark())
    pid = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _alive(pid)


async def test_a_child_that_fails_is_quoted(tmp_path):
    """The error names the child, how it ended, and what it complained of."""
    script = "import sys; sys.exit('no such queue')"
    async with Children(tmp_path) as children:
        with pytest.raises(ChildFailed, match=r"(?s)server: ended with 1.*no such queue"):
            await children.start_client("server", [sys.executable, "-c", script])


async def test_a_silent_child_does_not_hold_up_the_run(tmp_path):
    """Every wait has an end."""
    async with Children(tmp_path) as children:
        with pytest.raises(ChildFailed, match=r"silent: no answer within 0\.1 s"):
            await children.start_client("silent", [sys.executable, "-c", "input()"], timeout=0.1)


async def test_a_program_that_is_not_there_is_named(tmp_path):
    """Not a traceback: what was to be run."""
    async with Children(tmp_path) as children:
        with pytest.raises(ChildFailed, match="peer: no-such-program --now"):
            await children.start("peer", ["no-such-program", "--now"])


async def test_a_port_that_nobody_opens_is_an_error():
    """Bounded in time like everything."""
    (port,) = free_ports(1)
    with pytest.raises(ChildFailed, match=f"nothing listens on port {port}"):
        await wait_for_port(port, 0.05)


def test_free_ports_are_different():
    """A contestant gets ports of its own."""
    assert len(set(free_ports(8))) == 8


async def test_a_client_that_finds_nobody_puts_the_blame_where_it_belongs(tmp_path):
    """The server that ended before is named, not the client that waited for it."""
    async with Children(tmp_path) as children:
        await children.start("server", [sys.executable, "-c", "raise SystemExit('port taken')"])
        with pytest.raises(ChildFailed, match=r"(?s)server: ended too early.*port taken"):
            await children.start_client("client", [sys.executable, "-c", "import time; time.sleep(1)"], timeout=5)
