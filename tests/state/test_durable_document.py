"""docs/durable.md: its Python runs, shows what it says, and its defaults are those of the code.

What the words behind ``python`` say: nothing: a module that all share · ``in orders``: lines within a method of a
running Orders, one session from the first to the last · ``test``: tests. ``# → VALUE`` behind an expression is what it
must give, ``# shows TEXT`` behind a print what it must print.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from msgspec import structs

import mesh
from mesh import config
from mesh.cli.main import mesh as cli
from mesh.config import Settings
from mesh.engines.capabilities import KEYS
from mesh.state.namespace import Namespace
from mesh.store.service import Store
from mesh.testing import Mesh

DOCUMENT = Path(__file__).parents[2] / "docs" / "durable.md"
TEXT = DOCUMENT.read_text()
_FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"# (→|shows) (.*)$")


class Fence(NamedTuple):
    """One block: its language, the words behind it, its body, and the line on which that begins."""

    language: str
    words: str
    body: str
    line: int


FENCES = [
    Fence(found[1], found[2] or "", found[3], TEXT.count("\n", 0, found.start(3))) for found in _FENCE.finditer(TEXT)
]


def python(words: str) -> list[Fence]:
    return [fence for fence in FENCES if fence.language == "python" and fence.words == words]


class _Watch(ast.NodeTransformer):
    """Have each expression that says what it gives tell `_shown` of it."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        assert node.end_lineno is not None
        found = _SHOWN.search(self._lines[node.end_lineno - 1])
        if found is None or found[1] == "shows":
            return node
        call = ast.Call(
            ast.Name("_shown", ast.Load()), [node.value, ast.Constant(found[2]), ast.Constant(node.lineno)], []
        )
        return ast.copy_location(ast.fix_missing_locations(ast.Expr(call)), node)


def compiled(fence: Fence) -> types.CodeType:
    """The code of a block, with the lines of the document."""
    lines = [""] * fence.line + fence.body.splitlines()
    tree = _Watch(lines).visit(ast.parse("\n".join(lines)))
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if fence.words == "in orders" else 0
    return compile(ast.fix_missing_locations(tree), str(DOCUMENT), "exec", flags=flags)


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """The shared module of the document. Registered, since types in annotations are looked up by it."""
    made = types.ModuleType("durable_document")
    sys.modules[made.__name__] = made
    for fence in python(""):
        exec(compiled(fence), vars(made))
    yield made
    del sys.modules[made.__name__]


def services(module: types.ModuleType) -> list[type[mesh.Service]]:
    return [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, mesh.Service)]


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_the_document_does_what_it_shows(module: types.ModuleType, engine: str, tmp_path: Path) -> None:
    """Every line of it, in order, in one running mesh, on each engine."""
    settings = {f"engines.{key}": engine for key in KEYS} | {"store.dir": tmp_path / "data"}
    own = [Store] if engine == "sqlite" else []
    shown: list[str] = []

    def show(value: Any, text: str, line: int) -> None:
        assert repr(value) == text, f"{DOCUMENT.name}:{line}"
        shown.append(text)

    async with Mesh(*own, *services(module), settings=settings) as m:
        (orders,) = m.instances(module.Orders)
        names = vars(module) | {"self": orders, "_shown": show}
        for fence in python("in orders"):
            code = compiled(fence)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                running = eval(code, names)
                if inspect.isawaitable(running):
                    await asyncio.wait_for(running, 20)
            said = [
                found[2] for line in fence.body.splitlines() if (found := _SHOWN.search(line)) and found[1] == "shows"
            ]
            assert printed.getvalue().splitlines() == said, f"{DOCUMENT.name}:{fence.line}"
        await m.idle()
        assert await m.dead("orders.charge") == []
        assert await m.dead("orders.audit") == []
    assert len(shown) == sum(fence.body.count("# →") for fence in python("in orders"))


async def test_its_tests_pass(module: types.ModuleType) -> None:
    """As somebody would copy them."""
    names = vars(module).copy()
    for fence in python("test"):
        exec(compiled(fence), names)
    tests = [each for name, each in names.items() if name.startswith("test_")]
    assert len(tests) == 3
    for each in tests:
        await each()


def test_it_is_read_to_its_end() -> None:
    """A block that nobody runs proves nothing."""
    assert TEXT.count("\n```") == 2 * len(FENCES)
    assert {fence.words for fence in FENCES if fence.language == "python"} == {"", "in orders", "test"}
    assert {fence.language for fence in FENCES} == {"python", "toml", "console"}


def commands() -> list[list[str]]:
    """Every `mesh …` that it has people type."""
    typed = [line[2:] for fence in FENCES if fence.language == "console" for line in fence.body.splitlines()]
    typed += re.findall(r"`(mesh [a-z]+ [^`]*)`", TEXT)
    return [words for line in typed if (words := shlex.split(line, comments=True))[0] == "mesh"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_its_commands_are_commands(words: list[str]) -> None:
    """With arguments and options that they have."""
    command: click.Command = cli
    context = click.Context(command, info_name=words.pop(0))
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, context = found, click.Context(found, parent=context, info_name=words.pop(0))
    command.make_context(context.info_name, words, parent=context.parent)


def test_its_settings_are_settings() -> None:
    """Each key of each TOML block is one, with a value of its kind."""
    blocks = [fence for fence in FENCES if fence.language == "toml"]
    assert blocks
    for fence in blocks:
        flags = {
            f"{section}.{key}": value
            for section, table in tomllib.loads(fence.body).items()
            for key, value in table.items()
        }
        config.load(Path("/dev/null"), env={}, flags=flags)


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading."""
    part = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("| `")
    ]


def test_its_defaults_are_those_of_the_code() -> None:
    """Every setting of these sections, and no other."""
    defaults = {}
    for section in ("engines", "store", "tasks", "events"):
        for field in structs.fields(type(getattr(Settings(), section))):
            defaults[f"{section}.{field.encode_name}"] = getattr(getattr(Settings(), section), field.name)
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows("15. Settings")}
    assert set(listed) == set(defaults) - {"store.dir", "store.backups", "engines.own"}
    for key, text in listed.items():
        value = tomllib.loads(f"value = {text}")["value"]
        flags = config.load(Path("/dev/null"), env={}, flags={key: value})
        section, _, name = key.partition(".")
        field = next(f for f in structs.fields(type(getattr(flags, section))) if f.encode_name == name)
        assert getattr(getattr(flags, section), field.name) == defaults[key], key


def table(title: str) -> list[set[str]]:
    """What stands in backquotes in the first cell of each row of a table."""
    body = TEXT.split(f"\n| {title} |", 1)[1].split("\n\n", 1)[0]
    return [set(re.findall(r"`(\w+)", line.split("|")[1])) for line in body.splitlines()[2:]]


def options(function: Any) -> set[str]:
    kinds = inspect.signature(function).parameters.items()
    return {name for name, parameter in kinds if parameter.kind is parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("title", "named"),
    [
        ("`@task(…)`", options(mesh.task)),
        ("`defer(task, *args, …)`", options(mesh.Node.defer)),
        ("`@on(topic, durable=True, …)`", options(mesh.on) - {"to", "durable"}),
        ("`lock(name, …)`", {"ttl", "wait"}),
        ("verb", {name for name in dir(Namespace) if name[0] != "_"} - {"name", "put", "remove", "plus"}),
    ],
)
def test_its_tables_name_every_option(title: str, named: set[str]) -> None:
    """None is missing, none is made up."""
    assert set().union(*table(title)) == named


def test_its_metrics_are_counted() -> None:
    """Each is a name that some room of mesh gives to a counter or gauge."""
    source = "".join(path.read_text() for path in Path(mesh.__file__).parent.rglob("*.py"))
    names = re.findall(r"`mesh_(\w+?)(?:_total)?(?:\{\w+\})?`", TEXT)
    assert len(names) > 10
    for name in names:
        assert f'"{name}"' in source, name
