"""The shape of the source: what import-linter's contracts do not say."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

MESH = Path(__file__).parents[1] / "mesh"


def _modules() -> dict[str, Path]:
    found = {}
    for path in MESH.rglob("*.py"):
        name = ".".join(("mesh", *path.relative_to(MESH).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of mesh that one module imports when it is loaded, or for type checkers; not inside of functions."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in inner:
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                found.add(target if target in modules else node.module)
    return found & modules.keys() - {"mesh"}


def test_no_modules_import_each_other():
    """Not even for type checkers: a module can be read with the modules below it alone."""
    modules = _modules()
    graph = {name: _imports(path, modules) - {name} for name, path in modules.items() if name != "mesh"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        raise AssertionError(" → ".join(exc.args[1])) from None
