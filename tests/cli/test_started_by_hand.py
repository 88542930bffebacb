"""Commands that look work with processes that no supervisor runs."""

from __future__ import annotations

import json

from cli_project import Mesh

from mesh.telemetry.recent_lines import MAX_LINE_CHARACTERS, MAX_LINES, RecentLines


def test_doctor_finds_nothing_wrong(mesh: Mesh):
    """No supervisord.conf is no fault; hub and worker answer."""
    done = mesh("--json", "doctor", env={"MESH_GATEWAY_PORT": "1"})
    findings = {each["about"]: each for each in json.loads(done.stdout)}
    assert {each["grade"] for about, each in findings.items() if about != "HTTP"} == {"good"}
    assert "hub" in findings
    assert any(about.startswith("greeting-") for about in findings)


def test_logs_are_asked_of_the_processes(mesh: Mesh):
    done = mesh("--json", "logs")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    ready = [line for line in lines if line["event"] == "worker.ready"]
    assert [line["process"].rpartition("-")[0] for line in ready] == ["greeting"]
    assert ready[0]["level"] == "info"
    assert mesh("--json", "logs", "greeting").stdout == done.stdout


def test_logs_of_an_unknown_name_are_a_usage_error_that_names_the_known_ones(mesh: Mesh):
    done = mesh("logs", "nothing")
    assert done.returncode == 2
    assert "greeting" in done.stderr


def test_top_shows_them(mesh: Mesh):
    done = mesh("--json", "top", "--once", "--every", "0.2")
    assert done.returncode == 0
    frame = json.loads(done.stdout)
    assert [(row["group"], row["state"]) for row in frame["processes"]] == [("greeting", "RUNNING")]
    assert frame["processes"][0]["sample"]["answered"]


def test_recent_lines_are_bounded_and_numbered():
    """The oldest go; what was asked for already is not given again."""
    recent = RecentLines()
    assert recent.since(0) == (0, [])
    for number in range(MAX_LINES + 10):
        recent.add(str(number))
    following, lines = recent.since(0)
    assert (following, len(lines), lines[0]) == (MAX_LINES + 10, MAX_LINES, "10")
    assert recent.since(following - 1) == (following, [str(MAX_LINES + 9)])
    assert recent.since(following) == (following, [])
    assert recent.since(following + 99) == (following, [])
    recent.add("x" * 2 * MAX_LINE_CHARACTERS)
    assert len(recent.since(following)[1][0]) == MAX_LINE_CHARACTERS
