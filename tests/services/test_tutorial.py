"""docs/tutorial.md: whoever types it sees what it shows."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from tutorial import DOCUMENT, Player, free_port, normal, steps

BINARIES = Path(sys.executable).parent


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial uses curl: apt install curl")
def test_the_tutorial_shows_what_really_happens() -> None:
    """Its files are written, its commands run in order, and each output is the one that it shows."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        shop = Path(directory, "shop")
        shop.mkdir()
        player = Player(shop, BINARIES, free_port())
        try:
            player.play(DOCUMENT.read_text())
        finally:
            player.close()
        assert not player.wrong, "\n\n".join(player.wrong)
        assert not list(shop.glob("run/*.sock")), "sockets were left behind"


def test_the_tutorial_is_read_to_its_end() -> None:
    """A fence that nobody reads proves nothing."""
    text = DOCUMENT.read_text()
    played = steps(text)
    assert text.count("\n```") == 2 * (len(played) + text.count("```console skip\n") + 1), (
        "the picture is the only other"
    )
    assert {step.kind for step in played} == {"python", "ini", "toml", "console", "pycon"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("12:00:01.123 [info] ready worker=hello-06acf5ec", "13:59:59.999 [info] ready worker=hello-ffffffff", True),
        ('"Hello, ujun! This is process 81."', '"Hello, ujun! This is process 30001."', True),
        ("    500 200", "    499 200", False),
        ('{"status":403}', '{"status":500}', False),
        ("mesh: hello.think: no answer within 0.5 s", "mesh: hello.think: no answer within 5 s", False),
    ],
)
def test_only_accidents_are_overlooked(one: str, other: str, same: bool) -> None:
    """Times, process numbers and ids differ from run to run; what was counted, and how it ended, does not."""
    assert (normal(one) == normal(other)) is same
