"""The contestants of the durable half as they are run, each that is installed, for an instant."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from pathlib import Path

import pytest

from benchmarks import disk, publishers, queues
from benchmarks.children import ChildFailed, Children, free_ports, wait_for_port
from benchmarks.contest import Contest, Load
from benchmarks.peers import Place
from benchmarks.plan import Plan
from benchmarks.publish_host import per_message
from benchmarks.queues import side_by_side
from benchmarks.servers import epmd, jetstream, rabbitmq
from benchmarks.tally import Tallies, Tally
from benchmarks.tasks_host import _ran

SHORT = {"seconds": 0.05, "warm_s": 0.02}


def _installed(roster, key):
    (peer,) = roster.peers((key,))
    if lacks := peer.missing():
        pytest.skip(f"{', '.join(lacks)} is missing")
    return peer


async def _figures(peer, load):
    """One load, on this contestant alone."""
    contest = Contest("x", Plan(rounds=1), [Load("x", load, by="cpu_us")], timeout_s=60, directory=disk.DIRECTORY)
    found = await contest.hold([peer])
    contestant = found["contestants"][peer.key]
    assert "failures" not in contestant, contestant["failures"][0]
    return contestant["loads"].get("x")


@pytest.mark.parametrize("key", publishers.ROSTER.keys)
async def test_a_publisher_is_measured(key):
    """Its server starts on a port and in a directory of its own; what it confirms is there."""
    figures = await _figures(_installed(publishers.ROSTER, key), {"callers": 4, "batch": 0, **SHORT})
    assert figures["calls"] >= 4
    assert 0 < figures["p50_us"] <= figures["p99_us"]


@pytest.mark.parametrize("key", ["mesh", "jetstream", "redis_stream"])
async def test_a_batch_is_counted_by_its_messages(key):
    """Speed is by the message, whatever the form."""
    figures = await _figures(_installed(publishers.ROSTER, key), {"callers": 1, "batch": 10, **SHORT})
    assert figures["calls"] % 10 == 0


def test_the_wait_for_a_batch_is_not_divided():
    """A caller waits for the whole of it."""
    figures = {"calls": 3, "calls_per_s": 6.0, "p50_us": 100.0, "p99_us": 200.0, "cpu_us": 50.0}
    assert per_message(figures, 10) == {
        "calls": 30,
        "calls_per_s": 60.0,
        "p50_us": 100.0,
        "p99_us": 200.0,
        "cpu_us": 5.0,
    }


@pytest.mark.parametrize("key", ["mesh", "taskiq_stream", "celery_solo"])
async def test_a_task_queue_is_measured(key):
    """Its worker runs every task that was published, once."""
    figures = await _figures(_installed(queues.ROSTER, key), {"verb": "many", **SHORT})
    assert figures["tasks"] >= 200
    assert figures["tasks_per_s"] <= figures["published_per_s"] * 1.01


async def test_a_short_load_has_enough_single_tasks_for_a_median():
    """One slow task is not the whole load."""
    figures = await _figures(_installed(queues.ROSTER, "taskiq_stream"), {"verb": "one", **SHORT})
    assert figures["calls"] >= 50


async def test_as_many_are_published_as_were_asked_for():
    """Never more under way than callers, none left over."""
    under_way, most, done = 0, 0, 0

    async def one() -> None:
        nonlocal under_way, most, done
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        done += 1

    await side_by_side(one, callers=5)(23)
    assert (done, most, under_way) == (23, 5, 0)


async def test_a_task_that_ran_twice_is_no_speed(tmp_path):
    """More runs than tasks end the load with both numbers; fewer do after a while."""
    worker = Tally(tmp_path)
    for _ in range(3):
        worker.add()
    tallies = Tallies(tmp_path)
    with pytest.raises(SystemExit, match="2 tasks were published and 3 ran"):
        await _ran(tallies, 2)
    assert await _ran(tallies, 3) > 0


async def test_tasks_that_stop_running_end_the_load(tmp_path, monkeypatch):
    """Every wait has an end."""
    monkeypatch.setattr("benchmarks.tasks_host.STUCK_S", 0.05)
    Tally(tmp_path).add()
    with pytest.raises(SystemExit, match="2 tasks were published, 1 ran"):
        await _ran(Tallies(tmp_path), 2)


def _place(directory: Path) -> Place:
    return Place(directory, tuple(free_ports(4)))


def _uses(directory: Path) -> list[str]:
    """The commands of all processes that were started in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


async def test_a_rabbitmq_node_leaves_nothing_behind(tmp_path):
    """Neither Erlang's port mapper nor what the node started outlives the benchmark."""
    _installed(publishers.ROSTER, "rabbitmq")
    place = _place(tmp_path)
    async with Children(tmp_path) as children:
        for command in (epmd(place), rabbitmq(place)):
            await children.start(command.name, command.arguments, env=command.env)
            await wait_for_port(command.port, command.ready_s)
        assert len(_uses(tmp_path)) >= 2
    async with asyncio.timeout(10):
        while _uses(tmp_path):  # noqa: ASYNC110 - other processes end, there is no event
            await asyncio.sleep(0.02)


def test_a_synced_jetstream_is_synced_one_way_or_the_other():
    """The server is told where it can be, else its files are."""
    _installed(publishers.ROSTER, "jetstream_synced")
    with tempfile.TemporaryDirectory(dir=disk.DIRECTORY) as name:
        directory = Path(name)
        jetstream(_place(directory), synced=True)
        told = "sync_interval: always" in (directory / "nats.conf").read_text()
        listed = subprocess.run(["lsattr", "-d", directory / "jetstream"], capture_output=True, text=True, check=False)
    assert told or "S" in listed.stdout.split()[0]


MOUNTS = """\
/dev/sda / ext4 rw,relatime 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/sdb /var/tmp xfs rw 0 0
/dev/sdc /var/tmp/hidden ext4 rw 0 0
tmpfs /var/tmp/hidden tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("directory", "found"),
    [("/home", "ext4"), ("/tmp/x", "tmpfs"), ("/tmpfs", "ext4"), ("/var/tmp", "xfs"), ("/var/tmp/hidden/x", "tmpfs")],
)
def test_the_file_system_under_a_directory_is_known(directory, found):
    """The deepest mount counts, and the last one at a point."""
    assert disk.kind(Path(directory), MOUNTS) == found


def test_what_lies_in_memory_is_no_durability(monkeypatch):
    """Figures of a file system whose syncs are free are refused, not shown."""
    monkeypatch.setattr(disk, "kind", lambda *_: "tmpfs")
    with pytest.raises(ChildFailed, match=r"/var/tmp is memory \(tmpfs\)"):
        disk.disk()
