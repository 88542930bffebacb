"""The files of a new project: which names are possible, and what the files contain.

Owns: checking the name, filling in the templates, and writing them without touching anything that exists.
Leaves to others: the options and the output (new), supervisord.conf (supervision.layout), the templates (project/).
"""

from __future__ import annotations

import importlib.machinery
import keyword
import os
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, NamedTuple

from mesh.errors import ConfigError, SetupError

#: As for services, which are named after their project (service.service).
_NAME: Final = re.compile(r"[a-z](?:[a-z0-9_-]{0,61}[a-z0-9])?")

#: Names that mesh itself uses: for processes beside the services, and for directories of a project.
_PROCESSES: Final = frozenset({"hub", "store", "gateway", "watch", "autoscale", "operator", "client"})
_DIRECTORIES: Final = frozenset({"run", "logs", "data", "keys", "backups", "build", "dist", "inventory", "tests"})
#: The prefix of the framework's own services, as a package name.
_OWN: Final = "mesh_"


class BadName(ConfigError):
    """A project cannot have this name; the message says why, and a note names one that is possible."""

    code = "bad_name"


class Occupied(SetupError):
    """The directory of the new project has contents, is a file, or cannot be written."""

    code = "occupied"


class Names(NamedTuple):
    """The names of one project.

    Attributes:
        project: as given: "my-shop".
        package: of the Python package, the service and its test: "my_shop".
        cls: of the service's class: "MyShop".
    """

    project: str
    package: str
    cls: str


def names(project: str) -> Names:
    """The names of a project.

    Raises:
        BadName: it is no service name, or the package would clash with another module or directory.
    """
    if not _NAME.fullmatch(project):
        raise _bad(
            project,
            "use lower-case letters, digits, _ and -, from a letter to a letter or digit, at most 63 characters",
        )
    package = project.replace("-", "_")
    if why := _clash(package):
        raise _bad(project, why)
    cls = "".join(part.capitalize() for part in package.split("_"))
    return Names(project, package, cls)


def _clash(package: str) -> str:
    """Why the package cannot have this name, or ""."""
    if keyword.iskeyword(package):
        return "it is a Python keyword"
    if package in sys.stdlib_module_names:
        return f"the standard library has a module {package}, which the package would replace"
    if package == "mesh" or package.startswith(_OWN):
        return "names that begin with mesh are reserved for the framework"
    if package in _PROCESSES:
        return f"mesh has a process or a key named {package}"
    if package in _DIRECTORIES:
        return f"a project has a directory {package} for other contents"
    if _is_installed(package):
        return f"a package {package} is installed, which the project would hide"
    return ""


def _is_installed(package: str) -> bool:
    """Whether `import package` finds a module that is not in the current directory."""
    here = os.getcwd()
    paths = [path for path in sys.path if os.path.abspath(path or here) != here]
    found = importlib.machinery.PathFinder.find_spec(package, paths)
    # A directory without __init__.py has no loader.
    return found is not None and found.loader is not None


def _bad(project: str, why: str) -> BadName:
    error = BadName(f"{project!r} is not a valid project name: {why}", details={"name": project})
    if possible := _possible(project):
        error.add_note(f"for example: mesh new {possible}")
    return error


def _possible(project: str) -> str:
    """A similar name that is possible, or ""."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", project).lower()
    plain = re.sub(r"[^a-z0-9_]+", "-", words).strip("-_")[:40]
    plain = plain.lstrip("0123456789_-")
    for name in (plain, f"{plain}-service"):
        if _NAME.fullmatch(name) and not _clash(name.replace("-", "_")):
            return name
    return "shop"


def render(names: Names) -> Iterator[tuple[Path, str]]:
    """The files of a project except supervisord.conf: path within the project, and text."""
    values = {"@NAME@": names.project, "@PACKAGE@": names.package, "@CLASS@": names.cls}
    for path, text in sorted(_templates(files("mesh.cli") / "project", Path())):
        for mark, value in values.items():
            text = text.replace(mark, value)
        yield _target(path, names), text


def _templates(directory: Traversable, below: Path) -> Iterator[tuple[Path, str]]:
    for each in directory.iterdir():
        if each.is_dir():
            yield from _templates(each, below / each.name)
        elif each.name.endswith(".tmpl"):
            yield below / each.name.removesuffix(".tmpl"), each.read_text(encoding="utf-8")


def _target(path: Path, names: Names) -> Path:
    parts = [names.package if part == "package" else part for part in path.parts]
    last = parts[-1].replace("test_package", f"test_{names.package}")
    # Not stored under its own name: tools would apply a .gitignore to the templates themselves.
    parts[-1] = "." + last.removeprefix("dot-") if last.startswith("dot-") else last
    return Path(*parts)


def write(root: Path, names: Names) -> list[Path]:
    """Write a project into `root`, which must not exist or be empty; the files, relative to `root`.

    After an error nothing of it is left.

    Raises:
        Occupied: `root` has contents, is not a directory, or cannot be written.
    """
    from mesh.supervisord.layout import DEFAULT

    made: list[Path] = []
    try:
        _make(root, made)
        if next(root.iterdir(), None) is not None:
            raise Occupied(
                f"{root} is not empty; name another directory, or empty this one", details={"path": str(root)}
            )
        contents = dict(render(names))
        contents[Path("supervisord.conf")] = DEFAULT.read_text(encoding="utf-8")
        for path, text in contents.items():
            _make((root / path).parent, made)
            with (root / path).open("x", encoding="utf-8") as file:
                made.append(root / path)
                file.write(text)
    except OSError as exc:
        _remove(made)
        raise Occupied(f"{exc.filename or root}: {exc.strerror}", details={"path": str(root)}) from exc
    except BaseException:
        _remove(made)
        raise
    return sorted(contents)


def _make(directory: Path, made: list[Path]) -> None:
    """Create a directory, and those above it that are missing."""
    if directory.is_dir():
        return
    _make(directory.parent, made)
    directory.mkdir()
    made.append(directory)


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        try:
            path.rmdir() if path.is_dir() else path.unlink()
        except OSError:
            pass  # another process has put a file there, which stays
