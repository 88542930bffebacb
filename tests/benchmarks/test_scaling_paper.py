"""docs/scaling.md, held to what its command prints, to the settings that there are, and to the discovery code."""

from __future__ import annotations

import json
import os
import random
import re

import msgspec
import pytest

from benchmarks.children import ROOT
from benchmarks.scaling.__main__ import main
from benchmarks.scaling.balance import compare
from benchmarks.scaling.model import Model
from benchmarks.scaling.page import DOCUMENT, cells, fill, tables
from benchmarks.scaling.parts import SECTIONS, case
from benchmarks.scaling.registry import MeteredTransport, play
from benchmarks.scaling.storm import Storm
from benchmarks.scaling.units import kept
from mesh.clock import ManualClock, settle
from mesh.config.settings import ServiceSettings, Settings
from mesh.discovery.agent import Agent
from mesh.discovery.hub import Hub
from mesh.transport.memory import MemoryNetwork, MemoryTransport

LONG = os.environ.get("MESH_CHAOS") == "long"
SIZES = [10, pytest.param(100, marks=pytest.mark.skipif(not LONG, reason="takes some seconds: MESH_CHAOS=long"))]


@pytest.mark.parametrize("hosts", SIZES)
def test_the_document_shows_what_the_command_prints(hosts):
    """Every row of every table, and in the column of this size every figure."""
    text = DOCUMENT.read_text()
    made = tables([case(hosts, kept())])
    for title in SECTIONS:
        [head, *rows] = cells(text, title)
        printed = cells(made[title], title)
        column = head.index(f"{hosts:,} hosts")
        told = [[row[0], row[column]] for row in rows]
        assert told == printed[1:], f'"{title}": run `python -m benchmarks.scaling --write`'


def test_every_setting_in_the_document_exists():
    """What a reader is told to set can be set."""
    known = {
        f"{item.encode_name}.{key.encode_name}"
        for item in msgspec.structs.fields(Settings)
        if isinstance(item.type, type) and issubclass(item.type, msgspec.Struct)
        for key in msgspec.structs.fields(item.type)
    }
    known |= {f"services.NAME.{key.encode_name}" for key in msgspec.structs.fields(ServiceSettings)}
    sections = {name.partition(".")[0] for name in known}
    named = re.findall(r"`((?:[a-z]+\.)(?:NAME\.)?[a-z_]+)(?: = [^`]*)?`", DOCUMENT.read_text())
    settings = {name for name in named if name.partition(".")[0] in sections and not name.endswith((".md", ".py"))}
    assert len(settings) > 8
    assert settings <= known, settings - known


def test_every_metric_in_the_document_exists():
    """What a reader is told to watch can be watched."""
    names = set(re.findall(r"\bmesh_([a-z_]+?)(?:_total)?\b(?!=)", DOCUMENT.read_text())) - {"serial", "programs"}
    source = "\n".join(path.read_text() for path in (ROOT / "mesh").rglob("*.py"))
    assert len(names) > 5
    missing = {name for name in names if f'"{name}"' not in source and f"mesh_{name}" not in source}
    assert not missing


async def test_the_crowd_says_what_agents_say():
    """A second of renewals at a hub's door is the same, to the byte, when every process is a real agent."""
    model = Model(hosts=3)
    clock = ManualClock()
    network = MemoryNetwork(clock)
    door = MeteredTransport(network)
    hub = Hub(door, clock, identity="hub-0", epoch=1)
    await hub.start("mem://hub-0")
    agents = []
    for number in range(model.instances):
        transport, record = MemoryTransport(network), model.record(number)
        rng = random.Random(number)
        agent = Agent(transport, clock, ["mem://hub-0"], identity=record.worker, epoch=1, rng=rng)
        agent.register(record)
        await agent.start()
        agents.append((agent, transport))
    await clock.advance(2.0)
    messages, size = door.meter.in_messages, door.meter.in_bytes
    await clock.advance(1.0)
    heard = (door.meter.in_messages - messages, door.meter.in_bytes - size)
    for agent, transport in agents:
        for uplink in agent._uplinks:
            uplink.stop()
        agent._beating.cancel()
        await transport.close()
    await hub.stop(0)
    await door.close()
    await settle()
    quiet = (await play(model)).quiet
    assert heard == (quiet.in_messages, quiet.in_bytes)


async def test_what_a_host_costs_a_watcher_does_not_grow():
    """One host's release is as long for each watcher in a small mesh as in a larger one; a lost hub takes nobody."""
    small, large = await play(Model(hosts=2)), await play(Model(hosts=8))
    assert small.host_is_renewed == large.host_is_renewed
    assert small.host_is_renewed.news == 2 * Model(hosts=2).workers
    assert 4.0 <= large.host_dies.known_s <= 6.0
    assert (small.taken_for_gone, large.taken_for_gone) == (0, 0)


def test_a_storm_grows_with_the_square_and_is_the_same_every_time():
    """Twice the hosts: four times the bytes; the same seed: the same storm."""
    units = kept()
    one, again, twice = (Storm(Model(hosts), units, spread_s=0.5).run() for hosts in (8, 8, 16))
    assert one == again
    assert one.served == Model(8).processes
    assert one.settled_s is not None
    assert twice.sent_bytes / one.sent_bytes == pytest.approx(4, rel=0.15)


def test_knowing_all_is_better_than_chance():
    """The comparison tells good from bad, so that "no better than chance" means something."""
    waits = compare(32, 4, calls=4000)
    assert waits["all"].mean < waits["own"].mean < waits["random"].mean
    assert waits["random"].mean == pytest.approx(1 / 0.3, rel=0.2)  # what a single queue has, by the book


def test_tables_are_put_in_their_places():
    """Text around them stays; a table that nobody makes stays, too."""
    text = "a\n\n| One | x |\n|---|--:|\n| old | 1 |\n\nb\n\n| Other |\n|---|\n| stays |\n"
    filled = fill(text, {"One": "| One | 10 hosts |\n|---|--:|\n| new | 2 |"})
    assert filled == "a\n\n| One | 10 hosts |\n|---|--:|\n| new | 2 |\n\nb\n\n| Other |\n|---|\n| stays |\n"


def test_the_command_prints_tables_or_json(capsys):
    """Markdown for people, every figure for programs; a size that cannot be is refused by name."""
    assert main(["--hosts", "2", "--json"]) == 0
    [size] = json.loads(capsys.readouterr().out)["sizes"]
    assert size["scenes"]["quiet"]["in_messages"] == 16
    assert set(size["parts"]) == set(SECTIONS)
    with pytest.raises(SystemExit):
        main(["--hosts", "many"])
    assert "numbers with commas" in capsys.readouterr().err
