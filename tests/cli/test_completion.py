"""The Tab key offers what the registry and the settings know."""

from __future__ import annotations

import json

import pytest
from cli_project import Mesh


def offered(mesh: Mesh, *words: str, **env: str) -> list[str]:
    """What bash is given when the last of these words was begun."""
    done = mesh(
        env={
            "_MESH_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("mesh", *words)),
            "COMP_CWORD": str(len(words)),
            **env,
        }
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition(",")[2] for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["call", "greeting.h"], ["greeting.hello"]),
        (["call", "gre"], ["greeting.add", "greeting.count", "greeting.fail", "greeting.hello", "greeting.reverse"]),
        (["logs", "g"], ["greeting"]),
        (["roll", "g"], ["greeting"]),
        (["scale", "g"], ["greeting="]),
        (["config", "gateway.po"], ["gateway.port"]),
        (["defer", "nothing"], []),
        (["comp"], ["completion"]),
    ],
    ids=" ".join,
)
def test_what_is_offered(mesh: Mesh, words: list[str], expected: list[str]):
    assert offered(mesh, *words) == expected


def test_nothing_is_printed_when_no_hub_answers(mesh: Mesh):
    assert offered(mesh, "call", "gre", MESH_MESH_HUBS="ipc:///tmp/there-is-no-hub.sock") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(mesh: Mesh, shell: str):
    done = mesh("completion", shell)
    assert done.returncode == 0
    assert "_MESH_COMPLETE" in done.stdout


def test_methods_of_the_framework_are_listed_only_when_they_are_asked_for(mesh: Mesh):
    listed = json.loads(mesh("--json", "ps", "--methods").stdout)
    assert set(listed) == {f"greeting.{name}" for name in ("add", "count", "fail", "hello", "reverse")}
    assert set(json.loads(mesh("--json", "ps", "--methods", "--all").stdout)) >= set(listed)
