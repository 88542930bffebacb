"""Loads modules by the path of their file, not by a name that another module may have.

Owns: loading them, and finding them again in a process of the offload pool.
Leaves to others: choosing the file (cli.loading).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from mesh.errors import SetupError
from mesh.suggest import suggestion

#: Prefix of the names of such modules.
_PREFIX: Final = "mesh_file_"


def load_file(path: Path) -> ModuleType:
    """The module in a file, loaded once. It can import the modules in its directory by name, unless another module
    earlier on `sys.path` has the name.

    Raises:
        Exception: any exception that the module raises.
    """
    path = path.resolve()
    name = f"{_PREFIX}{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    known = sys.modules.get(name)
    if known is not None:
        return known
    # Appended last: a file with the name of a standard library module must not replace that module.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} is a .py file"
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_dotted(name: str, root: Path) -> ModuleType:
    """The module with a dotted name. A file of the project takes precedence over another package of that name.

    Args:
        root: the project's directory, which is on `sys.path`.

    Raises:
        Exception: any exception that the module raises; ModuleNotFoundError when there is none.
    """
    file = (root / f"{name.replace('.', '/')}.py").resolve()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        mine = exc.name is not None and (name == exc.name or name.startswith(exc.name + "."))
        if mine and file.is_file():
            return load_file(file)
        raise
    found = getattr(module, "__file__", None)
    if file.is_file() and (found is None or Path(found).resolve() != file):
        return load_file(file)
    return module


def reference_of(cls: type, method: str) -> tuple[str, str, str]:
    """The reference by which another process finds a method: module (a name or a file), class, method."""
    module = cls.__module__
    if module.startswith(_PREFIX):
        module = str(sys.modules[module].__file__)
    return module, cls.__qualname__, method


def attribute_of(word: str, what: str, root: Path) -> Any:
    """The object that "package.module:attribute" of a setting names. The project's directory is importable.

    Args:
        what: the setting and its value, for errors.
        root: the project's directory.

    Raises:
        SetupError: the word is malformed, the module cannot be imported, or it has no such attribute.
    """
    path, _, name = word.partition(":")
    if not all(part.isidentifier() for part in path.split(".")) or not name.isidentifier():
        raise SetupError(f'{what} is not of the form "package.module:attribute"')
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        module = load_dotted(path, root)
    except ModuleNotFoundError as exc:
        if exc.name and not (path == exc.name or path.startswith(exc.name + ".")):
            raise SetupError(f"{what}: {path} imports {exc.name}, which is not installed") from exc
        raise SetupError(f"{what}: no module {exc.name} in {root} or among the installed packages") from exc
    # The module is the user's code: its import may raise anything.
    except (Exception, SystemExit) as exc:
        raise SetupError(f"{what}: importing {path} failed: {type(exc).__name__}: {exc}"[:1000]) from exc
    try:
        return getattr(module, name)
    except AttributeError:
        known = [each for each in vars(module) if not each.startswith("_")]
        raise SetupError(f"{what}: {path} has no {name}{suggestion(name, known)}") from None


def module_of(reference: str) -> Any:
    """The module of such a reference."""
    return load_file(Path(reference)) if reference.endswith(".py") else importlib.import_module(reference)
