"""A soak: the set under supervisord, its load, its restarts, samples, and the verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.conftest import ROOT, Set, environment, project

from . import judgement
from .judgement import Growth
from .samples import Folders, Sample, folders, sample

FOLDERS: Final = ("run", "logs", "data")
#: Of a run, the part in which things are still becoming what they will be.
WARM_UP: Final = 0.34
#: Kept for a short time, so that what is kept is soon as much as it will be.
SETTINGS: Final = """
[events]
retention = "10s"
[tasks]
keep = "10s"
[services.steady]
class = "tests.soak.services:Steady"
replicas = 2
[services.rolled]
class = "tests.soak.services:Rolled"
replicas = 2
"""
LEAKY: Final = """
[services.leaky]
class = "tests.soak.services:Leaky"
"""


@dataclass
class Soak:
    """Attributes:
    found: the growth of every process and folder that was long enough there to be judged.
    answered: requests; failed: those that were not answered, by kind.
    restarts: lives that were ended, rolls and kills.
    """

    found: list[Growth] = field(default_factory=list)
    answered: int = 0
    failed: str = ""
    restarts: int = 0

    @property
    def grown(self) -> list[Growth]:
        return [one for one in self.found if one.too_much]

    def table(self) -> str:
        lost = self.failed or "none"
        last = f"{self.answered} requests answered; not answered: {lost}; {self.restarts} restarts"
        return f"{judgement.table(self.found)}\n{last}"


def soak(seconds: float, *, every_s: float = 5.0, restart_every_s: float = 60.0, leak: bool = False) -> Soak:
    """Run it.

    Args:
        every_s: between two samples.
        restart_every_s: between two restarts of workers that are restarted: a roll, or a kill -9.
        leak: also run, and call, a service that leaks.
    """
    made = Soak()
    environment_path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{ROOT}:{environment_path}".rstrip(":")
    try:
        with project({}, SETTINGS + (LEAKY if leak else ""), gateways=2) as running:
            _load_and_watch(running, made, seconds, every_s, restart_every_s, leak)
    finally:
        os.environ["PYTHONPATH"] = environment_path
    return made


def _load_and_watch(
    running: Set, made: Soak, seconds: float, every_s: float, restart_every_s: float, leak: bool
) -> None:
    count = running.root / "count"
    words = [sys.executable, "-m", "tests.soak.load", str(running.root / "mesh.toml"), running.url, str(count)]
    samples: list[Sample] = []
    places: list[Folders] = []
    with (running.root / "load.log").open("w") as log:
        load = subprocess.Popen(words + ["--leak"] * leak, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    rolling: subprocess.Popen[bytes] | None = None
    try:
        began_at = time.monotonic()
        restart_at = restart_every_s
        while (now := time.monotonic() - began_at) < seconds:
            assert load.poll() is None, f"the load ended: {(running.root / 'load.log').read_text()[-2000:]}"
            pids = {**running.pids(), "load": load.pid, "supervisord": _supervisord(running.root)}
            samples += sample(now, pids)
            places.append(folders(now, running.root, FOLDERS, _answered(count)[0]))
            if now >= restart_at and (rolling is None or rolling.poll() is not None):
                restart_at = now + restart_every_s
                made.restarts += 1
                rolling = _restart(running, made.restarts, pids)
            time.sleep(max(0.0, every_s - (time.monotonic() - began_at - now)))
        made.answered, made.failed = _answered(count)
    finally:
        load.send_signal(signal.SIGTERM)
        try:
            load.wait(20)
        except subprocess.TimeoutExpired:
            load.kill()
            load.wait()
        if rolling is not None:
            rolling.wait(120)
    warm_up_s = seconds * WARM_UP
    made.found = judgement.processes(samples, warm_up_s) + judgement.places(places, warm_up_s)


def _restart(running: Set, number: int, pids: dict[str, int]) -> subprocess.Popen[bytes] | None:
    """A roll, or every third time a kill."""
    if number % 3 == 0:
        name = next(name for name in sorted(pids) if name.startswith("rolled:"))
        os.kill(pids[name], signal.SIGKILL)
        return None
    words = [str(Path(sys.executable).parent / "mesh"), "roll", "rolled"]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(words, cwd=running.root, env=environment(), stdin=nothing, stdout=nothing, stderr=nothing)


def _supervisord(root: Path) -> int:
    return int((root / "run/supervisord.pid").read_text())


def _answered(count: Path) -> tuple[int, str]:
    if not count.exists():
        return 0, ""
    number, _, failed = count.read_text().strip().partition(" ")
    return int(number), failed
