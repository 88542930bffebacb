"""The soak itself: what it calls growth, and that it finds a service that leaks."""

from __future__ import annotations

import random

import pytest

from . import judgement
from .run import soak
from .samples import Folders, Sample

#: Growth of half a minute that may be chance. The leaking service's descriptors double.
FEW = 0.3


def life(memory: list[float], *, files: list[int] | None = None, name: str = "one", pid: int = 1) -> list[Sample]:
    return [Sample(float(at), name, pid, round(kib), files[at] if files else 20, 4) for at, kib in enumerate(memory)]


def grown(samples: list[Sample], warm_up_s: float = 100.0) -> list[tuple[str, str]]:
    return [(one.name, one.what) for one in judgement.processes(samples, warm_up_s) if one.too_much]


RNG = random.Random(3)


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param([50_000] * 400, id="flat"),
        pytest.param([50_000 + RNG.uniform(-4000, 4000) for _ in range(400)], id="noise"),
        pytest.param([40_000 + 100 * min(at, 99) for at in range(400)], id="warms up"),
        pytest.param([50_000 + 300 * (at % 20) for at in range(400)], id="saw-tooth"),
        pytest.param([50_000 + 90_000 * (at == 390) for at in range(400)], id="one peak"),
        pytest.param([50_000 - 50 * at for at in range(400)], id="shrinks"),
        pytest.param([50_000 + 5 * at for at in range(400)], id="three percent"),
    ],
)
def test_what_is_no_growth(memory: list[float]) -> None:
    assert grown(life(memory)) == []


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param([50_000 + 20 * at for at in range(400)], id="slow leak"),
        pytest.param([50_000 + 20 * at + RNG.uniform(-3000, 3000) for at in range(400)], id="slow leak under noise"),
        pytest.param([50_000 + 10_000 * (at > 250) for at in range(400)], id="a step"),
        pytest.param([50_000 + 300 * (at % 20) + 20 * at for at in range(400)], id="saw-tooth that climbs"),
    ],
)
def test_what_is_growth(memory: list[float]) -> None:
    assert grown(life(memory)) == [("one", "memory")]


def test_descriptors_and_lives() -> None:
    """Each life is judged alone, and one that is too short not at all."""
    flat = [50_000.0] * 400
    assert grown(life(flat, files=[20 + at // 20 for at in range(400)])) == [("one", "files")]
    assert grown(life(flat, files=[20 + (at > 200) for at in range(400)])) == []
    first, second = life(flat[:250], name="two", pid=1), life([90_000] * 400, name="two", pid=2)[250:]
    assert grown(first + second) == []
    assert {one.name for one in judgement.processes(first + second + life(flat), 100.0)} == {"one"}


def test_folders_and_logs() -> None:
    def run(files: float, per_request: float, later: float) -> list[tuple[str, str]]:
        log, samples = 0.0, []
        for at in range(100):
            log += 10 * (per_request if at < 60 else later)
            samples.append(Folders(float(at), {"run": 9 + int(at * files), "logs": 7}, int(log), 10 * at))
        return [(one.name, one.what) for one in judgement.places(samples, 20.0) if one.too_much]

    assert run(0.0, 2.0, 2.0) == []
    assert run(0.0, 2.0, 12.0) == []  # a restart was logged
    assert run(0.1, 2.0, 2.0) == [("run/", "files")]
    assert run(0.0, 2.0, 200.0) == [("logs", "log")]


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_a_service_that_leaks_is_found() -> None:
    """The real set for half a minute: the leak is found, and no other process gains descriptors, threads or files."""
    made = soak(30.0, every_s=0.5, restart_every_s=8.0, leak=True)
    assert made.answered > 300, made.table()
    assert made.restarts >= 2, made.table()
    leaky = {one.what for one in made.grown if one.name.startswith("leaky")}
    assert leaky == {"memory", "files"}, made.table()
    # Half a minute is too short to judge memory, and a few connections more or less are chance; a leak is not a few.
    others = [
        one
        for one in made.grown
        if not one.name.startswith(("leaky", "load")) and one.what != "memory" and one.share > FEW
    ]
    assert not others, made.table()
    judged = {one.name.partition(":")[0] for one in made.found}
    assert judged >= {"hub", "store", "gateway", "steady", "load", "supervisord"}
