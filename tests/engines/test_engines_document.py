"""docs/engines.md names what there is. Its engine is run by tests/contract and tests/cli/test_engines.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from mesh.config import load
from mesh.engines.capabilities import CAPABILITIES, KEYS
from mesh.errors import NotOffered
from mesh.testing import Mesh
from tests.documented_engine import BLOCKS, DOCUMENT, block, module

TEXT = DOCUMENT.read_text()


def test_it_names_every_capability() -> None:
    """None is missing, none is made up."""
    table = TEXT.split("\n## Capabilities\n", 1)[1].split("\n\n## ", 1)[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [name for cell in first for name in re.findall(r"`(\w+)`", cell)] == list(CAPABILITIES)


def test_its_settings_are_settings() -> None:
    """Every key of [engines], with values that are allowed."""
    engines = tomllib.loads(block("toml"))["engines"]
    assert list(engines) == ["default", *KEYS]
    settings = load(Path("/dev/null"), env={}, flags={f"engines.{key}": name for key, name in engines.items()})
    assert {key: getattr(settings.engines, key) for key in engines} == engines


async def test_a_test_of_a_project_uses_it(tmp_path: Path) -> None:
    """By its reference and its settings; the rest is in memory."""
    settings = {"engines.state": f"{module().__name__}:spec", "engines.shelf.file": str(tmp_path / "shelf")}
    async with Mesh(settings=settings) as m:
        assert await m.state("numbers").add("calls", 2) == 2
        value, _ = await m.state("numbers").get("calls")
        assert value == 2
        with pytest.raises(NotOffered) as caught:
            async with m.atomic():
                await m.state("numbers").set("calls", 0)
        assert caught.value.details["engines"] == {"state": "shelf"}
    assert (tmp_path / "shelf").is_file()


def test_it_is_read_to_its_end() -> None:
    """A block that nobody runs proves nothing."""
    assert sorted(words for words, _ in BLOCKS) == ["console", "python", "toml", "toml package", "toml project"]
    assert TEXT.count("\n```") == 2 * len(BLOCKS)


def test_the_modules_that_it_names_exist() -> None:
    root = DOCUMENT.parents[1]
    for name in set(re.findall(r"`(mesh\.[a-z_.]+)`", TEXT)) - {"mesh.engines"}:
        path = root / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    for name in set(re.findall(r"`(tests/[a-z_/]+(?:\.py)?)`", TEXT)):
        assert (root / name).exists(), name
