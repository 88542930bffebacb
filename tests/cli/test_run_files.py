"""`mesh run` of files, wherever they are and whatever they are called; and of a class under another name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cli_project import Mesh, command, environment

from mesh import config
from mesh.cli import exits, loading
from mesh.errors import SetupError

SERVICE = """
import mesh
from helper import WORD

class Shop(mesh.Service):
    @mesh.rpc(offload="process")
    def word(self) -> str:
        return WORD
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with services, which is not the current one."""
    directory = tmp_path / "else where"
    directory.mkdir()
    (directory / "helper.py").write_text("WORD = 'fine'\n")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return directory


@pytest.mark.parametrize("name", ["svc.py", "token.py", "json.py", "my-service.py"])
def test_a_file_is_found_by_its_place(elsewhere: Path, name: str):
    """By an absolute path, by a relative one, and in the current directory; names of the standard library included."""
    (elsewhere / name).write_text(SERVICE)
    path = elsewhere / name
    for word in (str(path), f"{path}:Shop", os.path.relpath(path)):
        done = run("run", "--check", word)
        assert done.returncode == 0, done.stderr
    done = run("run", "--check", name, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert run("run", "--check", str(elsewhere / "none.py")).returncode == exits.FAILED


def test_a_module_name_that_the_standard_library_has_means_the_file(elsewhere: Path):
    """As a word without .py, too."""
    (elsewhere / "token.py").write_text(SERVICE)
    assert run("run", "--check", "token:Shop", cwd=elsewhere).returncode == 0
    assert run("run", "--check", "token", cwd=elsewhere).returncode == 0


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # -P: as the console script, which does not put the current directory first either.
    first, *others = command(*words)
    return subprocess.run(
        [first, "-P", *others], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_package_keeps_its_relative_imports(elsewhere: Path):
    """Below the current directory a file is the module of its dotted name."""
    package = elsewhere / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("WORD = 'x'\n")
    (package / "svc.py").write_text(SERVICE.replace("from helper", "from .words"))
    for word in ("shop/svc.py", str(package / "svc.py"), "shop.svc", "shop.svc:Shop"):
        done = run("run", "--check", word, cwd=elsewhere)
        assert done.returncode == 0, done.stderr


async def test_a_process_of_the_pool_finds_the_file_again(elsewhere: Path):
    """By its place."""
    from mesh.testing import Mesh as WholeMesh

    (elsewhere / "token.py").write_text(SERVICE)
    (shop,) = loading.load([str(elsewhere / "token.py")])
    async with WholeMesh(shop, settings={"worker.processes": 1}) as m:
        assert await m.call("shop.word", timeout=60) == "fine"


# --- names of sections ------------------------------------------------------------------------------------

TWO = """
[services.eu]
class = "shop:Shop"
concurrency = 3
[services.eu.config]
currency = "EUR"

[services.us]
class = "shop:Shop"
[services.us.config]
currency = "USD"
"""

SHOP = """
import mesh

class Shop(mesh.Service):
    name = "shop"

    @mesh.rpc
    async def currency(self) -> str:
        return self.config["currency"]

class Other(mesh.Service):
    pass
"""


def test_a_section_gives_its_one_class_its_name(elsewhere: Path):
    """So that two sections of one class are two services."""
    (elsewhere / "mesh.toml").write_text(TWO)
    (elsewhere / "shop.py").write_text(SHOP)
    settings = config.load(elsewhere / "mesh.toml", env={})
    classes = loading.load([str(elsewhere / "shop.py") + ":Shop"])
    assert [cls.name for cls in loading.named(classes, "eu", settings)] == ["eu"]
    assert [cls.name for cls in loading.named(classes, "us", settings)] == ["us"]
    assert [cls.name for cls in loading.named(classes, "shop", settings)] == ["shop"]
    assert [cls.name for cls in classes] == ["shop"]


def test_values_that_belong_to_no_class_of_a_section_are_refused(elsewhere: Path):
    """Of a section with several classes, none of which has its name."""
    (elsewhere / "mesh.toml").write_text('[services.pair]\nclass = ["shop"]\n[services.pair.config]\na = 1\n')
    (elsewhere / "shop.py").write_text(SHOP)
    settings = config.load(elsewhere / "mesh.toml", env={})
    classes = loading.load([str(elsewhere / "shop.py")])
    with pytest.raises(SetupError) as caught:
        loading.named(classes, "pair", settings)
    assert caught.value.details == {"key": "config"}
    assert [cls.name for cls in loading.named(classes, "third", settings)] == ["shop", "other"]
    done = run("run", "--check", "--as", "pair", "shop", cwd=elsewhere)
    assert done.returncode == exits.FAILED
    assert "[services.pair]" in done.stderr


async def test_two_sections_of_one_class_have_each_their_own(elsewhere: Path):
    """Configuration and limits."""
    from mesh.testing import Mesh as WholeMesh

    (elsewhere / "shop.py").write_text(SHOP)
    (shop,) = loading.load([str(elsewhere / "shop.py") + ":Shop"])
    settings = {
        "services.eu.config.currency": "EUR",
        "services.eu.concurrency": 3,
        "services.us.config.currency": "USD",
    }
    async with WholeMesh(shop.named("eu"), shop.named("us"), settings=settings) as m:
        assert [await m.call(f"{name}.currency") for name in ("eu", "us")] == ["EUR", "USD"]
        assert await m.rpc[shop.named("us")].currency() == "USD"  # type: ignore[attr-defined]
        assert m.node.instances("eu")[0].places == 3
        assert m.node.instances("shop") == ()


# --- files and locales ------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path):
    """Of mesh.toml, and of an environment file."""
    from mesh.config.env_file import read_env_file

    (tmp_path / "mesh.toml").write_bytes(b'\xef\xbb\xbf[mesh]\nname = "caf\xc3\xa9"\n')
    assert config.load(tmp_path / "mesh.toml", env={}).mesh.name == "café"
    (tmp_path / "secrets.env").write_bytes(b"\xef\xbb\xbfA=1\n")
    assert read_env_file(tmp_path / "secrets.env") == {"A": "1"}


def test_files_that_supervisor_reads_are_ascii():
    """It reads them in the encoding of its locale, which may know nothing else."""
    from mesh.supervisord.layout import DEFAULT

    DEFAULT.read_text(encoding="ascii")
    (Path(__file__).parents[2] / "supervisord.conf").read_text(encoding="ascii")


def test_an_ascii_locale_does_not_break_the_command_line(tmp_path: Path):
    """What it cannot show is shown by its code."""
    env = {**environment(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (("--help",), ("doctor",), ("config",)):
        done = subprocess.run(command(*words), cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False)
        assert b"UnicodeEncodeError" not in done.stderr
        assert b"bug in mesh" not in done.stderr
        assert done.returncode in (0, 1)


def test_call_shows_the_trace_that_it_begins(mesh: Mesh, project: Path):
    """With -v, on stderr; the worker's lines have it."""
    done = mesh("call", "-v", "greeting.fail")
    assert done.stderr.startswith("trace ")
    trace = done.stderr.split()[1]
    assert len(trace) == 32
    assert done.stdout == ""
    done = mesh("call", "--verbose", "--json", "greeting.add", "1", "2")
    assert done.returncode == 0
    assert done.stderr.startswith("trace ")
