"""The engine of docs/engines.md, as its reader would have it: the code, the entry point and the project's mesh.toml."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "docs" / "engines.md"
BLOCKS = [
    (found[1], found[2])
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
]


def block(words: str) -> str:
    """The only block with these words behind its fence."""
    [found] = [body for its, body in BLOCKS if its == words]
    return found


CODE = block("python")
PROJECT = block("toml project")


def module() -> Any:
    """The module of the example, by another name than a package would have."""
    name = "documented_shelf_engine"
    if name not in sys.modules:
        made = types.ModuleType(name)
        # Types in annotations are looked up in the module.
        sys.modules[name] = made
        exec(compile(CODE, str(DOCUMENT), "exec"), vars(made))
    return sys.modules[name]


def install(site: Path) -> None:
    """The package of the example, as an installer leaves it in a directory of sys.path."""
    points = tomllib.loads(block("toml package"))["project"]["entry-points"]
    (site / "shelf_engine.py").write_text(CODE)
    info = site / "mesh_shelf-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mesh-shelf\nVersion: 0.3\n")
    text = [line for group, its in points.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in its.items()))]
    (info / "entry_points.txt").write_text("\n".join(text) + "\n")
