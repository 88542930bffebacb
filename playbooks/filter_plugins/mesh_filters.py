"""Filters of the playbooks: the files for a host, and decisions based on its releases and results.

Owns: reading and writing TOML; adapting the project's supervisord.conf to a host; which keys a host gets; which release
it goes back to; which hosts have failed; which variable was misspelt.
Leaves to others: the values (group_vars), the valid settings (mesh itself, which checks the file on the host).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

try:
    import yaml
except ImportError:  # it comes with ansible
    yaml = None  # type: ignore[assignment]

try:
    from ansible.errors import AnsibleFilterError
except ImportError:  # where the filters are tested without ansible

    class AnsibleFilterError(Exception):  # type: ignore[no-redef]
        """What Ansible reports with the task's name."""


_BARE = re.compile(r"[A-Za-z0-9_-]+")


def from_toml(text: str) -> dict[str, Any]:
    """A TOML document as a dictionary."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise AnsibleFilterError(f"mesh.toml: {exc}") from exc


def to_toml(tree: Mapping[str, Any]) -> str:
    """A dictionary as a TOML document: plain values first, then tables, arrays of tables as [[…]]."""
    lines: list[str] = []
    _table((), tree, lines)
    return "\n".join(lines).strip() + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any], lines: list[str]) -> None:
    plain = {key: value for key, value in table.items() if not _is_table(value) and not _is_tables(value)}
    if path and (plain or not table):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value, (*path, str(key)))}" for key, value in plain.items()]
    for key, value in table.items():
        if _is_table(value):
            _table((*path, str(key)), value, lines)
        elif _is_tables(value):
            for each in value:
                lines += ["", f"[[{'.'.join(map(_key, (*path, str(key))))}]]"]
                lines += [f"{_key(name)} = {_value(item, (*path, str(key), name))}" for name, item in each.items()]


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _key(key: Any) -> str:
    return str(key) if _BARE.fullmatch(str(key)) else json.dumps(str(key), ensure_ascii=False)


def _value(value: Any, path: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except for one control character that JSON does not escape.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each, path) for each in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each, path)}" for key, each in value.items()) + " }"
    raise AnsibleFilterError(f"mesh_settings: {'.'.join(path)}: {value!r} cannot be written in mesh.toml")


_SECTION = re.compile(r"^\[(program|eventlistener|fcgi-program):([^\]]+)\]", re.MULTILINE)


def host_conf(text: str, prefix: str, programs: list[str]) -> str:
    """The project's supervisord.conf for a host.

    Sockets, pid file, logs and program files are moved out of the release; of the programs in the file (including those
    that are commented out), the host runs only `programs`.
    """
    known = {match[2] for match in _SECTION.finditer(re.sub(r"^; (?=\[|\w+=)", "", text, flags=re.MULTILINE))}
    for name in programs:
        if name not in known:
            raise AnsibleFilterError(
                f"mesh_programs: supervisord.conf has no [program:{name}]; it has {', '.join(sorted(known))}"
            )
    shown = "".join(_fitting(block, programs) for block in re.split(r"(?m)(?=^(?:; )?\[)", text))
    shown = re.sub(r"%\(here\)s/(run|logs)\b", lambda match: f"{prefix.replace('%', '%%')}/{match[1]}", shown)
    return re.sub(r"(?m)^(files=)run/", lambda match: f"{match[1]}{prefix}/run/", shown)


def _fitting(block: str, programs: list[str]) -> str:
    bare = re.sub(r"^; ", "", block, flags=re.MULTILINE) if block.startswith("; [") else block
    match = _SECTION.match(bare)
    if match is None or match[1] == "eventlistener":
        return block
    if match[2] not in programs:
        return "".join(
            line if line.startswith(";") else f"; {line}" for line in block.splitlines(keepends=True) if line.strip()
        )
    return bare


def fixed_programs(text: str) -> list[str]:
    """The programs that are defined in the file itself: those that `mesh roll` does not replace."""
    return [match[2] for match in _SECTION.finditer(text)]


def copies(paths: Sequence[str], contents: Sequence[str], about: Mapping[str, str]) -> list[dict[str, str]]:
    """Files of the control machine in the form for the module mesh_files: directory and owner are those in `about`."""
    owned = {key: about[key] for key in ("owner", "group", "mode")}
    return [
        {"path": f"{about['directory']}/{PurePath(path).name}", "content": content, **owned}
        for path, content in zip(paths, contents, strict=True)
    ]


def secret_keys(paths: Sequence[str], names: Sequence[str], host: str) -> list[str]:
    """The secret keys for a host: those with these names, and of NAME@HOST its own."""
    found = []
    for path in paths:
        name = PurePath(path).name.removesuffix(".secret")
        if name in names and name.partition("@")[2] in ("", host):
            found.append(path)
    return found


def bearers(names: Sequence[str], merged: Mapping[str, Any], programs: Sequence[str], host: str) -> dict[str, Any]:
    """What a host must replace when these keys change: {"all": whether everything, "names": else which}.

    A key has the name of a role: hub, gateway, mesh-store, a service. Any process may use a key with another name. Keys
    of clients and operators belong to commands, which end by themselves.
    """
    found: list[str] = []
    known = {"gateway", *programs, *merged.get("services", {})}
    for name in names:
        base, _, where = name.partition("@")
        base = {"mesh-store": "store"}.get(base, base)
        elsewhere = base in ("hub", "store") and base not in programs
        if where in ("", host) and base not in ("client", "operator") and not elsewhere:
            found.append(base)
    return {"all": not known.issuperset(found), "names": sorted(set(found))}


def misspelt(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Messages about variables that are probably misspelt names of these playbooks' variables.

    Other names that begin with mesh_ belong to the inventory, like the mesh_address of the examples.
    """
    own = [name for name in given if re.match(r"mesh_(?!settings_)", name) and name not in known]
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.85) for name in sorted(own)}
    said = "is not a variable of these playbooks; did you mean"
    return [f"{name} {said} {found[0]}?" for name, found in near.items() if found]


def own_secrets(merged: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The settings with the environment file of the prefix replaced by that of the release, which has its own."""
    services = {
        name: {**keys, "env_file": "secrets.env"} if keys.get("env_file") == f"{prefix}/secrets.env" else keys
        for name, keys in merged.get("services", {}).items()
    }
    return {**merged, "services": services} if services else dict(merged)


class _Plain(yaml.SafeLoader if yaml is not None else object):  # type: ignore[misc]
    """A YAML loader that accepts Ansible's tags, such as those of vaulted values, without interpreting them."""


if yaml is not None:
    _Plain.add_multi_constructor("!", lambda loader, suffix, node: suffix)


def replaced(sources: Sequence[str], host: str, groups: Sequence[str]) -> list[str]:
    """Messages about `mesh_settings` that is set in several places for one host, of which Ansible uses only one.

    Args:
        sources: the inventories, files or directories.
        groups: the groups of the host.
    """
    found: list[str] = []
    for source in map(Path, sources):
        directory = source if source.is_dir() else source.parent
        for kind, names in (("group_vars", [each for each in groups if each != "all"]), ("host_vars", [host])):
            for name in names:
                paths = [
                    *directory.glob(f"{kind}/{name}/**/*"),
                    *directory.glob(f"{kind}/{name}"),
                    *directory.glob(f"{kind}/{name}.*"),
                ]
                found += [
                    str(path) for path in sorted(set(paths)) if path.is_file() and "mesh_settings" in _mapping(path)
                ]
        for path in [source] if source.is_file() else sorted(source.glob("*.y*ml")):
            found += [f"{path}, {name}" for name in _inline(_mapping(path), host, groups)]
    found = list(dict.fromkeys(found))
    if len(found) < 2:
        return []
    return [
        f"mesh_settings of {host} is set in {' and in '.join(found)}: Ansible uses one of them and drops the others; "
        "use mesh_host_settings (for one host) or mesh_settings_NAME (for another group), which are merged"
    ]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Plain) if yaml is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # an encrypted file, a script, or Ansible has already reported the error
    return tree if isinstance(tree, dict) else {}


def _inline(tree: Mapping[str, Any], host: str, groups: Sequence[str]) -> list[str]:
    """The places in a YAML inventory that set the variable: groups of this host, and the host itself."""
    found = []
    for name, group in tree.items():
        if not isinstance(group, Mapping):
            continue
        if (name in groups or name == "all") and "mesh_settings" in (group.get("vars") or {}):
            found.append(f"group {name}")
        if "mesh_settings" in ((group.get("hosts") or {}).get(host) or {}):
            found.append(f"host {host}")
        found += _inline(group.get("children") or {}, host, groups)
    return found


def told(text: str) -> str:
    """The error of a command with --json, as readable text."""
    try:
        error = json.loads(text)["error"]
        return "\n".join([str(error["message"]), *(f"  | {line}" for line in error.get("details", {}).get("tail", []))])
    except (ValueError, TypeError, KeyError, AttributeError):
        return text.strip()


def earlier(good: Sequence[str], current: str, wanted: str = "") -> str:
    """The release to go back to, "" when there is none.

    Args:
        good: the good releases; the one that became good last comes first.
        current: the running release; if it was never good, the result is the newest good one.
        wanted: a name, or the beginning of one: then the result is the latest such release except the current one.
    """
    if wanted:
        named = [name for name in good if name.startswith(wanted)]
        return next((name for name in named if name != current), named[0] if named else "")
    older = good[good.index(current) + 1 :] if current in good else good
    return older[0] if older else ""


def troubles(hosts: Sequence[str], hostvars: Mapping[str, Any], kind: str = "") -> dict[str, str]:
    """The hosts on which the role activate failed, and why. With kind "failure" only those that went back."""
    found = {}
    for host in hosts:
        turn = hostvars[host].get("activate_turn")
        if not turn:
            continue
        if turn.get("failure"):
            found[host] = f"{turn['failure']}\n{turn['now']} on {host}"
        elif turn.get("unreachable") and not kind:
            found[host] = (
                f"{host} became unreachable: {turn.get('msg', '')}\n"
                "The host finishes the switch, or rolls back, by itself. Nothing else was changed; run this again."
            )
        elif turn.get("failed") and not kind:
            found[host] = f"the switch of {host} may be incomplete: {turn.get('msg', '')}\nNothing else was changed."
    return found


class FilterModule:
    """Ansible's interface of a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "mesh_from_toml": from_toml,
            "mesh_to_toml": to_toml,
            "mesh_host_conf": host_conf,
            "mesh_fixed_programs": fixed_programs,
            "mesh_copies": copies,
            "mesh_secret_keys": secret_keys,
            "mesh_bearers": bearers,
            "mesh_earlier": earlier,
            "mesh_misspelt": misspelt,
            "mesh_own_secrets": own_secrets,
            "mesh_replaced": replaced,
            "mesh_told": told,
            "mesh_troubles": troubles,
        }
