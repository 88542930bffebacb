"""The rounds of several contestants: whose turn it is, who is missing, who fails."""

from __future__ import annotations

import sys

import pytest

from benchmarks.contest import Contest, Load
from benchmarks.peers import Command, Peer
from benchmarks.plan import Plan

#: A client that writes down every question in a file that all share, and answers it with `speed`.
CLIENT = """
import json, sys
key, speed, log = sys.argv[1], float(sys.argv[2]), sys.argv[3]
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    load = json.loads(line)["load"]
    with open(log, "a") as file:
        print(key, load, file=file)
    if speed < 0:
        sys.exit("the disk is full")
    print(json.dumps({"speed": speed} if (key, load) != ("a", "second") else {}), flush=True)
"""
LOADS = [Load("first", {"load": "first"}, by="speed"), Load("second", {"load": "second"}, by="speed")]


def _peer(key: str, speed: float, log: object, **more: object) -> Peer:
    def client(_: object) -> Command:
        return Command("client", [sys.executable, "-c", CLIENT, key, str(speed), str(log)])

    idle = [sys.executable, "-c", "input()"]
    return Peer(
        key=key, title=key, how="", asking=client, answering=lambda _: Command("server", idle), install="buy it", **more
    )


async def test_each_load_goes_over_all_in_turn(tmp_path):
    """Who begins changes with each load and round; before each load the caller's own work is done."""
    log, before = tmp_path / "log", []
    contest = Contest("x", Plan(rounds=2), LOADS, timeout_s=10, before=lambda: before.append(1))
    found = await contest.hold([_peer("a", 10, log), _peer("b", 30, log)])
    asked = ["a first", "b first", "b second", "a second"]
    assert log.read_text().splitlines() == asked * 2
    assert len(before) == len(asked) * 2
    assert found["contestants"]["b"]["loads"]["first"] == {"speed": 30.0, "spread": 0.0, "rounds": 2}


async def test_what_a_contestant_does_not_have_is_no_figure(tmp_path):
    """An empty answer is neither a failure nor a 0."""
    found = await Contest("x", Plan(rounds=1), LOADS, timeout_s=10).hold([_peer("a", 10, tmp_path / "log")])
    assert list(found["contestants"]["a"]["loads"]) == ["first"]
    assert "failures" not in found["contestants"]["a"]


async def test_one_that_fails_is_left_out_of_its_round_and_quoted(tmp_path):
    """The others go on, and what it complained of is kept."""
    contest = Contest("x", Plan(rounds=1), LOADS, timeout_s=10)
    found = await contest.hold([_peer("bad", -1, tmp_path / "log"), _peer("b", 30, tmp_path / "log")])
    (failure,) = found["contestants"]["bad"]["failures"]
    assert failure.startswith("first: bad-client: ended with 1")
    assert "the disk is full" in failure
    assert set(found["contestants"]["b"]["loads"]) == {"first", "second"}


async def test_one_that_is_not_installed_is_named_with_what_it_lacks(tmp_path):
    """Missing is no failure."""
    peer = _peer("a", 10, tmp_path / "log", programs=("no-such-server",))
    found = await Contest("x", Plan(rounds=1), LOADS, timeout_s=10).hold([peer])
    assert found["missing"] == {"a": {"title": "a", "lacks": ["no-such-server"], "install": "buy it"}}
    assert not found["contestants"]


@pytest.mark.parametrize(
    ("only", "keys"),
    [((), ["mesh", "b", "c"]), (("c",), ["mesh", "c"]), (("stranger",), ["mesh"])],
)
def test_mesh_takes_part_whoever_else_is_wished_for(only, keys, monkeypatch):
    """It is what the others are compared with; who belongs to another part is passed over."""
    from benchmarks.peers import Roster

    monkeypatch.setattr(
        Roster, "peers", lambda _, wished=(): [key for key in ["mesh", "b", "c"] if not wished or key in wished]
    )
    assert Roster("nowhere", ("mesh", "b", "c")).chosen(only) == keys
