"""What happens is counted, and cannot be made to fill the memory."""

import json
import os
import subprocess
import sys

import msgpack
import msgspec
import pytest

from mesh.clock import ManualClock
from mesh.telemetry import logs
from mesh.telemetry.metrics import BOUNDS, MOST_CODES, OTHER, Recorder
from mesh.telemetry.process import read_process
from mesh.telemetry.recent_maximum import RecentMaximum
from mesh.telemetry.snapshot import Snapshot


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def recorder(clock):
    return Recorder(clock)


def taken(recorder: Recorder) -> Snapshot:
    """The snapshot as another process reads it, off the wire."""
    return msgspec.convert(msgpack.unpackb(msgpack.packb(recorder.snapshot())), Snapshot)


def test_a_call_is_in_flight_until_it_ends(recorder):
    """Begun calls are in flight; ended ones are counted with their time and their error."""
    stats = recorder.method("client", "greeting", "hello")
    for _ in range(3):
        stats.begin()
    stats.end(0.25)
    stats.end(0.5, "unavailable")
    (sample,) = taken(recorder).methods
    assert (sample.side, sample.service, sample.method) == ("client", "greeting", "hello")
    assert (sample.in_flight, sample.count, sample.total_s) == (1, 2, 0.75)
    assert sample.errors == {"unavailable": 1}


@pytest.mark.parametrize(
    ("seconds", "place"),
    [(0.0, 0), (0.00025, 0), (0.000251, 1), (0.1, BOUNDS.index(0.1)), (10.0, len(BOUNDS) - 1), (11.0, len(BOUNDS))],
)
def test_a_duration_counts_in_the_bucket_of_the_next_bound(recorder, seconds, place):
    """A bucket holds what is at most its bound, as Prometheus' `le` has it; the last one holds the rest."""
    stats = recorder.method("server", "greeting", "hello")
    stats.begin()
    stats.end(seconds)
    assert stats.buckets.index(1) == place


def test_the_bounds_reach_from_a_quarter_millisecond_to_the_default_deadline():
    """0.25 ms to 10 s, rising."""
    assert (BOUNDS[0], BOUNDS[-1]) == (0.00025, 10.0)
    assert list(BOUNDS) == sorted(set(BOUNDS))


def test_the_same_names_give_the_same_object(recorder):
    """Whoever asks for a method's or a counter's counts adds to the same."""
    assert recorder.method("client", "a", "b") is recorder.method("client", "a", "b")
    assert recorder.method("client", "a", "b") is not recorder.method("server", "a", "b")
    assert recorder.counter("x", a="1", b="2") is recorder.counter("x", b="2", a="1")


def test_counters_grow_by_name_and_labels(recorder):
    """Each label set has its own count; help is told once and holds for all."""
    recorder.count("links_lost", reason="killed")
    recorder.count("links_lost", reason="killed")
    recorder.count("links_lost", 5, reason="closed")
    recorder.counter("links_lost", "Links that were lost.", reason="killed").add(2)
    found = {tuple(c.labels.values()): (c.value, c.help) for c in taken(recorder).counters if c.name == "links_lost"}
    assert found == {("killed",): (4, "Links that were lost."), ("closed",): (5, "Links that were lost.")}


def test_a_gauge_is_asked_at_each_snapshot(recorder):
    """The number is the one of the moment; registering again replaces."""
    values = iter([1, 2])
    recorder.gauge("links", lambda: next(values), "Open links.", kind="dealer")
    assert [taken(recorder).gauges[0].value for _ in range(2)] == [1, 2]
    recorder.gauge("links", lambda: 7, kind="dealer")
    (gauge,) = taken(recorder).gauges
    assert (gauge.value, gauge.help, gauge.labels) == (7, "Open links.", {"kind": "dealer"})


def test_a_gauge_that_raises_spoils_nothing_else(recorder, capsys):
    """It is left out, counted each time, logged once; the others are there."""

    def broken() -> float:
        raise KeyError("gone")

    recorder.gauge("broken", broken)
    recorder.gauge("whole", lambda: 1)
    for asked in (1, 2):
        found = taken(recorder)
        assert [g.name for g in found.gauges] == ["whole"]
        assert {c.name: c.value for c in found.counters} == {"metric_errors": asked}
    assert capsys.readouterr().err.count("gauge.failed") == 1


def test_names_out_of_requests_cannot_fill_the_memory(clock):
    """Past the limit, methods are counted together as "other", on their own side, and none is lost."""
    recorder = Recorder(clock, most_series=10)
    for n in range(1000):
        stats = recorder.method("client", "scan", f"m{n}")
        stats.begin()
        stats.end(0.001)
    samples = taken(recorder).methods
    assert len(samples) == 11
    assert {(s.service, s.method): s.count for s in samples}[OTHER, OTHER] == 990


def test_labels_and_codes_cannot_fill_the_memory_either(clock):
    """Counters and error codes have the same kind of limit."""
    recorder = Recorder(clock, most_series=10)
    stats = recorder.method("client", "a", "b")
    for n in range(1000):
        recorder.count("seen", name=str(n))
        stats.begin()
        stats.end(0.001, f"code{n}")
    found = taken(recorder)
    seen = [c for c in found.counters if c.name == "seen"]
    assert len(seen) <= 11
    assert sum(c.value for c in seen) == 1000
    assert len(found.methods[0].errors) == MOST_CODES + 1
    assert sum(found.methods[0].errors.values()) == 1000


@pytest.mark.parametrize(
    "name", ["", "Links", "links-open", "1st", "lost_count", "requests", "in_flight", "process_fds", "a_bucket"]
)
def test_a_name_that_prometheus_would_misread_is_refused(recorder, name):
    """The defect is told where the metric is made, not when the page is read."""
    with pytest.raises(ValueError, match="name"):
        recorder.count(name)
    with pytest.raises(ValueError, match="name"):
        recorder.gauge(name, lambda: 0)


def test_the_suffix_that_prometheus_gives_counters_may_be_written(recorder):
    """One counter, with or without it; a gauge is no counter."""
    recorder.count("lost_total", 2)
    recorder.count("lost", 1)
    assert [(c.name, c.value) for c in taken(recorder).counters if c.name == "lost"] == [("lost", 3)]
    with pytest.raises(ValueError, match="_total"):
        recorder.gauge("lost_total", lambda: 0)


def test_a_number_that_is_counted_elsewhere_is_a_counter(recorder):
    """Read at each snapshot; one that raises spoils nothing else."""
    seen = [3.0]
    recorder.total("pages_total", lambda: seen[0], "Pages that were read.", kind="b")
    recorder.total("broken", lambda: 1 / 0)
    seen[0] = 5.0
    assert [(c.name, c.value, c.labels) for c in taken(recorder).counters if c.name in ("pages", "broken")] == [
        ("pages", 5, {"kind": "b"})
    ]
    with pytest.raises(ValueError, match="pages"):
        recorder.gauge("pages", lambda: 0)


def test_a_maximum_counts_for_a_minute_however_often_it_is_read():
    recent = RecentMaximum()
    assert recent.read(0.0) == 0.0
    recent.note(0.5, 5.0)
    recent.note(2.0, 12.0)
    recent.note(1.0, 31.0)
    assert [recent.read(now) for now in (31.0, 31.0, 69.0, 71.0, 89.0, 91.0)] == [2.0, 2.0, 2.0, 1.0, 1.0, 0.0]


def test_a_name_is_a_counter_or_a_gauge(recorder):
    """One name for both would make the page unreadable."""
    recorder.count("links")
    with pytest.raises(ValueError, match="links"):
        recorder.gauge("links", lambda: 0)
    recorder.gauge("peers", lambda: 0)
    with pytest.raises(ValueError, match="peers"):
        recorder.count("peers", kind="x")


def test_a_snapshot_is_of_plain_types_and_stands_still(recorder):
    """It survives MessagePack and JSON unchanged, and later calls do not change it."""
    stats = recorder.method("server", "a", "b")
    stats.begin()
    stats.end(0.1, "overloaded")
    before = recorder.snapshot()
    text = json.dumps(before)
    assert msgpack.unpackb(msgpack.packb(before)) == before
    stats.begin()
    stats.end(0.1, "overloaded")
    assert json.dumps(before) == text


def test_uptime_is_told_by_the_clock(recorder, clock):
    """It begins with the recorder."""
    clock.turn(12.5)
    assert taken(recorder).process.uptime_s == 12.5


def test_the_process_is_described_as_the_system_sees_it():
    """Memory, processor time, descriptors and threads are there on Linux, and of the right order."""
    sample = read_process(3.0)
    assert (sample.pid, sample.uptime_s) == (os.getpid(), 3.0)
    assert sample.cpu_s > 0
    assert sample.threads >= 1
    assert 5e6 < sample.resident_bytes < 2e9
    assert 1e6 < sample.pss_bytes <= sample.resident_bytes


def test_an_open_file_is_counted():
    """One more descriptor is one more."""
    before = read_process(0.0).open_fds
    with open(os.devnull):
        assert read_process(0.0).open_fds == before + 1


def test_without_smaps_resident_memory_comes_from_the_status(tmp_path):
    """Where the kernel hides smaps_rollup, Rss is known and Pss is not."""
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t   1234 kB\n")
    sample = read_process(0.0, tmp_path)
    assert (sample.resident_bytes, sample.pss_bytes, sample.open_fds) == (1234 * 1024, None, None)


def test_without_proc_the_rest_is_still_told(tmp_path):
    """No /proc, no memory: everything else stands."""
    (tmp_path / "smaps_rollup").write_text("Rss: much\n")
    sample = read_process(0.0, tmp_path)
    assert (sample.resident_bytes, sample.pss_bytes) == (None, None)
    assert sample.pid == os.getpid()


def test_a_worker_does_not_pay_for_the_page_it_never_renders():
    """Counting and logging import neither prometheus_client nor rich, and hide rich from nobody else."""
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, mesh.telemetry.metrics, mesh.telemetry.logs as l; l.configure(format='json')\n"
            "print('rich' in sys.modules, 'prometheus_client' in sys.modules); import rich.console; print('ok')",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["False", "False", "ok"]


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    logs.reset()
    yield
    logs.reset()
