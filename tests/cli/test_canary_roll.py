"""The options of `mesh roll` for releases by traffic share."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from mesh.cli import canary_roll
from mesh.cli.commands.roll import command
from mesh.deploy.canary_plan import CanarySample, Plan
from mesh.deploy.error_gate import Limits
from mesh.policy.canary import Calls


def options(*words: str) -> dict[str, Any]:
    """What the command gets for these words."""
    found: dict[str, Any] = {}

    @click.command
    @canary_roll.canary_options
    def probe(**given: Any) -> None:
        found.update(given)

    done = CliRunner().invoke(probe, words)
    assert done.exit_code == 0, done.output
    return found


def plan(*words: str) -> Plan:
    return canary_roll.plan(options(*words), 30.0, 1.0, Limits())


def test_the_defaults_are_those_of_the_guide() -> None:
    """5 %, 25 %, 50 %, a minute each, 99 % sure."""
    made = plan("--canary", "5%")
    assert made.shares == (0.05, 0.25, 0.5)
    assert made.rules == (0.001, 0.02, 0.1, 0.99, 60.0, 600.0)
    assert (made.mirror, made.methods, made.faults, made.every_s) == (0.0, (), (), 2.0)


def test_each_option_counts() -> None:
    made = plan(
        *("--canary", "10", "--steps", "20%,40", "--step-time", "5", "--max-time", "1m", "--mirror", "50%"),
        *("--mirror-method", "buy", "--fault", "out_of_stock", "--tolerance", "1", "--margin", "5", "--slower", "20"),
        *("--confidence", "95", "--every", "1s"),
    )
    assert made.shares == (0.1, 0.2, 0.4)
    assert made.rules == (0.01, 0.05, 0.2, 0.95, 5.0, 60.0)
    assert (made.mirror, made.methods, made.faults, made.every_s) == (0.5, ("buy",), ("out_of_stock",), 1.0)


@pytest.mark.parametrize(
    "words",
    [
        "--canary 100%",
        "--canary 0",
        "--canary five",
        "--canary 5% --steps 9,8",
        "--canary 5% --step-time 2m --max-time 1m",
        "--canary 5% --margin 0.1 --tolerance 0.1",
        "--canary 5% --mirror-method buy",
        "--mirror 200%",
        "--fault a",
        "--canary 5% other",
    ],
)
def test_what_cannot_be_meant_is_refused(words: str) -> None:
    """As a usage error, before anything is read or done."""
    done = CliRunner().invoke(command, ["orders", *words.split()])
    assert done.exit_code == 2, done.output


def test_a_sample_is_one_line() -> None:
    line = CanarySample(
        62.0, 0.05, 1, Calls(760, 1), Calls(40, 2), 0.5, 0.0, 0.125, {"equal": 3, "differs": 1}, "roll_back"
    )
    shown = canary_roll.shown(line)
    assert "\n" not in shown
    for part in (
        "1m 2s",
        "5 %",
        "new 2/40",
        "old 1/760",
        "worse 50%",
        "harmless 12%",
        "1 differs, 3 equal",
        "roll back",
    ):
        assert part in shown
