"""The documents: links lead somewhere, the generated reference is complete, and public names are documented."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import mesh
import mesh.testing
from mesh.cli.main import COMMANDS
from mesh.config.entries import ENTRIES, SERVICE, variable_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/reference/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(document: Path):
    """As the repository's pages show them; the site is checked by `make docs`."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (document.parent / target).exists(), target


def test_every_setting_is_listed(reference: ModuleType):
    page = reference.settings()
    for table, entries in ENTRIES.items():
        for key in entries:
            assert f"`{variable_of(table, key)}`" in page
    section = page[page.index("## [services.NAME]") :]
    assert all(f"| `{key}` |" in section for key in SERVICE)


def test_every_command_is_listed(reference: ModuleType):
    page = reference.cli()
    assert all(f"## mesh {name}\n" in page for name in COMMANDS)
    assert "### mesh store backup\n" in page


def test_every_error_code_is_listed(reference: ModuleType):
    page = reference.errors()
    codes = {getattr(mesh, name).code for name in mesh.__all__ if _is_error(name)}
    assert codes <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_metric_that_the_guide_explains_is_listed(reference: ModuleType):
    """`…_total` in the guide continues the name before it; those are compared by their ends."""
    listed = set(re.findall(r"^\| `(\w+)` \|", reference.metrics(), re.MULTILINE))
    table = re.findall(r"^\| (`mesh_[^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    explained = {name for cell in table for name in re.findall(r"`(mesh_\w+)`", cell)}
    assert explained - listed == set()
    ends = {end for cell in table for end in re.findall(r"`…(_\w+)`", cell)}
    assert {end for end in ends if not any(name.endswith(end) for name in listed)} == set()


def test_every_public_name_is_listed(reference: ModuleType):
    page = reference.api()
    listed = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE))
    assert listed == set(mesh.__all__) - {"__version__", "http"}
    assert set(re.findall(r"^::: [\w.]+\.(\w+)$", reference.http(), re.MULTILINE)) == set(mesh.http.__all__)


# --- docstrings of public names -----------------------------------------------------------------------


def _is_error(name: str) -> bool:
    return isinstance(getattr(mesh, name), type) and issubclass(getattr(mesh, name), Exception)


def _public() -> list[tuple[str, object]]:
    """Public functions, classes, and the public methods of classes, with their names."""
    found: list[tuple[str, object]] = []
    for module in (mesh, mesh.http, mesh.testing):
        for name in module.__all__:
            value = getattr(module, name)
            if name == "__version__" or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            found.append((f"{module.__name__}.{name}", value))
            if inspect.isclass(value) and value.__module__.startswith("mesh."):
                found += [
                    (f"{module.__name__}.{name}.{method}", function)
                    for method, function in vars(value).items()
                    if not method.startswith("_") and inspect.isfunction(inspect.unwrap(function))
                ]
    return found


PUBLIC = _public()


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_a_public_name_has_a_docstring(name: str, value: object):
    """One that begins with a sentence."""
    text = inspect.getdoc(value) or ""
    first = text.partition("\n\n")[0].strip()
    assert len(first.split()) >= 2, f"{name} has no docstring"
    assert first[0] == first[0].upper(), name


@pytest.mark.parametrize(
    ("name", "value"), [each for each in PUBLIC if each[0].count(".") == 1 and inspect.isfunction(each[1])]
)
def test_a_public_function_explains_its_parameters(name: str, value: object):
    """Each parameter is named in the text; a function with parameters has a section for them."""
    assert callable(value)
    # The function under a decorator that is written without arguments is not passed by name.
    parameters = [each for each in inspect.signature(value).parameters if each not in ("self", "cls", "function")]
    text = inspect.getdoc(value) or ""
    for parameter in parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{name}: {parameter} is not explained"
    if len(parameters) > 1:
        assert "Args:" in text, name


@pytest.mark.parametrize(
    "name",
    [name for name in mesh.__all__ if name != "__version__" and not _is_error(name)],
)
def test_a_public_name_has_an_example_or_a_link(name: str):
    """So that a reader knows how to go on."""
    text = inspect.getdoc(getattr(mesh, name)) or ""
    assert re.search(r"::$|>>>|`[^`]*[(\[@.][^`]*`|docs/\w+\.md|Example", text, re.MULTILINE), name


# --- log events ---------------------------------------------------------------------------------------


def _logged() -> set[str]:
    """The heads of all log lines in mesh that are written as they are."""
    found = set()
    for path in (ROOT / "mesh").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical")
                and "log" in str(getattr(node.func.value, "id", getattr(node.func.value, "attr", ""))).lower()
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_log_line_is_an_event_that_the_guide_explains():
    """A stable name, `area.happened`, in the tables of "Log events"."""
    events = _logged()
    assert {each for each in events if not re.fullmatch(r"[a-z_]+\.[a-z_]+", each)} == set()
    guide = (ROOT / "docs/operating.md").read_text().partition("## Log events")[2]
    assert events - set(re.findall(r"`([a-z_]+\.[a-z_]+)`", guide)) == set()
