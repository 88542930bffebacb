"""[engines]: which engines can be chosen, and the settings that an engine declares for itself."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.config import Settings, load, origins, usable
from mesh.config.engines import BUILT_IN, sources
from mesh.engines.registry import EngineSpec, find, listed, offering
from mesh.errors import ConfigError, SetupError

ENGINE = """
from typing import Annotated
from pathlib import Path
from msgspec import Struct, field
from mesh.config.secrets import Secret
from mesh.config.values import DURATION, PATH, SECRET, TEXT, whole
from mesh.engines.registry import EngineSpec

class CrateSettings(Struct, frozen=True, kw_only=True):
    url: Annotated[str, TEXT, "the server"]
    linger_s: Annotated[float, DURATION, "how long to wait"] = field(default=2.0, name="linger")
    pool: Annotated[int, whole(1, 64), "connections"] = 4
    password: Annotated[Secret | None, SECRET, "of the account"] = None
    dir: Annotated[Path | None, PATH, "files"] = None

def make(context):
    raise AssertionError("it is not used")

spec = EngineSpec(name="crate", capabilities=("queues", "state"), settings=CrateSettings, make=make, about="crates")
plain = EngineSpec(name="plain", capabilities=("state",), make=make)
stolen = EngineSpec(name="memory", capabilities=("state",), make=make)
broken = None
"""

Project = Callable[[str], Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Write a mesh.toml into a project that has an engine of its own in crate_engine.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "crate_engine.py").write_text(ENGINE)

    def write(text: str) -> Path:
        (tmp_path / "mesh.toml").write_text(textwrap.dedent(text))
        return tmp_path

    yield write
    sys.modules.pop("crate_engine", None)


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a distribution with one engine: (name of the engine, module:attribute)."""

    def install(name: str, reference: str) -> None:
        site = tmp_path_factory.mktemp("site")
        info = site / f"mesh_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mesh-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[mesh.engines]\n{name} = {reference}\n")
        monkeypatch.syspath_prepend(str(site))

    return install


def wrong(env: dict[str, str] | None = None, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(env=env or {}, flags=flags)
    return caught.value.message.splitlines()


def place(line: str) -> tuple[str, str]:
    """(place, key) of a complaint."""
    return tuple(line.split(": ", 2)[:2])  # type: ignore[return-value]


# --- choosing -------------------------------------------------------------------------------------------


def test_the_default_is_of_every_key_that_is_not_set(project: Project):
    """And `mesh config` says from where each has it."""
    project('[engines]\ndefault = "memory"\nlocks = "SQLite"')
    engines = load(env={"MESH_ENGINES_STATE": "sqlite"}).engines
    assert (engines.tasks, engines.events, engines.schedules) == ("memory",) * 3
    assert (engines.state, engines.locks) == ("sqlite", "sqlite")
    rows = {row.key: (row.value, row.origin) for row in origins(env={})}
    assert rows["engines.tasks"] == ("memory", "mesh.toml:2")
    assert rows["engines.locks"] == ("sqlite", "mesh.toml:3")
    assert Settings().engines.tasks == "sqlite"


@pytest.mark.parametrize("name", ["sqlit", "postgres", "no.such:thing", "a b:c", "crate_engine:nothing"])
def test_an_engine_that_does_not_exist_is_told_at_its_line(project: Project, name: str):
    """The rest of the settings can be used."""
    project(f'[engines]\nstate = "memory"\ntasks = "{name}"')
    [line] = wrong()
    assert place(line) == ("mesh.toml:3", "engines.tasks")
    assert ('did you mean "sqlite"?' in line) == (name == "sqlit")
    found = usable(env={})
    assert (found.complaints, found.settings.engines.tasks, found.settings.engines.state) == (
        [line],
        "sqlite",
        "memory",
    )


def test_the_environment_can_be_wrong_too(project: Project):
    project("")
    [line] = wrong({"MESH_ENGINES_DEFAULT": "nope"})
    assert place(line) == ("MESH_ENGINES_DEFAULT", "engines.default")
    assert wrong({"MESH_ENGINES_TASK": "memory"})[0].endswith('did you mean "MESH_ENGINES_TASKS"?')


# --- the engine's own settings --------------------------------------------------------------------------


def test_an_engine_has_settings_of_its_own(project: Project):
    """From the file, the environment and flags, by the name in its spec."""
    root = project("""
        [engines]
        tasks = "crate_engine:spec"
        [engines.crate]
        url = "crate://${CRATE_HOST:here}"
        linger = "250ms"
        password = "env:CRATE_PASSWORD"
        dir = "crates"
    """)
    env = {"MESH_ENGINES_CRATE_POOL": "8", "CRATE_PASSWORD": "open"}
    settings = load(env=env, flags={"engines.crate.linger": 1.5})
    own = settings.engines.own["crate"]
    assert (own.url, own.linger_s, own.pool, own.dir) == ("crate://here", 1.5, 8, root / "crates")
    assert own.password.reveal(env) == "open"
    rows = {row.key: row for row in origins(env=env)}
    assert (rows["engines.crate.linger"].value, rows["engines.crate.linger"].origin) == ("250ms", "mesh.toml:6")
    assert (rows["engines.crate.pool"].value, rows["engines.crate.pool"].origin) == (8, "MESH_ENGINES_CRATE_POOL")
    assert rows["engines.crate.password"].value == "***"
    assert rows["engines.crate.pool"].about == "connections"


def test_every_mistake_in_them_is_told_at_its_line(project: Project):
    project("""
        [engines]
        tasks = "crate_engine:spec"
        [engines.crate]
        linger = "soon"
        pol = 3
        password = "open"
        [engines.sqlite]
        cache = "1MiB"
        [engines.tasks2]
        x = 1
    """)
    lines = wrong({"MESH_ENGINES_CRATE_POOL": "99", "MESH_ENGINES_CRATE_POL": "1"})
    assert [place(line) for line in lines if not line.startswith("MESH_ENGINES_CRATE_POL:")] == [
        ("mesh.toml:10", "engines.tasks2"),
        ("mesh.toml:5", "engines.crate.linger"),
        ("mesh.toml:6", "engines.crate.pol"),
        ("mesh.toml:7", "engines.crate.password"),
        ("mesh.toml:8", "engines.sqlite"),
        ("MESH_ENGINES_CRATE_POOL", "engines.crate.pool"),
        ("mesh.toml:4", "engines.crate.url"),
    ]
    assert any(line.endswith('did you mean "MESH_ENGINES_CRATE_POOL"?') for line in lines)
    assert not any("open" in line for line in lines)


def test_a_required_value_that_is_wrong_is_told_once(project: Project):
    project('[engines]\ntasks = "crate_engine:spec"\n[engines.crate]\nurl = 3')
    assert [place(line) for line in wrong()] == [("mesh.toml:4", "engines.crate.url")]


def test_a_key_that_is_no_engine_is_not_a_table(project: Project):
    project('[engines.tasks]\nx = "y"')
    assert place(wrong()[0]) == ("mesh.toml:1", "engines.tasks")


# --- packages -------------------------------------------------------------------------------------------


def test_a_package_adds_an_engine(project: Project, package):
    """By an entry point; it is not imported before it is chosen."""
    root = project("")
    package("crate", "crate_engine:spec")
    assert sources()["crate"].shown == "mesh-crate 1.2"
    sys.path.insert(0, str(root))
    load(env={"MESH_ENGINES_CRATE_POOL": "of another project"})
    assert "crate_engine" not in sys.modules
    own = load(env={"MESH_ENGINES_STATE": "crate", "MESH_ENGINES_CRATE_URL": "here"}).engines.own["crate"]
    assert own.url == "here"
    assert find("crate", root).about == "crates"
    assert {*BUILT_IN, "crate"} == {row.name for row in listed(load(env={})) if row.spec}
    assert offering("state", load(env={})) == ["crate", "memory", "sqlite"]
    assert offering("locks", load(env={})) == ["memory", "sqlite"]


@pytest.mark.parametrize(
    "reference", ["no_such_module_here:spec", "crate_engine:nothing", "crate_engine:broken", "crate_engine:plain"]
)
def test_a_broken_package_hurts_nobody_who_does_not_choose_it(project: Project, package, reference: str):
    """Who chooses it is told the package and what to do."""
    root = project('[engines]\ndefault = "memory"')
    sys.path.insert(0, str(root))
    package("crate", reference)
    assert load(env={}).engines.tasks == "memory"
    [line] = wrong({"MESH_ENGINES_STATE": "crate"})
    assert place(line) == ("MESH_ENGINES_STATE", "engines.state")
    assert "mesh-crate 1.2" in line
    assert "reinstall" in line
    rows = {row.name: row for row in listed(load(env={}))}
    assert rows["crate"].spec is None
    assert "mesh-crate 1.2" in rows["crate"].error
    assert rows["memory"].spec is not None
    assert offering("locks", load(env={})) == ["memory", "sqlite"]


def test_two_packages_with_one_name_are_told_apart(project: Project, tmp_path_factory, package, monkeypatch):
    """Neither is chosen by chance."""
    root = project('[engines]\nstate = "crate"')
    sys.path.insert(0, str(root))
    package("crate", "crate_engine:spec")
    other = tmp_path_factory.mktemp("site") / "other_crate-0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-crate\nVersion: 0.1\n")
    (other / "entry_points.txt").write_text("[mesh.engines]\ncrate = crate_engine:spec\n")
    monkeypatch.syspath_prepend(str(other.parent))
    [line] = wrong()
    assert place(line) == ("mesh.toml:2", "engines.state")
    assert "mesh-crate 1.2" in line
    assert "other-crate 0.1" in line


def test_nobody_takes_the_name_of_a_built_in_engine(project: Project, package):
    project('[engines]\nstate = "crate_engine:stolen"')
    assert place(wrong()[0]) == ("mesh.toml:2", "engines.state")
    package("sqlite", "crate_engine:plain")
    assert sources()["sqlite"].shown == "built in"


# --- specs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Crate"},
        {"name": "default"},
        {"capabilities": ()},
        {"capabilities": ("tasks",)},
        {"capabilities": ("jobs",)},
        {"capabilities": ("quotas", "state")},
        {"together": ("queues", "events")},
        {"settings": Settings},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(fields):
    with pytest.raises(SetupError) as caught:
        EngineSpec(**({"name": "crate", "capabilities": ("queues",), "make": lambda context: None} | fields))
    assert caught.value.code == "setup_error"
