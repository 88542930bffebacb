"""What is made of the figures: the table, the page, the plots."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from benchmarks import page, plot, results, table
from benchmarks.grids import SECTIONS, grids, micros, per_second, times

LOADS = ("small-1", "small-64", "small-1000", "big-1")
PUBLISH = ("one-1", "one-64", "one-256", "batch-1")


def _figures(speed: float) -> dict:
    return {"calls_per_s": speed, "p50_us": 1e6 / speed, "p99_us": 3e6 / speed, "cpu_us": 4.0, "spread": 0.031}


def _web(title: str, speed: float) -> dict:
    return {"title": title, "requests_per_s": speed, "p50_us": 900.0, "p99_us": 2500.0, "bad": 0.0, "spread": 0.02}


def _publish(speed: float, batch: bool) -> dict:
    return {load: _figures(speed) for load in PUBLISH if batch or load != "batch-1"}


def _tasks(speed: float) -> dict:
    many = {"tasks": 4_000, "tasks_per_s": speed, "published_per_s": 2 * speed, "cpu_us": 90.0, "spread": 0.05}
    return {"many": many, "one": _figures(speed)}


@pytest.fixture
def sections() -> dict:
    """One of each, with a contestant that failed and one that is missing."""
    contestant = {"title": "mesh", "how": "in the usual way", "loads": {load: _figures(60_000) for load in LOADS}}
    raw = {"title": "raw coalesced loop", "how": "bare", "loads": {load: _figures(100_000) for load in LOADS}}
    broken = {
        "title": "zeroapi",
        "how": "-",
        "loads": {},
        "failures": ["zeroapi-client: ended with 1\n  Traceback\n  TimeoutError: late"],
    }
    by_instances = {str(count): {"1": _figures(9000 / count), "64": _figures(70_000 / count)} for count in (1, 4)}
    return {
        "rpc": {
            "loads": list(LOADS),
            "contestants": {"raw": raw, "mesh": contestant, "zeroapi": broken},
            "missing": {"nats_py": {"title": "nats-py", "lacks": ["nats-server"], "install": "apt-get install it"}},
        },
        "http": {"contestants": {"mesh": _web("gateway", 18_000), "plain": _web("plain", 17_000)}, "ratio": 1.06},
        "events": {"events_per_s": 91_000.0, "emitted": 1000, "lost": 0, "p50_us": 80.0, "p99_us": 200.0},
        "fanout": {"instances": by_instances},
        "startup": {"worker": {"seconds": 0.42, "worst_s": 0.6}, "gateway": {"seconds": 0.5, "worst_s": 0.7}},
        "memory": {
            "processes": {"worker": {"title": "worker, one service", "pss_mb": 31.2, "rss_mb": 44.0}},
            "worker_mb": 31.2,
        },
        "instances": {"error": "mesh cannot run yet"},
        "idle": {
            "contestants": {"0": _web("none", 18_000), "2000": _web("2,000", 17_500)},
            "ratio": 0.972,
            "idle": 2000,
            "kept_open": 2000,
            "kb_each": 21.3,
        },
        "publish": {
            "loads": list(PUBLISH),
            "batch": 100,
            "disk": {"file_system": "ext4", "sync_us": 71.2},
            "contestants": {
                "rabbitmq": {"title": "RabbitMQ", "how": "aio-pika", "loads": _publish(9_000, batch=False)},
                "mesh": {"title": "mesh", "how": "embedded", "loads": _publish(70_000, batch=True)},
            },
            "missing": {"jetstream": {"title": "JetStream", "lacks": ["nats-server"], "install": "apt-get install it"}},
        },
        "tasks": {
            "loads": ["many", "one"],
            "disk": {"file_system": "ext4", "sync_us": 71.2},
            "contestants": {
                "celery_solo": {"title": "Celery, solo", "how": "-P solo", "loads": _tasks(1_300)},
                "mesh": {"title": "mesh", "how": "one worker", "loads": _tasks(10_400)},
            },
            "missing": {},
        },
    }


def test_figures_are_short_to_read():
    """Three digits and the unit in which a duration is short."""
    assert [per_second(value) for value in (123_456.0, 999.6, 42.25)] == ["123,000", "1,000", "42.2"]
    assert [micros(value) for value in (7.126, 351.4, 999.9, 12_345.0)] == ["7.13 µs", "351 µs", "1000 µs", "12.3 ms"]
    assert [times(value) for value in (0.5, 12.34)] == ["0.50×", "12.3×"]


def test_the_terminal_shows_ratios_and_who_is_missing(sections):
    """Each contestant with mesh's ratio to it; a missing one with the line that installs it; the verdicts."""
    screen = Console(file=io.StringIO(), width=120)
    table.show(screen, sections)
    said = screen.file.getvalue()
    assert "0.60×" in said
    assert "nats-py is missing (nats-server): apt-get install it" in said
    assert "zeroapi failed 1×, first: zeroapi-client: ended with 1 … TimeoutError: late" in said
    assert "mesh cannot run yet" in said
    assert "not measured" in said
    assert "1.06×" in said


def test_what_is_faster_comes_first_and_ratios_are_always_of_mesh(sections):
    """A time is compared upside down: eight times as fast is 8×, in tasks per second as in the wait for one."""
    many, one = grids("tasks", sections["tasks"])
    for grid in (many, one):
        assert [row[0] for row in grid.rows] == ["mesh", "Celery, solo"]
        assert [row[2] for row in grid.rows] == ["", "8.00×"]
        assert grid.bold == {0}


def test_who_has_no_batches_is_not_in_their_table(sections):
    """A form that a contestant lacks is no figure of 0."""
    found = {grid.title: grid for grid in grids("publish", sections["publish"])}
    assert [row[0] for row in found["Durable publishing: 64 callers"].rows] == ["mesh", "RabbitMQ"]
    assert [row[0] for row in found["Durable publishing: 1 caller, batches of 100"].rows] == ["mesh"]
    assert (
        "fdatasync take 71.2 µs here.\nJetStream is missing (nats-server)" in found["Durable publishing: 1 caller"].note
    )


def test_the_page_is_whole_markdown(sections):
    """Every section has its tables, every row as many cells as its head, and the page says where and when."""
    found = {**results.new({"cpu": "One", "cpus": 2, "memory_gib": 8, "system": "Linux"}, {"mesh": "0.1.0"})}
    found["sections"] = {
        name: {"taken_at": "2030-01-01", "load": 0.21, "rounds": 3, **one} for name, one in sections.items()
    }
    text = page.page(found, ["rpc.svg"])
    for line in ("One, 2 CPUs, 8 GiB, Linux.", "mesh 0.1.0.", "![rpc](rpc.svg)", "| rpc | 2030-01-01 |  | 0.2 | 3 |"):
        assert line in text
    assert "| **mesh** | **60,000** |" in text
    assert "### Durable publishing\n\n- RabbitMQ: aio-pika\n- mesh: embedded\n" in text
    cells = 0
    for line in text.splitlines():
        now = line.count(" | ") if line.startswith("| ") else line.count("|") - 2 if line.startswith("|--") else 0
        assert not (cells and now) or now == cells, line
        cells = now


def test_a_short_run_says_so_on_its_page(sections):
    """Figures of a glance are never taken for figures."""
    found = results.new({"cpu": "One", "cpus": 2, "memory_gib": 8, "system": "Linux"}, {})
    found["sections"] = {"http": {**sections["http"], "short": True}}
    assert "**A short run (http)" in page.page(found, [])


def test_plots_are_svg_and_the_same_figures_give_the_same_file(sections, tmp_path):
    """One plot for each section that has one; a section that failed has none; no date inside."""
    pytest.importorskip("matplotlib")
    first, again = tmp_path / "first", tmp_path / "again"
    names = ["rpc.svg", "fanout.svg", "publish.svg", "tasks.svg"]
    assert plot.draw(sections, first) == plot.draw(sections, again) == names
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert ElementTree.parse(first / name).getroot().tag.endswith("svg")


def test_nothing_measured_is_nothing_drawn(tmp_path):
    """A machine on which no contestant could run still gets its page."""
    pytest.importorskip("matplotlib")
    nothing = {"loads": [], "contestants": {}, "missing": {}}
    assert plot.draw({"rpc": nothing, "publish": nothing, "tasks": nothing}, tmp_path) == []


def test_every_part_can_be_shown():
    """The command line offers exactly what can be shown."""
    from benchmarks.__main__ import FILES

    assert set(FILES) <= set(SECTIONS)
