"""Rules of [access]: what is allowed is allowed, and everything else is not."""

from __future__ import annotations

import pytest

from mesh.config import AccessRule, ServeRule
from mesh.config.patterns import matches_any
from mesh.policy.access import OPEN, Access


def rule(callers: str, services: str, methods: str = "*") -> AccessRule:
    return AccessRule(callers=tuple(callers.split()), services=tuple(services.split()), methods=tuple(methods.split()))


def test_no_rule_allows_nothing():
    """Declared and empty: everything is denied."""
    assert not Access([]).allows("gateway", "orders", "get")


@pytest.mark.parametrize(
    ("caller", "service", "method", "allowed"),
    [
        ("gateway", "orders", "get", True),
        ("gateway", "orders", "get_all", True),
        ("gateway", "orders", "list", True),
        ("gateway", "orders", "delete", False),
        ("gateway", "orders", "forget", False),
        ("gateway", "orders", "GET", False),
        ("gateway", "mail", "get", True),
        ("gateway", "payments", "get", False),
        ("orders", "orders", "get", False),
        ("gateway2", "orders", "get", False),
        ("", "orders", "get", False),
    ],
)
def test_a_rule_is_about_all_three(caller: str, service: str, method: str, allowed: bool):
    """The caller, the service and the method must fit, each wholly and to the letter."""
    access = Access([rule("gateway", "orders mail", "get* list")])
    assert access.allows(caller, service, method) is allowed


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("job[1]", "job[1]", True),
        ("job[1]", "job1", False),
        ("job[!1]", "job2", False),
        ("[*]", "[ab]", True),
        ("[a-z]*", "nightly", False),
        ("job?", "job[", True),
    ],
)
def test_brackets_in_a_name_are_brackets(pattern: str, name: str, allowed: bool):
    """Only * and ? stand for something else: "job[1]" is one lock, and no set of locks."""
    assert matches_any([pattern], name) is allowed


def test_rules_only_add():
    """A call is allowed when any rule allows it; none takes back what another gives."""
    access = Access([rule("gateway", "orders", "get"), rule("cron", "orders"), rule("gateway", "orders", "list")])
    assert access.allows("gateway", "orders", "get")
    assert access.allows("gateway", "orders", "list")
    assert access.allows("cron", "orders", "purge")
    assert not access.allows("gateway", "orders", "purge")


def test_a_role_means_the_role_on_each_host():
    """ "orders" is "orders@host-1" as well; a rule may also mean one host alone."""
    access = Access([rule("orders", "mail"), rule("cron@host-1", "orders")])
    assert access.allows("orders", "mail", "send")
    assert access.allows("orders@host-2", "mail", "send")
    assert access.allows("cron@host-1", "orders", "purge")
    assert not access.allows("cron@host-2", "orders", "purge")
    assert not access.allows("cron", "orders", "purge")
    assert not access.allows("mail@orders", "mail", "send")


@pytest.mark.parametrize(("service", "method"), sorted(OPEN))
def test_what_a_process_is_may_be_asked_unless_a_rule_says_who(service: str, method: str):
    """Pages and `mesh ps` go on showing a mesh whose rules are about its services; a rule that names it closes it."""
    assert Access([]).allows("anybody", service, method)
    closed = Access([rule("gateway", "$worker", "metrics")])
    assert closed.allows("gateway", service, method) is (method == "metrics")
    assert not closed.allows("anybody", service, method)


def test_other_names_of_a_worker_are_not_open():
    """What may be added to them need not be harmless."""
    assert not Access([]).allows("anybody", "$worker", "stop")
    assert not Access([]).allows("anybody", "orders", "$on")


def test_who_may_run_what_is_free_until_a_rule_says():
    """Then each service has those who may run it, and one that no rule names has nobody."""
    assert Access([]).may_serve("anybody", "orders")
    access = Access([], [ServeRule(workers=("orders", "spare@host-*"), services=("orders", "stock"))])
    assert access.may_serve("orders", "stock")
    assert access.may_serve("orders@host-1", "orders")
    assert access.may_serve("spare@host-9", "orders")
    assert not access.may_serve("spare", "orders")
    assert not access.may_serve("mail", "orders")
    assert not access.may_serve("orders", "mail")
