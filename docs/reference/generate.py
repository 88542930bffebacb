"""Pages of the documentation site that are generated from the code, so that they are never out of date.

Run by MkDocs as a hook (mkdocs.yml). Owns: the reference pages, and the pages made of README.md and CHANGELOG.md.
Leaves to others: rendering docstrings (mkdocstrings).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]

#: Functions of mesh that make a metric: their first argument is its name, and a later one its help text.
MAKERS: Final = frozenset({"counter", "gauge", "_count", "_gauge", "Metric", "total"})


# --- hooks of MkDocs ----------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside docs/ work in the repository; on the site their text remains."""
    if page.file.src_uri.startswith("benchmarks/"):
        return re.sub(r"\[([^\]]+)\]\(\.\./\.\./[^)]*\)", r"\1", markdown)
    return (
        re.sub(r"\[([^\]]+)\]\(\.\./(?!reference|ja)[^)]*\)", r"\1", markdown)
        if "/" not in page.file.src_uri
        else markdown
    )


# --- pages of the repository's own files --------------------------------------------------------------


def index() -> str:
    """README.md, with its links as seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](docs/benchmarks/)", "](benchmarks/README.md)").replace("](docs/", "](")
    text = text.replace("](CHANGELOG.md)", "](changelog.md)")
    return re.sub(r"\[([A-Z]+\.md)\]\([A-Z]+\.md\)", r"`\1`", text)


def changelog() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- the API ------------------------------------------------------------------------------------------


def api() -> str:
    """All public names of mesh, grouped."""
    import mesh

    groups: dict[str, list[str]] = {"Services": [], "Calling": [], "Durable work": [], "Errors": [], "Other": []}
    for name in sorted(mesh.__all__, key=str.lower):
        # mesh.http is a module, with a page of its own.
        if name not in ("__version__", "http"):
            groups[_group(name, getattr(mesh, name))].append(name)
    lines = [
        "# Python API",
        "",
        "Every public name of `mesh`. Names that are not listed may change between releases.",
        "",
    ]
    for group, names in groups.items():
        lines += [f"## {group}", ""]
        for name in names:
            lines += [f"::: {mesh._HOMES[name]}.{name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def _group(name: str, value: Any) -> str:
    home = inspect.getmodule(value).__name__ if inspect.getmodule(value) else ""
    if isinstance(value, type) and issubclass(value, Exception):
        return "Errors"
    if name in ("Service", "rpc", "on", "every", "task", "cron", "intercept") or home == "mesh.calls.interceptors":
        return "Services"
    if home.startswith(("mesh.tasks", "mesh.state", "mesh.locks", "mesh.events")) or name == "Value":
        return "Durable work"
    if name in ("connect", "Node", "current", "scope", "CallContext", "Answer", "Outcome", "Instance"):
        return "Calling"
    return "Other"


def testing() -> str:
    """All public names of mesh.testing."""
    return _module("mesh.testing")


def http() -> str:
    """All public names of mesh.http."""
    return _module("mesh.http")


def _module(name: str) -> str:
    module = importlib.import_module(name)
    lines = [f"# {name}", ""]
    # mkdocstrings would take the output of the examples for Markdown.
    for paragraph in inspect.cleandoc(module.__doc__ or "").split("\n\n"):
        lines += ["```pycon", paragraph, "```", ""] if paragraph.startswith(">>>") else [paragraph, ""]
    homes = {alias.asname or alias.name: node.module for node in _imports(module) for alias in node.names}
    for each in module.__all__:
        lines += [f"::: {homes[each]}.{each}", ""]
    return "\n".join(lines)


def _imports(module: Any) -> Iterator[ast.ImportFrom]:
    """Where the names of a module that only re-exports come from."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            yield node


# --- tables -------------------------------------------------------------------------------------------


def _cell(value: object) -> str:
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def settings() -> str:
    """Every key of mesh.toml."""
    from mesh.config.entries import ENTRIES, POLICY, SERVICE, TABLES, variable_of
    from mesh.config.policies import PolicySettings
    from mesh.config.settings import ServiceSettings

    #: Defaults that depend on the machine or the project.
    own = {"mesh.run_dir": "run", "mesh.log_dir": "logs", "mesh.host": "this machine's name", "store.dir": "data",
           "mesh.hubs": "ipc in run_dir", "worker.processes": "cores of this machine"}  # fmt: skip
    lines = [
        "# Settings",
        "",
        "Every key of `mesh.toml`. A key is overridden by its environment variable, and that by a flag of the command",
        "line. `mesh config` shows the values that apply, and where each comes from.",
        "",
    ]
    for name, entries in ENTRIES.items():
        made = TABLES[name]()
        lines += [f"## [{name}]", "", _first(TABLES[name]), ""] if entries else []
        rows = [
            (
                f"`{key}`",
                f"`{own.get(f'{name}.{key}') or _shown(entry.kind.show(getattr(made, entry.attribute)))}`",
                f"`{variable_of(name, key)}`",
                entry.about,
            )
            for key, entry in entries.items()
        ]
        lines += _table(("key", "default", "variable", "meaning"), rows) if rows else []
    blank = ServiceSettings()
    rows = [
        (f"`{key}`", f"`{_shown(entry.kind.show(getattr(blank, entry.attribute)))}`", entry.about)
        for key, entry in SERVICE.items()
    ]
    lines += ["## [services.NAME]", "", _first(ServiceSettings), "", *_table(("key", "default", "meaning"), rows)]
    rows = [(f"`{key}`", entry.about) for key, entry in POLICY.items()]
    lines += ['## [policies."METHOD"]', "", _first(PolicySettings), ""]
    lines += [*_table(("key", "meaning"), rows), "See [resilience.md](../resilience.md).", ""]
    lines += ["## [access]", "", "Who may call what; see [security.md](../security.md).", ""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first(thing: Any) -> str:
    text = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    # "[calls]: deadlines": the heading has the name already.
    return re.sub(r"^\[[\w.]+\]: (\w)", lambda match: match[1].upper(), text)


def errors() -> str:
    """Every error code."""
    from mesh.errors import MeshError

    _import_all()
    found: dict[str, type[MeshError]] = {}
    for cls in _below(MeshError):
        found.setdefault(cls.code, cls)
    lines = [
        "# Error codes",
        "",
        "The codes of all errors that mesh itself raises. They are stable: compare with them, and alert on them.",
        "*Retry* tells whether the same request may succeed later or elsewhere. Services declare codes of their own",
        "([service.md](../service.md)).",
        "",
    ]
    rows = [
        (f"`{code}`", cls.status, "yes" if cls.retryable else "no", f"`{cls.__name__}`", _first(cls))
        for code, cls in sorted(found.items())
    ]
    return "\n".join([*lines, *_table(("code", "HTTP", "retry", "class", "meaning"), rows)])


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    yield cls
    for each in cls.__subclasses__():
        if each.__module__.startswith("mesh."):
            yield from _below(each)


def _import_all() -> None:
    import mesh

    for module in pkgutil.walk_packages(mesh.__path__, "mesh."):
        if not module.name.startswith(("mesh.cli.ipython", "mesh.playbooks")):
            importlib.import_module(module.name)


def metrics() -> str:
    """Every metric, from the calls that make it."""
    from mesh.discovery.serve import COUNTED
    from mesh.telemetry import exposition, restarts

    found = {f"mesh_hub_{name}_total": ("counter", about) for name, about in COUNTED.items()}
    found[f"mesh_{restarts.NAME}_total"] = ("counter", restarts.HELP)
    found["mesh_metrics_unanswered_total"] = ("counter", "Processes that did not answer a scrape, by reason.")
    for name, kind, about, _ in exposition.PROCESS:
        found[f"mesh_{name}_total" if kind == "counter" else f"mesh_{name}"] = (kind, about)
    for path in sorted((ROOT / "mesh").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = _metric(call) if isinstance(call, ast.Call) else None
            if made is not None:
                name, kind, about = made
                found.setdefault(name, (kind, about))
    lines = [
        "# Metrics",
        "",
        "Every metric of mesh on the Prometheus page. [metrics.md](../metrics.md) explains labels, alerts and your own",
        "metrics.",
        "",
    ]
    rows = [(f"`{name}`", kind, about) for name, (kind, about) in sorted(found.items())]
    return "\n".join([*lines, *_table(("metric", "kind", "meaning"), rows)])


def _metric(call: ast.Call) -> tuple[str, str, str] | None:
    maker = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if maker not in MAKERS or not call.args or not isinstance(call.args[0], ast.Constant):
        return None
    name = call.args[0].value
    texts = [each.value for each in call.args[1:] if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    about = next((text for text in texts if " " in text), "")
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]+", name) or not about:
        return None
    kind = texts[-1] if maker == "Metric" else "counter" if "count" in maker or maker == "total" else "gauge"
    name = name if name.startswith("mesh_") else f"mesh_{name}"
    return (f"{name}_total" if kind == "counter" else name), kind, about


def cli() -> str:
    """The help of every command."""
    import click

    from mesh.cli.exits import TEXT
    from mesh.cli.main import COMMANDS, mesh

    lines = [
        "# Command line",
        "",
        "Data goes to stdout, everything else to stderr; `--json` prints data as JSON.",
        "",
        TEXT,
        "",
    ]
    context = click.Context(mesh, info_name="mesh", terminal_width=100, max_content_width=100)
    for name in COMMANDS:
        command = mesh.get_command(context, name)
        assert command is not None
        lines += _help(command, name, context, 2)
    return "\n".join(lines)


def _help(command: Any, name: str, parent: Any, level: int) -> list[str]:
    import click

    if name == "bench":
        # It passes --help on to the benchmarks.
        return [f"{'#' * level} mesh bench", "", _first(command.callback), ""]
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    lines = [f"{'#' * level} {context.command_path}", "", "```text", command.get_help(context), "```", ""]
    for sub in getattr(command, "commands", {}):
        lines += _help(command.commands[sub], sub, context, level + 1)
    return lines


PAGES: Final[dict[str, Callable[[], str]]] = {
    "index.md": index,
    "changelog.md": changelog,
    "reference/api.md": api,
    "reference/http.md": http,
    "reference/testing.md": testing,
    "reference/settings.md": settings,
    "reference/cli.md": cli,
    "reference/metrics.md": metrics,
    "reference/errors.md": errors,
}
