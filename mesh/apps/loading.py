"""Finds the application that a word names, and makes a service class of it.

Owns: the form of the words: `asgi:package.module:attribute`, `wsgi:…`; `attribute()` calls a factory, and `@/shop` says
below which paths it is.
Leaves to others: running it (asgi, wsgi), importing files (calls.importing).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mesh.apps.asgi import AsgiApplication
from mesh.apps.wsgi import wrapped
from mesh.calls.importing import attribute_of
from mesh.errors import SetupError

KINDS: Final = ("asgi", "wsgi")


def is_application(word: str) -> bool:
    """Whether a word of `mesh run`, or of `class` in mesh.toml, names an application."""
    return word.startswith(tuple(f"{kind}:" for kind in KINDS))


def path_of(word: str) -> str:
    """The module or file that a word names, also one for a class: `shop/app.py` of `asgi:shop/app.py:app@/shop`."""
    if is_application(word):
        word = word.partition(":")[2].partition("@")[0]
    return word.rpartition(":")[0] or word


def load(word: str, root: Path) -> type[AsgiApplication]:
    """The service class for an application, named after its module: `asgi:shop.app:app` is the service "app".

    Raises:
        SetupError: it cannot be imported, or is no application.
    """
    kind, _, rest = word.partition(":")
    rest, _, paths = rest.partition("@")
    factory = rest.endswith("()")
    application = attribute_of(rest.removesuffix("()"), word, root)
    if factory:
        try:
            application = application()
        except Exception as exc:
            raise SetupError(f"{word}: the factory failed: {type(exc).__name__}: {exc}") from exc
    if not callable(application):
        raise SetupError(f"{word}: {type(application).__name__} is not an application, which can be called")
    return make(application, _name(rest), kind, paths.split(",") if paths else ("/",))


def make(application: Any, name: str, kind: str = "asgi", prefixes: Sequence[str] = ("/",)) -> type[AsgiApplication]:
    """A service class that runs an application: for tests, and for programs that start workers themselves.

    Args:
        name: of the service.
        kind: "asgi" or "wsgi".
        prefixes: the paths below which gateways pass requests to it.

    Raises:
        SetupError: a WSGI application needs a package that is not installed.
    """
    run = wrapped(application) if kind == "wsgi" else application
    return type(
        "Application",
        (AsgiApplication,),
        {"name": name, "application": staticmethod(run), "prefixes": tuple(prefixes), "__doc__": _about(application)},
    )


def below(cls: type[AsgiApplication], prefixes: Sequence[str]) -> type[AsgiApplication]:
    """The same application below other paths."""
    return type(cls.__name__, (cls,), {"name": cls.name, "prefixes": tuple(prefixes), "__doc__": cls.__doc__})


def _name(rest: str) -> str:
    module = rest.partition(":")[0].removesuffix(".py").rpartition("/")[2]
    name = re.sub(r"[^a-z0-9_-]", "_", module.rpartition(".")[2].lower()).lstrip("_-0123456789")
    return name or "app"


def _about(application: Any) -> str:
    title = getattr(application, "title", "")
    return str(title) if isinstance(title, str) and title else f"A {type(application).__name__} application."
