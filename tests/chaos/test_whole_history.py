"""A minute of kills, freezes, clock jumps, full disks and cut cables: every promise holds in the recorded history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.jepsen.run import Plan, run

from .conftest import LONG
from .durable_set import tell

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 300)]

SECONDS = 300.0 if LONG else 60.0
SEED = int(os.environ.get("MESH_JEPSEN_SEED", "7"))


def test_every_promise_holds_in_the_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make jepsen` in short. When it fails, `python -m tests.jepsen.check` judges the saved history again."""
    saved = tmp_path / "history.jsonl"
    plan = Plan(SECONDS, SEED, lease_s=3.0, freeze_s=(1.0, 8.0), gap_s=(0.5, 3.0))
    report, made = run(plan, saved, tmp_path / "logs")
    tell(capsys, report.table())
    assert report.ok, f"{report.table()}\nseed {SEED}, history {saved}"
    # It has to have been a trial: work was done, faults were made, and doubt was removed.
    assert report.operations > 2_000, report.table()
    assert report.faults.total() >= 10, report.table()
    assert report.resolved > 10, report.table()
    assert set(made.skipped) <= {"cut", "clock", "disk"}
