"""Reads Settings from mesh.toml, the environment and flags, and records where each value comes from.

Owns: precedence (flag over environment over file over default), finding the file, `${NAME}`, reporting all errors at
once, and the usable part of settings with errors.
Leaves to others: the keys (config.settings, config.entries), the syntax of values (config.values), line numbers
(config.places), error messages (config.complaints), values that contradict each other (config.cross_checks), the own
tables of engines (config.engine_tables).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mesh.config.access import AccessSettings, read_access
from mesh.config.complaints import no_such, not_toml
from mesh.config.cross_checks import contradictions
from mesh.config.engine_tables import PREFIX, EngineTables, Reading
from mesh.config.entries import ENTRIES, POLICY, SERVICE, TABLES, Entry, inner, variable_of
from mesh.config.origins import Origin, listed
from mesh.config.places import Key, places
from mesh.config.policies import TARGET, PolicySettings
from mesh.config.secrets import HIDDEN, marked
from mesh.config.settings import EngineSettings, ServiceSettings, Settings
from mesh.config.trust import check_found
from mesh.errors import ConfigError
from mesh.suggest import suggestion

FILE_NAME = "mesh.toml"
#: The environment variable that names the file to read, instead of searching the current directory and above.
FILE_VARIABLE = "MESH_CONFIG"
_HOW_TO_NAME = f"--config FILE or {FILE_VARIABLE}"

_VARIABLE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


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
        path: the file; None takes $MESH_CONFIG, or the mesh.toml in the current directory or above, or only defaults.
        env: the environment; None takes this process's own.
        flags: dotted key -> value (already typed, or text); None values are ignored.

    Raises:
        ConfigError: a key or value is wrong; the message has one line for each.
    """
    return _Loading(path, env, flags).settings()


def project_root(env: Mapping[str, str] | None = None) -> Path:
    """The project's directory: the one that contains mesh.toml, which is not read, or the current one without it.

    Raises:
        ConfigError: another user of the machine controls the mesh.toml that was found.
    """
    env = os.environ if env is None else env
    file = _named(None, env)
    if file and not env.get(FILE_VARIABLE):
        check_found(file, _HOW_TO_NAME, env)
    return file.parent if file else Path.cwd()


class Usable(NamedTuple):
    """The usable part of settings that may have errors, for commands that inspect or clean up.

    Attributes:
        settings: the settings, with defaults in place of wrong or unreadable values.
        complaints: one line for each wrong key or value, as in the error of `load`; empty when there is none.
        places: dotted key -> where its value comes from, "mesh.toml:14"; without the keys that have their defaults.
        read: False when the file exists but could not be read at all.
    """

    settings: Settings
    complaints: list[str]
    places: Mapping[str, str]
    read: bool = True

    def place(self, key: str) -> str:
        """Where the value of a key comes from; mesh.toml for a default."""
        return self.places.get(key, FILE_NAME)


def usable(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Usable:
    """Read the usable part of the settings. Arguments as for `load`; errors are returned instead of raised."""
    loading = _Loading(path, env, flags)
    settings = loading.build()
    return Usable(settings, loading.problems, loading.sources, loading.read)


def origins(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> list[Origin]:
    """Every key with its value and its origin, in the order of the tree. Arguments and errors as for `load`."""
    loading = _Loading(path, env, flags)
    return listed(loading.settings(), loading.sources)


class _Loading:
    """One reading of the settings, which collects all errors in order to report them at once."""

    def __init__(self, path: Path | None, env: Mapping[str, str] | None, flags: Mapping[str, Any] | None) -> None:
        self.env = os.environ if env is None else env
        self.problems: list[str] = []
        self.values: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
        self.services: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, str] = {}
        self.lines: dict[Key, int] = {}
        self.access: AccessSettings | None = None
        self.engines = EngineTables()
        self.read = True

        self.file = _named(path, self.env)
        self.root = self.file.parent if self.file else Path.cwd()
        self.shown_file = _shown(self.file) if self.file else FILE_NAME

        if self.file:
            try:
                if path is None and not self.env.get(FILE_VARIABLE):
                    check_found(self.file, _HOW_TO_NAME, self.env)
                self._read_file(self.file)
            except ConfigError as exc:
                self.problems.append(exc.message)
                self.read = False
        self._read_env()
        self._read_flags(flags or {})
        self._read_engines()

    def settings(self) -> Settings:
        """Raises ConfigError, as `load`."""
        self._check()
        settings = self.build()
        self._check()
        return settings

    def _check(self) -> None:
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    # --- the file ---------------------------------------------------------------------------------

    def _read_file(self, file: Path) -> None:
        try:
            # utf-8-sig: some editors write a byte order mark at the beginning.
            text = file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ConfigError(f"{self.shown_file}: there is no such file") from None
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{self.shown_file}: not UTF-8 text (byte {exc.start})") from None
        except OSError as exc:
            raise ConfigError(f"{self.shown_file}: cannot be read: {exc.strerror}") from exc
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(not_toml(self.shown_file, text, str(exc))) from None
        except RecursionError:
            raise ConfigError(f"{self.shown_file}: arrays or tables are nested too deeply to be read") from None
        except ValueError as exc:
            # Python refuses numbers with thousands of digits, and invalid dates.
            raise ConfigError(f"{self.shown_file}: a value cannot be read: {exc}") from None
        self.lines = places(text)
        for name, table in tree.items():
            if name == "services":
                self._file_services(table)
            elif name == "policies":
                self._file_policies(table)
            elif name == "access":
                self._file_access(table)
            elif name not in TABLES or "." in name:
                known = [*inner(""), "services", "policies", "access"]
                self._problem(self._at((name,)), name, no_such("table", name, known))
            elif not isinstance(table, dict):
                self._problem(self._at((name,)), name, f"must be a table: write [{name}] and its keys below it")
            else:
                if name == "engines":
                    self.engines.file = {
                        key: value
                        for key, value in table.items()
                        if isinstance(value, dict) and key not in ENTRIES[name]
                    }
                    table = {key: value for key, value in table.items() if key not in self.engines.file}
                self._file_tables((name,), table)

    def _file_tables(self, prefix: Key, table: Mapping[str, Any]) -> None:
        """Read a table and the tables inside of it."""
        name = ".".join(prefix)
        nested = inner(name)
        for key in nested:
            if key in table and not isinstance(table[key], dict):
                self._problem(
                    self._at((*prefix, key)), f"{name}.{key}", f"must be a table: write [{name}.{key}] and its keys"
                )
            elif key in table:
                self._file_tables((*prefix, key), table[key])
        own = {key: value for key, value in table.items() if key not in nested}
        self._file_table(prefix, own, ENTRIES[name], self.values[name])

    def _file_table(
        self, prefix: Key, table: Mapping[str, Any], entries: Mapping[str, Entry], into: dict[str, Any]
    ) -> None:
        for key, value in table.items():
            place, dotted = self._at((*prefix, key)), ".".join((*prefix, key))
            if key not in entries:
                self._problem(place, dotted, no_such("key", key, entries))
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

        self.sources["access"] = self._at(("access",))
        self.access = read_access(table, tell, lambda at: self._at(path(at)))

    def _file_services(self, table: Any) -> None:
        if not isinstance(table, dict) or not all(isinstance(each, dict) for each in table.values()):
            self._problem(self._at(("services",)), "services", "must hold one table per service: [services.greeting]")
            return
        for name, values in table.items():
            into = self.services.setdefault(name, {})
            values = dict(values)
            config = values.pop("config", {})
            prefix = ("services", name)
            if not isinstance(config, dict):
                self._problem(self._at((*prefix, "config")), f"services.{name}.config", "must be a table")
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
            # `config` was removed from `values` above, but must be among the suggestions for a misspelt key.
            if unknown := [key for key in values if key not in SERVICE]:
                for key in unknown:
                    del values[key]
                    place = self._at((*prefix, key))
                    self._problem(place, f"services.{name}.{key}", no_such("key", key, [*SERVICE, "config"]))
            self._file_table(prefix, values, SERVICE, into)

    def _file_policies(self, table: Any) -> None:
        if not isinstance(table, dict) or not all(isinstance(each, dict) for each in table.values()):
            what = 'must hold one table per method or pattern: [policies."orders.*"]'
            self._problem(self._at(("policies",)), "policies", what)
            return
        for pattern, values in table.items():
            prefix = ("policies", pattern)
            if TARGET.fullmatch(pattern) is None:
                what = 'is not the name of a method, or a pattern like "orders.*"'
                self._problem(self._at(prefix), f'policies."{pattern}"', what)
                continue
            self._file_table(prefix, values, POLICY, self.policies.setdefault(pattern, {}))

    def _at(self, key: Key) -> str:
        line = self.lines.get(key)
        return f"{self.shown_file}:{line}" if line else self.shown_file

    def _expand(self, value: Any) -> Any:
        """`value` with `${NAME}` and `${NAME:default}` replaced; `$${NAME}` becomes `${NAME}`.

        Raises:
            KeyError: a variable without a default is not set.
        """

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
            variable_of(table, key): (table, key, entry)
            for table, entries in ENTRIES.items()
            for key, entry in entries.items()
        }
        for variable in sorted(self.env):
            if variable in by_variable:
                table, key, entry = by_variable[variable]
                self._set(f"{table}.{key}", entry, self.env[variable], variable, self.values[table])
            elif variable.startswith("MESH_SERVICES_"):
                self._env_service(variable)
            elif variable.startswith(PREFIX):
                self.engines.variables[variable] = self.env[variable]
            # Other programs may use the prefix MESH_; a name that begins with one of the tables is meant for mesh.
            elif variable.startswith(tuple(variable_of(table, "") for table in TABLES)):
                self.problems.append(f"{variable}: no key has this name{suggestion(variable, by_variable)}")

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
        for key, entry in SERVICE.items():
            head = rest.removesuffix("_" + key.upper())
            if head and head != rest:
                name = names.get(head, head.lower())
                into = self.services.setdefault(name, {})
                self._set(f"services.{name}.{key}", entry, self.env[variable], variable, into)
                return
        forms = ", ".join(f"MESH_SERVICES_NAME_{key.upper()}" for key in (*SERVICE, "config_key"))
        self.problems.append(f"{variable}: no key has this name; a service knows {forms}")

    def _read_flags(self, flags: Mapping[str, Any]) -> None:
        for dotted, value in flags.items():
            if value is None:
                continue
            table, _, key = dotted.partition(".")
            if table == "engines" and "." in key:
                self.engines.flags[key] = value
                continue
            table, _, key = dotted.rpartition(".")
            if table.startswith("policies."):
                entries, into = POLICY, self.policies.setdefault(table.removeprefix("policies."), {})
            else:
                entries, into = ENTRIES.get(table, {}), self.values.get(table, {})
            # Code may use either name: the key of the file or the attribute with its unit.
            key = next((k for k, entry in entries.items() if entry.attribute == key), key)
            if key not in entries:
                known = [f"{t}.{k}" for t, keys in ENTRIES.items() for k in keys]
                self.problems.append(f"{dotted}: no such key{suggestion(dotted, known)}")
                continue
            self._set_flag(f"{table}.{key}", entries[key], value, into)

    def _set_flag(self, dotted: str, entry: Entry, value: Any, into: dict[str, Any]) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            # A number in code has the unit of its attribute.
            value = f"{value}s" if entry.attribute.endswith("_s") else value
            value = f"{value}B" if entry.attribute.endswith("_bytes") else value
        self._set(dotted, entry, value, "--" + dotted.rpartition(".")[2].replace("_", "-"), into)

    # --- engines ----------------------------------------------------------------------------------

    def _read_engines(self) -> None:
        values = self.values["engines"]
        default = values.get("default", EngineSettings().default)
        keys = [key for key in ENTRIES["engines"] if key != "default"]
        if "engines.default" in self.sources:
            for key in keys:
                self.sources.setdefault(f"engines.{key}", self.sources["engines.default"])
        # `default` comes first, so that a mistake in it is told of as its own.
        chosen = {"default": default, **{key: values.get(key, default) for key in keys}}
        values["own"] = self.engines.read(
            Reading(
                self.root,
                self.sources,
                self._at,
                self._problem,
                self.problems.append,
                self._file_table,
                self._set,
                self._set_flag,
            ),
            chosen,
        )
        for key in [key for key in ENTRIES["engines"] if values.get(key) in self.engines.failed]:
            del values[key]

    # --- putting it together ----------------------------------------------------------------------

    def _set(self, dotted: str, entry: Entry, value: Any, origin: str, into: dict[str, Any]) -> None:
        try:
            into[entry.attribute] = entry.kind.read(value)
        except (ValueError, OverflowError) as exc:
            why = str(exc)
            # Python's own messages about a bad number add nothing to `wanted`; those of `values` begin with "it ".
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

    def _built(self, name: str) -> Any:
        return TABLES[name](**self.values[name], **{key: self._built(f"{name}.{key}") for key in inner(name)})

    def build(self) -> Settings:
        """The settings, without the wrong values. Adds contradictions to `problems`."""
        values = self.values
        mesh = values["mesh"]
        for key, default in (("run_dir", "run"), ("log_dir", "logs")):
            # Relative to the project's directory, not to the current one.
            mesh[key] = self.root / mesh.get(key, default)
        values["store"]["dir"] = self.root / values["store"].get("dir", "data")
        if "dir" in values["keys"]:
            values["keys"]["dir"] = self.root / values["keys"]["dir"]
        if "hubs" in mesh:
            mesh["hubs"] = [_rooted(hub, self.root) for hub in mesh["hubs"]]
        calls = TABLES["calls"](**values["calls"])
        limits = {key: getattr(calls, key) for key in ("concurrency", "queue", "prefer_local")}
        settings = Settings(
            **{name: self._built(name) for name in inner("")},
            services={name: ServiceSettings(**(limits | own)) for name, own in self.services.items()},
            policies={pattern: PolicySettings(**own) for pattern, own in self.policies.items()},
            access=self.access,
            root=self.root,
            file=self.file,
        )
        for found in contradictions(settings):
            place = next((self.sources[key] for key in found.keys if key in self.sources), "default")
            self._problem(place, found.key, found.what)
        return settings


def _named(path: Path | None, env: Mapping[str, str]) -> Path | None:
    named = path or (Path(env[FILE_VARIABLE]) if env.get(FILE_VARIABLE) else None)
    return named.absolute() if named else find_file()


def _shown(file: Path) -> str:
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


def _rooted(endpoint: str, root: Path) -> str:
    if endpoint.startswith("ipc://") and not endpoint.startswith(("ipc:///", "ipc://@")):
        return f"ipc://{root / endpoint.removeprefix('ipc://')}"
    return endpoint
