"""Completion in `mesh shell`: services, methods, targets in quotes.

Owns: finding them in the node's view of the registry. Leaves to others: names of Python (rlcompleter, IPython).
"""

from __future__ import annotations

import re
import rlcompleter
from typing import Any, Protocol

_RPC = re.compile(r"\bn\.rpc\.(?:(\w+)\.)?(\w*)$")
#: Text that ends inside the quotes of a call that takes a target or a service's name.
_TARGET = re.compile(r"\bn\.(?:call|stream|scatter)\(\s*['\"]([\w.-]*)$")
_SERVICE = re.compile(r"\bn\.wait_for\(\s*['\"]([\w-]*)$")


class Knows(Protocol):
    """The part of a node that completion uses."""

    def service_names(self) -> list[str]: ...
    def method_names(self, service: str) -> list[str]: ...


def remote(node: Knows, line: str) -> list[str] | None:
    """Completions of the text before the cursor: replacements of its last name.

    None when the line does not end in a name of the mesh. `n.rpc.gre` gives whole chains (`n.rpc.greeting`), a target
    in quotes gives targets (`greeting.hello`).
    """
    if match := _RPC.search(line):
        service, begun = match.groups()
        if service is None:
            return [f"n.rpc.{name}" for name in node.service_names() if name.startswith(begun) and name.isidentifier()]
        return [f"n.rpc.{service}.{name}(" for name in node.method_names(service) if name.startswith(begun)]
    if match := _TARGET.search(line):
        begun = match[1]
        targets = (f"{service}.{name}" for service in node.service_names() for name in node.method_names(service))
        return [target for target in targets if target.startswith(begun)]
    if match := _SERVICE.search(line):
        begun = match[1]
        return [name for name in node.service_names() if name.startswith(begun)]
    return None


class Completer:
    """For readline: first names of the mesh, then names of Python."""

    def __init__(self, node: Knows, names: dict[str, Any]) -> None:
        self._node = node
        self._python = rlcompleter.Completer(names)
        self._found: list[str] | None = None

    def complete(self, text: str, state: int) -> str | None:
        """readline's protocol: the `state`-th continuation of `text`, None after the last."""
        if state == 0:
            import readline

            self._found = remote(self._node, readline.get_line_buffer()[: readline.get_endidx()])
        if self._found is None:
            found: str | None = self._python.complete(text, state)
            return found
        return self._found[state] if state < len(self._found) else None
