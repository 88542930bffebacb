"""Rules for principals and roles: whom they admit, what they may contain, and errors with the line of the rule."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mesh import config
from mesh.config import AccessRule
from mesh.config.access import AccessSettings, read_access
from mesh.errors import ConfigError
from mesh.policy.access import Access, admits


def rule(**keys: Any) -> AccessRule:
    return AccessRule(callers=("gateway",), services=("orders",), **keys)


@pytest.mark.parametrize(
    ("rules", "principal", "roles", "admitted"),
    [
        ([rule(principals=("alice",))], "alice", "", True),
        ([rule(principals=("alice",))], "Alice", "", False),
        ([rule(principals=("alice",))], "alice2", "", False),
        ([rule(principals=("alice",))], "alice@example.com", "", False),
        ([rule(principals=("svc-*", "bob"))], "svc-mail", "", True),
        ([rule(principals=("svc-*", "bob"))], "bob", "", True),
        ([rule(principals=("*",))], "anyone", "", True),
        ([rule(principals=("*",))], "", "", False),
        ([rule(principals=("*",))], "", "clerk", False),
        ([rule(roles=("clerk",))], "alice", "clerk", True),
        ([rule(roles=("clerk",))], "alice", "admin clerk manager", True),
        ([rule(roles=("clerk",))], "alice", "clerks", False),
        ([rule(roles=("clerk",))], "alice", "", False),
        ([rule(roles=("clerk",))], "clerk", "", False),
        ([rule(roles=("team:*", "manager"))], "alice", "team:7", True),
        ([rule(principals=("alice",), roles=("clerk",))], "alice", "", False),
        ([rule(principals=("alice",), roles=("clerk",))], "bob", "clerk", False),
        ([rule(principals=("alice",), roles=("clerk",))], "alice", "clerk", True),
        ([rule(principals=("alice",)), rule(roles=("clerk",))], "bob", "clerk", True),
        ([], "alice", "clerk", False),
    ],
)
def test_a_rule_admits_its_principals_and_roles(
    rules: list[AccessRule], principal: str, roles: str, admitted: bool
) -> None:
    """Both conditions of one rule must hold; one of its roles is enough; rules add up."""
    assert admits(rules, principal, roles) is admitted


def test_a_rule_for_principals_gives_nothing_to_all_work_of_its_callers() -> None:
    access = Access([rule(principals=("alice",)), rule(roles=("clerk",), methods=("get",))])
    assert not access.allows("gateway", "orders", "get")
    assert access.rules_of("gateway") == ()
    assert len(access.personal("gateway", "orders", "get")) == 2
    assert len(access.personal("gateway@host-1", "orders", "delete")) == 1
    assert access.personal("client", "orders", "get") == ()
    assert access.personal("gateway", "mail", "get") == ()


def test_a_rule_for_principals_closes_what_is_open_otherwise() -> None:
    closed = AccessRule(callers=("gateway",), services=("$worker",), principals=("alice",))
    assert not Access([closed]).allows("client", "$worker", "info")


@pytest.mark.parametrize(
    ("asserting", "caller", "found"),
    [
        (("gateway",), "gateway", True),
        (("gateway",), "gateway@host-2", True),
        (("gateway@host-1",), "gateway@host-2", False),
        (("gateway",), "client", False),
        (("gateway",), "", False),
        ((), "gateway", False),
        (("gate*",), "gate-7", True),
    ],
)
def test_the_callers_in_assert_may_assert_principals(asserting: tuple[str, ...], caller: str, found: bool) -> None:
    assert Access([], asserting=asserting).asserts(caller) is found


# --- reading ------------------------------------------------------------------------------------------------------


def read(table: dict[str, Any]) -> tuple[AccessSettings, list[str]]:
    wrong: list[str] = []
    settings = read_access(table, lambda path, what: wrong.append(".".join(path)), lambda path: "mesh.toml:7")
    return settings, wrong


def test_gateways_assert_principals_unless_assert_says_otherwise() -> None:
    allow = [{"caller": "gateway", "service": "orders", "principals": "alice", "roles": ["clerk", "team:*"]}]
    settings, wrong = read({"allow": allow})
    assert not wrong
    assert settings.asserting == ("gateway",)
    assert settings.allow[0].principals == ("alice",)
    assert settings.allow[0].roles == ("clerk", "team:*")
    assert str(settings.allow[0]) == "gateway for principals alice for roles clerk, team:* → orders: *"
    assert read({"assert": []})[0].asserting == ()
    assert read({"assert": ["gateway", "edge-*"]})[0].asserting == ("gateway", "edge-*")


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"service": "orders", "state": ["carts"]}, "allow.0.state"),
        ({"service": "orders", "state": {"read": ["carts"]}}, "allow.0.state"),
        ({"locks": "orders.*"}, "allow.0.locks"),
        ({"schedules": "orders.*"}, "allow.0.schedules"),
        ({"events": {"subscribe": "order.#"}}, "allow.0.events.subscribe"),
        ({"events": {"subscribe": "order.#", "publish": "order.#"}}, "allow.0.events.subscribe"),
        ({"service": ["orders", "mesh-store"]}, "allow.0.service"),
        ({"service": "orders", "caller": "clerk"}, "allow.0.caller"),
        ({"service": "orders", "caller": ["gateway", "clerk"]}, "allow.0.caller"),
        ({"service": "orders", "principals": []}, "allow.0.principals"),
        ({"service": "orders", "principals": [""]}, "allow.0.principals"),
        ({"service": "orders", "roles": 7}, "allow.0.roles"),
        ({"service": "orders", "principal": "alice"}, "allow.0.principal"),
    ],
)
@pytest.mark.parametrize("condition", ["principals", "roles"])
def test_what_cannot_be_enforced_is_refused(keys: dict[str, Any], path: str, condition: str) -> None:
    """The rule is not used either: without its condition it would give more than it says."""
    settings, wrong = read({"allow": [{"caller": "gateway", condition: ["alice"], **keys}]})
    assert wrong == [path]
    assert settings.allow == ()


@pytest.mark.parametrize("value", ["", [""], 7, [7], {}])
def test_assert_is_a_list_of_callers(value: Any) -> None:
    """A wrong one is an error, and nobody asserts anything."""
    settings, wrong = read({"assert": value})
    assert wrong == ["assert"]
    assert settings.asserting == ()


def test_the_example_of_the_documentation_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    [example] = re.findall(r"```toml access-users\n(.*?)```", text, re.DOTALL)
    settings, wrong = read(tomllib.loads(example)["access"])
    assert not wrong
    access = Access.of(settings)
    assert access is not None
    assert admits(access.personal("gateway", "orders", "refund"), "bob", "clerk-2")
    assert not admits(access.personal("gateway", "orders", "refund"), "bob", "clerk")
    assert admits(access.personal("gateway", "reports", "any"), "alice@example.com", "")


def test_an_error_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[[access.allow]]\ncaller = "gateway"\nroles = ["clerk"]\ntasks = "mail.*"\nlocks = "orders.*"\n')
    with pytest.raises(ConfigError) as caught:
        config.load(file, env={})
    assert caught.value.message.startswith(f"{file}:5: access.allow[0].locks: ")
