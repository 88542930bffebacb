"""Completion in the shell knows what the mesh knows."""

from __future__ import annotations

import pytest

from mesh.cli.complete import remote


class Known:
    def service_names(self) -> list[str]:
        return ["greeting", "odd-name", "orders"]

    def method_names(self, service: str) -> list[str]:
        return {"greeting": ["count", "hello"]}.get(service, [])


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("n.rpc.", ["n.rpc.greeting", "n.rpc.orders"]),
        ("await n.rpc.gre", ["n.rpc.greeting"]),
        ("x = await n.rpc.greeting.", ["n.rpc.greeting.count(", "n.rpc.greeting.hello("]),
        ("n.rpc.greeting.he", ["n.rpc.greeting.hello("]),
        ('await n.call("', ["greeting.count", "greeting.hello"]),
        ("n.stream('greeting.c", ["greeting.count"]),
        ('n.wait_for("o', ["odd-name", "orders"]),
        ("n.ca", None),
        ("other.rpc.", None),
    ],
)
def test_services_methods_and_targets_are_completed(line: str, wanted: list[str] | None):
    """By attribute, in quotes of a call, and not where Python's own names are meant."""
    assert remote(Known(), line) == wanted
