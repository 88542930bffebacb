"""Filters for the two files that a release carries: mesh.toml and supervisord.conf.

Owns: reading and writing TOML, and what of the project's supervisord.conf differs on a host.
Leaves to others: which values (group_vars), which keys there are (mesh itself, which checks the file on the host).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

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
        # A JSON string is a TOML basic string, but for the one control character that JSON lets stand.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each, path) for each in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(each, path)}" for key, each in value.items()) + " }"
    raise AnsibleFilterError(f"mesh_settings: {'.'.join(path)}: {value!r} cannot stand in mesh.toml")


_SECTION = re.compile(r"^\[(program|eventlistener|fcgi-program):([^\]]+)\]", re.MULTILINE)


def host_conf(text: str, prefix: str, programs: list[str]) -> str:
    """The project's supervisord.conf for a host.

    Sockets, pid file, logs and program files move out of the release; of the programs that stand in the file (also of
    those that are commented out), the host runs `programs` and no others.
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
    """The programs that stand in the file itself: those that `mesh roll` does not replace."""
    return [match[2] for match in _SECTION.finditer(text)]


class FilterModule:
    """What Ansible asks a file of filters for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "mesh_from_toml": from_toml,
            "mesh_to_toml": to_toml,
            "mesh_host_conf": host_conf,
            "mesh_fixed_programs": fixed_programs,
        }
