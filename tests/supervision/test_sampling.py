"""Two looks at a process become rates, times and shares of processors; and what autoscaling makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervision_project import until

from mesh.config import AutoscaleSettings, ServiceSettings, Settings
from mesh.deploy import autoscale
from mesh.deploy.autoscale import Advice, _Follower, _look, rule_of, scaled_services
from mesh.deploy.processes import StartFailed
from mesh.errors import LockTaken
from mesh.observe.sampling import Sample, _Before, _between
from mesh.observe.usage import Usage, host_cpu_s, usage
from mesh.policy.scaling import Decision, Look
from mesh.telemetry.snapshot import MethodSample, NamedSample, ProcessSample, Snapshot

BOUNDS = [0.01, 0.1, 1.0]


def snapshot(count: int, total_s: float, buckets: list[int], *, errors: int = 0, in_flight: int = 0) -> Snapshot:
    return Snapshot(
        bounds=BOUNDS,
        process=ProcessSample(1, 1.0, 1.0, 1),
        methods=[
            MethodSample("server", "greeting", "hello", in_flight, count, total_s, buckets, {"x": errors}),
            # What it asks of others, and what is asked of the process itself, is not its work.
            MethodSample("client", "other", "ask", 7, 1000, 1000.0, [0, 0, 0, 1000]),
            MethodSample("server", "$worker", "metrics", 1, 1000, 1.0, [1000, 0, 0, 0]),
        ],
        gauges=[NamedSample("calls_waiting", 2.0, {"service": "greeting"})],
    )


def test_rates_and_times_are_those_between_two_looks():
    """Not since the start of the process."""
    before = _Before(10.0, snapshot(100, 5.0, [100, 0, 0, 0]), Usage(1.0, 0.5, 1000, 1))
    after = _Before(12.0, snapshot(140, 9.0, [110, 29, 1, 0], errors=4, in_flight=3), Usage(2.0, 1.5, 2000, 2))
    sample = _between(5, before, after)
    assert (sample.rate, sample.errors, sample.ended) == (20.0, 2.0, 40)
    assert sample.mean_s == pytest.approx(0.1)
    assert sample.p99_s == 1.0  # of forty, the slowest
    assert (sample.in_flight, sample.waiting) == (3, 2)
    assert (sample.cpu, sample.demand, sample.memory_bytes) == (0.5, 1.0, 2000)
    assert sample.answered


def test_a_first_look_has_no_rates_and_one_without_an_answer_no_counters():
    """What the operating system says is there all the same."""
    first = _between(5, None, _Before(10.0, snapshot(100, 5.0, [100, 0, 0, 0], in_flight=1), Usage(1.0, 0.0, 1000, 1)))
    assert (first.rate, first.cpu, first.in_flight, first.memory_bytes) == (0.0, 0.0, 1, 1000)
    silent = _between(5, _Before(10.0, None, Usage(1.0, 0.0, 1000, 1)), _Before(11.0, None, Usage(1.5, 0.25, 1000, 1)))
    assert (silent.answered, silent.cpu, silent.demand) == (False, 0.5, 0.75)


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child that computes."""
    child = "while True: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        yield process
        os.killpg(process.pid, 9)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
def test_a_process_counts_with_its_children(busy: subprocess.Popen[bytes]):
    """offload="process" computes in children: that is the worker's processor time, and its memory."""
    until(lambda: usage([busy.pid]).get(busy.pid, Usage(0, 0, 0, 0)).processes == 2)
    before = usage([busy.pid])[busy.pid]
    until(lambda: usage([busy.pid])[busy.pid].cpu_s > before.cpu_s + 0.2, 20)
    assert before.memory_bytes > 2**20
    assert usage([4_194_304]) == {}
    used, total = host_cpu_s()
    assert 0 < used < total


# --- autoscale ------------------------------------------------------------------------------------------


def test_a_look_sums_up_the_workers_that_are_there():
    """One that starts is no measure; one that is too busy to answer counts with its processor time."""
    samples = [
        Sample(1, ("greeting",), "a", True, in_flight=4, waiting=1, ended=10, mean_s=0.1, demand=0.5),
        Sample(2, ("greeting",), "b", True, in_flight=2, ended=30, mean_s=0.2, demand=0.25),
        Sample(3, ("greeting",), "c", False, demand=1.0),
        Sample(4, (), "", False, demand=0.9),
    ]
    look = _look(7.0, 4, samples)
    assert look == Look(7.0, 4, 3, cpu=1.75, in_flight=6, waiting=1, latency_s=pytest.approx(0.175))


def test_only_services_with_a_maximum_are_scaled(tmp_path: Path):
    """By what their tables and [autoscale] say."""
    service = ServiceSettings(classes=["a:A"], minimum=2, maximum=6, target_cpu=0.5, target_in_flight=9)
    settings = Settings(
        services={"a": service, "b": ServiceSettings(classes=["b:B"]), "c": ServiceSettings(maximum=3)},
        autoscale=AutoscaleSettings(up_after_s=1.0, down_after_s=2.0, cooldown_s=3.0),
    )
    assert list(scaled_services(settings)) == ["a"]
    rule = rule_of(service, settings)
    assert (rule.minimum, rule.maximum, rule.cpu, rule.in_flight) == (2, 6, 0.5, 9)
    assert (rule.up_after_s, rule.down_after_s, rule.cooldown_s) == (1.0, 2.0, 3.0)


async def test_a_number_that_cannot_be_reached_is_tried_ever_more_rarely(monkeypatch: pytest.MonkeyPatch):
    """A worker that does not start must not be started every few seconds; another command is simply waited for."""
    tried: list[float] = []
    error: list[Exception] = [StartFailed("greeting:greeting_1 does not become ready")]
    now = [0.0]

    async def scale(*_: object) -> None:
        tried.append(now[0])
        raise error[0]

    monkeypatch.setattr(autoscale, "scale", scale)
    follower = _Follower(None, Settings(), "greeting")  # type: ignore[arg-type]
    for at in range(0, 200, 5):
        now[0] = float(at)
        await follower.follow(Advice("greeting", Look(float(at), 1, 1), Decision(2, "")))
    assert tried == [0, 15, 45, 105]
    error[0] = LockTaken("mesh roll (pid 7) is changing what runs")
    tried.clear()
    for at in range(300, 320, 5):
        now[0] = float(at)
        await follower.follow(Advice("greeting", Look(float(at), 1, 1), Decision(2, "")))
    assert tried == [300, 305, 310, 315]


def test_the_time_of_a_look_is_short(busy: subprocess.Popen[bytes]):
    """`mesh top` and autoscaling look each second or two: a look must cost little."""
    began = time.process_time()
    for _ in range(5):
        usage([busy.pid, os.getpid()])
    assert (time.process_time() - began) / 5 < 0.25
