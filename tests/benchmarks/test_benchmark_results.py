"""The file of figures: joined, rounded, written whole."""

from __future__ import annotations

import pytest

from benchmarks import results
from benchmarks.verdicts import PROMISES, judge

MACHINE = {"cpu": "One", "cpus": 2}


def test_a_part_joins_the_parts_of_an_earlier_run():
    """A section that was measured again replaces its former self; the others stay."""
    before = {**results.new(MACHINE, {"mesh": "1"}), "sections": {"rpc": {"x": 1}, "http": {"x": 2}}}
    now = {**results.new(MACHINE, {"mesh": "1"}), "sections": {"rpc": {"x": 3}}}
    assert results.joined(before, now)["sections"] == {"rpc": {"x": 3}, "http": {"x": 2}}


@pytest.mark.parametrize(("cpu", "version"), [("Another", "1"), ("One", "2")])
def test_figures_of_another_machine_or_version_are_not_kept(cpu, version):
    """Figures that stand on one page may be compared."""
    before = {**results.new({**MACHINE, "cpu": cpu}, {"mesh": version}), "sections": {"http": {"x": 2}}}
    now = {**results.new(MACHINE, {"mesh": "1"}), "sections": {"rpc": {"x": 3}}}
    assert results.joined(before, now)["sections"] == {"rpc": {"x": 3}}


def test_what_is_saved_is_loaded_with_four_digits(tmp_path):
    """The rest is noise, and would make every difference unreadable."""
    path = tmp_path / "deep" / "results.json"
    results.save(path, {**results.new(MACHINE, {}), "sections": {"rpc": {"calls": 123456.789, "each": [0.000123456]}}})
    assert results.load(path)["sections"] == {"rpc": {"calls": 123500.0, "each": [0.0001235]}}
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}'])
def test_a_file_that_is_none_of_ours_is_as_good_as_no_file(tmp_path, text):
    """It is replaced, not joined, and never a crash."""
    path = tmp_path / "results.json"
    path.write_text(text)
    assert results.load(path) is None
    assert results.load(tmp_path / "absent.json") is None


def _rpc(**speeds: float) -> dict:
    loads = ("small-1", "small-64", "small-1000")
    return {
        "contestants": {
            key: {"loads": {load: {"calls_per_s": speed} for load in loads}} for key, speed in speeds.items()
        }
    }


def test_a_promise_is_reached_at_its_bound():
    """At least means at least, at most means at most."""
    sections = {
        "rpc": _rpc(mesh=50.0, raw=100.0, moleculer=25.1),
        "memory": {"worker_mb": 45.0},
        "startup": {"worker": {"seconds": 1.01}},
    }
    said = {verdict.promise.what: verdict.word for verdict in judge(sections)}
    assert said["64 callers against the raw loop"] == "reached"
    assert said["64 callers against Moleculer over TCP"] == "not reached"
    assert said["memory of the heaviest idle worker (Pss)"] == "reached"
    assert said["a worker from exec to ready"] == "not reached"
    assert said["64 callers against nats-py"] == "not measured"


def test_a_product_is_judged_by_its_best_setting():
    """Beating the slower of two queues proves nothing; one that was not measured does not count as slow."""
    by = {"mesh": 50_000.0, "rabbitmq": 9_000.0, "rabbitmq_quorum": 11_000.0, "jetstream": 20_000.0}
    section = {"contestants": {key: {"loads": {"one-64": {"calls_per_s": speed}}} for key, speed in by.items()}}
    said = {verdict.promise.what: verdict for verdict in judge({"publish": section})}
    assert said["durable publishing, 64 callers, against RabbitMQ"].got == "4.55×"
    assert said["durable publishing, 64 callers, against JetStream"].word == "reached"
    assert said["durable publishing, 256 callers, against RabbitMQ"].word == "not measured"
    del section["contestants"]["rabbitmq_quorum"]
    said = {verdict.promise.what: verdict for verdict in judge({"publish": section})}
    assert said["durable publishing, 64 callers, against RabbitMQ"].word == "reached"


@pytest.mark.parametrize("sections", [{}, {"rpc": {"error": "x"}, "http": {"error": "x"}, "startup": {}}])
def test_what_was_not_measured_is_not_judged(sections):
    """No figures, or a part that failed: every promise still has its row."""
    verdicts = judge(sections)
    assert len(verdicts) == len(PROMISES)
    assert all(verdict.reached is None and verdict.got == "–" for verdict in verdicts)
