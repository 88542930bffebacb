"""From mesh.toml, the environment and flags to Settings, remembering where each value came from.

Owns: the order (flag over environment over file over default), finding the file, `${NAME}`, and the errors that name
the place, the key, what is allowed, and the nearest right key.
Leaves to others: the keys (config.settings), how a value is written (config.values), line numbers (config.places).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec

from mesh.config.access import AccessSettings, read_access
from mesh.config.places import Key, places
from mesh.config.secrets import HIDDEN, Secret, hidden, marked
from mesh.config.settings import ServiceSettings, Settings
from mesh.config.values import Kind
from mesh.errors import ConfigError

FILE_NAME = "mesh.toml"
#: Names a file to read instead of the one that is found by looking upwards.
FILE_VARIABLE = "MESH_CONFIG"

_VARIABLE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


class Origin(NamedTuple):
    """One value and where it came from.

    Attributes:
        key: as in the file, dotted: "gateway.port".
        value: as it would be written in the file: "10s", 8080, ["ipc://…"].
        origin: "default", "mesh.toml:14", "MESH_GATEWAY_PORT" or "--port".
        about: what the key is for, in a line.
    """

    key: str
    value: Any
    origin: str
    about: str


class _Entry(NamedTuple):
    attribute: str
    kind: Kind
    about: str


def _entries(table: type[msgspec.Struct]) -> dict[str, _Entry]:
    hints = get_type_hints(table, include_extras=True)
    found = {}
    for item in msgspec.structs.fields(table):
        meta = getattr(hints[item.name], "__metadata__", None)
        if meta:
            found[item.encode_name] = _Entry(item.name, meta[0], meta[1])
    return found


def _tables() -> dict[str, type[msgspec.Struct]]:
    return {
        name: hint
        for name, hint in get_type_hints(Settings).items()
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct)
    }


_TABLES = _tables()
_ENTRIES = {name: _entries(table) for name, table in _TABLES.items()}
_SERVICE = _entries(ServiceSettings)


def find_file(start: Path | None = None) -> Path | None:
    """The mesh.toml of `start` (the current directory) or of the nearest directory above it."""
    start = (start or Path.cwd()).absolute()
    for directory in (start, *start.parents):
        if (directory / FILE_NAME).is_file():
            return directory / FILE_NAME
    return None


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings.

    Args:
        path: the file; None takes $MESH_CONFIG, or the mesh.toml here or above, or only defaults.
        env: the environment; None takes this process's own.
        flags: dotted key -> value (already typed, or text); None values are left out.

    Raises:
        ConfigError: with one line for each wrong key or value.
    """
    return _Loading(path, env, flags).settings


def origins(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> list[Origin]:
    """Every key with its value and where that came from, in the order of the tree. Arguments and errors as `load`."""
    return _Loading(path, env, flags).origins()


class _Loading:
    """One reading: what was wrong is collected, so that all of it is told at once."""

    def __init__(self, path: Path | None, env: Mapping[str, str] | None, flags: Mapping[str, Any] | None) -> None:
        self.env = os.environ if env is None else env
        self.problems: list[str] = []
        self.values: dict[str, dict[str, Any]] = {name: {} for name in _TABLES}
        self.services: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, str] = {}
        self.lines: dict[Key, int] = {}
        self.access: AccessSettings | None = None

        named = path or (Path(self.env[FILE_VARIABLE]) if self.env.get(FILE_VARIABLE) else None)
        self.file = named.absolute() if named else find_file()
        self.root = self.file.parent if self.file else Path.cwd()
        self.shown_file = _shown(self.file) if self.file else FILE_NAME

        if self.file:
            self._read_file(self.file)
        self._read_env()
        self._read_flags(flags or {})
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        self.settings = self._build()
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    # --- the file ---------------------------------------------------------------------------------

    def _read_file(self, file: Path) -> None:
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{self.shown_file}: there is no such file") from None
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{self.shown_file}: not UTF-8 text (byte {exc.start})") from None
        except OSError as exc:
            raise ConfigError(f"{self.shown_file}: cannot be read: {exc.strerror}") from exc
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(_syntax(self.shown_file, text, str(exc))) from None
        self.lines = places(text)
        for name, table in tree.items():
            if name == "services":
                self._file_services(table)
            elif name == "access":
                self._file_access(table)
            elif name not in _TABLES:
                known = [*_TABLES, "services", "access"]
                self._problem(self._at((name,)), name, _unknown("table", name, known))
            elif not isinstance(table, dict):
                self._problem(self._at((name,)), name, f"is a table: write [{name}] and its keys below it")
            else:
                self._file_table((name,), table, _ENTRIES[name], self.values[name])

    def _file_table(
        self, prefix: Key, table: Mapping[str, Any], entries: Mapping[str, _Entry], into: dict[str, Any]
    ) -> None:
        for key, value in table.items():
            place, dotted = self._at((*prefix, key)), ".".join((*prefix, key))
            if key not in entries:
                self._problem(place, dotted, _unknown("key", key, entries))
                continue
            try:
                value = self._expand(value)
            except KeyError as exc:
                name = exc.args[0]
                advice = f"set it, or give a default: ${{{name}:…}}"
                self._problem(place, dotted, f"the environment has no {name}; {advice}")
                continue
            self._set(dotted, entries[key], value, place, into)

    def _file_access(self, table: Any) -> None:
        def path(at: Key) -> Key:
            return ("access", *at)

        def tell(at: Key, what: str) -> None:
            shown = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in at)
            self._problem(self._at(path(at)), f"access{shown}", what)

        self.access = read_access(table, tell, lambda at: self._at(path(at)))

    def _file_services(self, table: Any) -> None:
        if not isinstance(table, dict) or not all(isinstance(each, dict) for each in table.values()):
            self._problem(self._at(("services",)), "services", "holds one table per service: [services.greeting]")
            return
        for name, values in table.items():
            into = self.services.setdefault(name, {})
            values = dict(values)
            config = values.pop("config", {})
            prefix = ("services", name)
            if not isinstance(config, dict):
                self._problem(self._at((*prefix, "config")), f"services.{name}.config", "is a table")
                config = {}
            into["config"] = {}
            for key, value in config.items():
                place, dotted = self._at((*prefix, "config", key)), f"services.{name}.config.{key}"
                try:
                    into["config"][key] = marked(self._expand(value), f"{place}: {dotted}")
                except KeyError as exc:
                    self._problem(place, dotted, f"the environment has no {exc.args[0]}")
                except ValueError as exc:
                    self._problem(place, dotted, f'{HIDDEN} is not a reference like {{secret = "env:NAME"}}: {exc}')
            for key in config:
                self.sources[f"services.{name}.config.{key}"] = self._at((*prefix, "config", key))
            # `config` is known but already taken: it shall be offered when a near miss of it is typed.
            if unknown := [key for key in values if key not in _SERVICE]:
                for key in unknown:
                    del values[key]
                    place = self._at((*prefix, key))
                    self._problem(place, f"services.{name}.{key}", _unknown("key", key, [*_SERVICE, "config"]))
            self._file_table(prefix, values, _SERVICE, into)

    def _at(self, key: Key) -> str:
        line = self.lines.get(key)
        return f"{self.shown_file}:{line}" if line else self.shown_file

    def _expand(self, value: Any) -> Any:
        """`value` with `${NAME}` and `${NAME:default}` replaced; `$${NAME}` stands for itself. KeyError: unset."""

        def replace(match: re.Match[str]) -> str:
            escaped, name, default = match.groups()
            if escaped:
                return match[0][1:]
            if name in self.env:
                return self.env[name]
            if default is None:
                raise KeyError(name)
            return default

        if isinstance(value, str):
            return _VARIABLE.sub(replace, value)
        if isinstance(value, list):
            return [self._expand(item) for item in value]
        if isinstance(value, dict):
            return {key: self._expand(item) for key, item in value.items()}
        return value

    # --- environment and flags --------------------------------------------------------------------

    def _read_env(self) -> None:
        by_variable = {
            f"MESH_{table}_{key}".upper(): (table, key, entry)
            for table, entries in _ENTRIES.items()
            for key, entry in entries.items()
        }
        for variable in sorted(self.env):
            if variable in by_variable:
                table, key, entry = by_variable[variable]
                self._set(f"{table}.{key}", entry, self.env[variable], variable, self.values[table])
            elif variable.startswith("MESH_SERVICES_"):
                self._env_service(variable)
            # Others may use the prefix for their own; what begins like one of the tables was meant for it.
            elif variable.startswith(tuple(f"MESH_{table}_".upper() for table in _TABLES)):
                self.problems.append(_nearest(f"{variable}: no key has this name", variable, by_variable))

    def _env_service(self, variable: str) -> None:
        rest = variable.removeprefix("MESH_SERVICES_")
        names = {name.upper().replace("-", "_"): name for name in self.services}
        head, found, tail = rest.partition("_CONFIG_")
        if found and head and tail:
            name = names.get(head, head.lower())
            key = tail.lower()
            self.services.setdefault(name, {}).setdefault("config", {})[key] = self.env[variable]
            self.sources[f"services.{name}.config.{key}"] = variable
            return
        for key, entry in _SERVICE.items():
            head = rest.removesuffix("_" + key.upper())
            if head and head != rest:
                name = names.get(head, head.lower())
                into = self.services.setdefault(name, {})
                self._set(f"services.{name}.{key}", entry, self.env[variable], variable, into)
                return
        forms = ", ".join(f"MESH_SERVICES_NAME_{key.upper()}" for key in (*_SERVICE, "config_key"))
        self.problems.append(f"{variable}: no key has this name; a service knows {forms}")

    def _read_flags(self, flags: Mapping[str, Any]) -> None:
        for dotted, value in flags.items():
            if value is None:
                continue
            table, _, key = dotted.partition(".")
            entries = _ENTRIES.get(table, {})
            # In code both names are at hand: the key of the file and the attribute with its unit.
            key = next((k for k, entry in entries.items() if entry.attribute == key), key)
            if key not in entries:
                known = [f"{t}.{k}" for t, keys in _ENTRIES.items() for k in keys]
                self.problems.append(_nearest(f"{dotted}: no such key", dotted, known))
                continue
            origin, entry = "--" + key.replace("_", "-"), entries[key]
            if isinstance(value, int | float) and not isinstance(value, bool):
                # A number in code has the unit of its attribute.
                value = f"{value}s" if entry.attribute.endswith("_s") else value
                value = f"{value}B" if entry.attribute.endswith("_bytes") else value
            self._set(f"{table}.{key}", entry, value, origin, self.values[table])

    # --- putting it together ----------------------------------------------------------------------

    def _set(self, dotted: str, entry: _Entry, value: Any, origin: str, into: dict[str, Any]) -> None:
        try:
            into[entry.attribute] = entry.kind.read(value)
        except (ValueError, OverflowError) as exc:
            why = str(exc)
            # Python's own words about a bad number say nothing that the kind does not say better.
            more = f": {why}" if why.startswith("it ") else ""
            shown = (
                HIDDEN
                if entry.kind.hidden
                else f'"{value}"'
                if isinstance(value, str)
                else msgspec.json.encode(value, enc_hook=str).decode()
            )
            self._problem(origin, dotted, f"{shown} is not {entry.kind.wanted}{more}")
        else:
            self.sources[dotted] = origin

    def _problem(self, place: str, dotted: str, what: str) -> None:
        self.problems.append(f"{place}: {dotted}: {what}")

    def _build(self) -> Settings:
        values = self.values
        mesh = values["mesh"]
        for key, default in (("run_dir", "run"), ("log_dir", "logs")):
            # Relative to the project, wherever in it a command is typed.
            mesh[key] = self.root / mesh.get(key, default)
        values["store"]["dir"] = self.root / values["store"].get("dir", "data")
        if "dir" in values["keys"]:
            values["keys"]["dir"] = self.root / values["keys"]["dir"]
        if "hubs" in mesh:
            mesh["hubs"] = [_rooted(hub, self.root) for hub in mesh["hubs"]]
        calls = _TABLES["calls"](**values["calls"])
        limits = {key: getattr(calls, key) for key in ("concurrency", "queue", "prefer_local")}
        settings = Settings(
            **{name: table(**values[name]) for name, table in _TABLES.items()},  # type: ignore[arg-type]
            services={name: ServiceSettings(**(limits | own)) for name, own in self.services.items()},
            access=self.access,
            root=self.root,
            file=self.file,
        )
        self._check_together(settings)
        return settings

    def _check_together(self, settings: Settings) -> None:
        """What no single value can show: the spans that must be shorter than others."""
        for shorter, less, longer, more in (
            ("discovery.renew", settings.discovery.renew_s, "discovery.lease", settings.discovery.lease_s),
            (
                "links.heartbeat",
                settings.links.heartbeat_s,
                "links.heartbeat_timeout",
                settings.links.heartbeat_timeout_s,
            ),
        ):
            if less >= more:
                place = self.sources.get(shorter) or self.sources.get(longer, "default")
                shown = _kind_of(shorter).show(less), _kind_of(longer).show(more)
                self._problem(place, shorter, f"{shown[0]} must be shorter than {longer}, which is {shown[1]}")
        keys = settings.keys
        if keys.secret is not None and keys.dir is None:
            place = self.sources["keys.secret"]
            self._problem(place, "keys.secret", "whom to believe is missing: set keys.dir, which holds the public keys")
        if settings.access is not None and keys.dir is None and settings.mesh.bind.startswith("tcp://"):
            # Over ipc a caller is one of this user's processes; over bare tcp it is anybody who says so.
            place = self._at(("access",))
            self._problem(place, "access", 'over tcp only a key tells who calls: set keys.dir, or mesh.bind = "ipc"')
        for name, service in settings.services.items():
            if 0 < service.maximum < service.minimum:
                dotted = f"services.{name}.maximum"
                place = self.sources.get(dotted, "default")
                self._problem(place, dotted, f"{service.maximum} is less than the minimum of {service.minimum}")

    def origins(self) -> list[Origin]:
        rows: list[Origin] = []

        def add(dotted: str, entry: _Entry, value: Any) -> None:
            shown = entry.kind.show(value)
            origin = self.sources.get(dotted, "default")
            if isinstance(value, Secret):
                origin = f"{origin}, {value.reference}"
            rows.append(Origin(dotted, shown, origin, entry.about))

        for name, entries in _ENTRIES.items():
            table = getattr(self.settings, name)
            for key, entry in entries.items():
                add(f"{name}.{key}", entry, getattr(table, entry.attribute))
        for service, own in self.settings.services.items():
            for key, entry in _SERVICE.items():
                add(f"services.{service}.{key}", entry, getattr(own, entry.attribute))
            for key, value in own.config.items():
                dotted = f"services.{service}.config.{key}"
                origin = self.sources.get(dotted, "default")
                if isinstance(value, Secret):
                    origin = f"{origin}, {value.reference}"
                rows.append(Origin(dotted, hidden(value), origin, "the service's own"))
        if self.settings.access is not None:
            for number, rule in enumerate(self.settings.access.allow):
                rows.append(Origin(f"access.allow.{number}", str(rule), rule.place, "who may call what"))
            for number, served in enumerate(self.settings.access.serve):
                rows.append(Origin(f"access.serve.{number}", str(served), served.place, "who may run what"))
        return rows


def _kind_of(dotted: str) -> Kind:
    table, _, key = dotted.partition(".")
    return _ENTRIES[table][key].kind


def _shown(file: Path) -> str:
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


def _rooted(endpoint: str, root: Path) -> str:
    if endpoint.startswith("ipc://") and not endpoint.startswith(("ipc:///", "ipc://@")):
        return f"ipc://{root / endpoint.removeprefix('ipc://')}"
    return endpoint


def _nearest(message: str, wrong: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"{message}; did you mean {near[0]}?" if near else message


def _unknown(what: str, wrong: str, known: Iterable[str]) -> str:
    known = list(known)
    message = _nearest(f"no such {what}", wrong, known)
    return message if "did you mean" in message else f"{message}; known are {', '.join(known)}"


def _syntax(shown_file: str, text: str, message: str) -> str:
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    line = int(match[1]) if match else text.count("\n") + 1
    return f"{shown_file}:{line}: not valid TOML: {message.split(' (at ')[0]}"
