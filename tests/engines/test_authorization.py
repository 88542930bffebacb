"""Rights on durable data: each is given by its own part of a rule, to its caller, on its names, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.config.access import AccessSettings, read_access
from mesh.engines.authorization import REMEMBERED, Authorization, Refusal, Right
from mesh.errors import SetupError
from mesh.policy.access import Access

#: (right, part of a rule that gives it, a name that it is about, one that it is not about)
GIVEN: list[tuple[Right, dict[str, Any], str, str]] = [
    ("defer", {"tasks": "mail.*"}, "mail.send", "mailbox.send"),
    ("defer", {"service": "mail", "methods": "send"}, "mail.send", "mail.purge"),
    ("look", {"tasks": "mail.send"}, "mail.send", "mail.purge"),
    ("look", {"service": "mail"}, "mail.send", "post.send"),
    ("publish", {"events": {"publish": "order.*"}}, "order.made", "order.made.twice"),
    ("subscribe", {"events": {"subscribe": "order.#"}}, "order.*.paid", "#"),
    ("read", {"state": {"read": "carts*"}}, "carts-eu", "orders"),
    ("write", {"state": {"write": "carts"}}, "carts", "carts-eu"),
    ("read", {"state": "carts"}, "carts", "orders"),
    ("write", {"state": "carts"}, "carts", "orders"),
    ("lock", {"locks": "orders.*"}, "orders.7", "mail.7"),
    ("schedule", {"schedules": "orders.*"}, "orders.nightly", "mail.nightly"),
    ("inspect", {"service": "mesh-store", "methods": "info"}, "info", "check"),
]
EVERYTHING: dict[str, Any] = {
    "service": "*",
    "tasks": "*",
    "events": {"publish": "#", "subscribe": "#"},
    "state": "*",
    "locks": "*",
    "schedules": "*",
}


def settings(**table: Any) -> AccessSettings:
    wrong: list[str] = []
    read = read_access(table, lambda path, what: wrong.append(what), lambda path: "mesh.toml:7")
    assert not wrong
    return read


def authorization(
    denied: list[tuple[Refusal, bool]] | None = None, subscriptions: tuple[str, ...] = (), **table: Any
) -> Authorization:
    return Authorization(
        Access.of(settings(**table)) or Access(()),
        "mesh-store-1",
        subscription=lambda queue: queue in subscriptions,
        denied=lambda refusal, fresh: (denied if denied is not None else []).append((refusal, fresh)),
    )


@pytest.mark.parametrize(("right", "part", "name", "other"), GIVEN)
def test_a_part_of_a_rule_gives_its_right(right: Right, part: dict[str, Any], name: str, other: str) -> None:
    """To that caller on each host, on these names; nobody else, nothing else."""
    rules = authorization(allow=[{"caller": "orders", **part}])
    assert rules.refusal("orders", right, name) is None
    assert rules.refusal("orders@host-1", right, name) is None
    for caller, asked in (("orders", other), ("mail2", name), ("orders2", name), ("", name)):
        refusal = rules.refusal(caller, right, asked)
        assert refusal is not None
        assert refusal.error().code == "forbidden"


@pytest.mark.parametrize(("right", "part", "name", "_"), GIVEN)
def test_no_other_part_gives_it(right: Right, part: dict[str, Any], name: str, _: str) -> None:
    """Each key of a rule stands for itself; only calling includes deferring."""
    others = {key: value for key, value in EVERYTHING.items() if key not in part}
    if right in ("defer", "look"):
        others = {key: value for key, value in others.items() if key not in ("service", "tasks")}
    refusal = authorization(allow=[{"caller": "shop", **others}]).refusal("shop", right, name)
    assert refusal is not None
    # What it says to write does give it.
    key = next(iter(part)) if right not in ("defer", "look") else "tasks"
    assert f"{key} = " in refusal.message


def test_reading_is_not_writing_and_publishing_is_not_subscribing() -> None:
    """The two halves of a table."""
    rules = authorization(
        allow=[{"caller": "a", "state": {"read": "carts"}, "events": {"subscribe": "order.#"}}],
    )
    assert rules.refusal("a", "write", "carts") is not None
    assert rules.refusal("a", "publish", "order.made") is not None


def test_work_is_for_those_who_serve() -> None:
    """The process that is named after the service, until [[access.serve]] says who; never by a rule of another kind."""
    rules = authorization(allow=[{"caller": "client", **EVERYTHING}])
    assert rules.refusal("vault", "work", "vault.wipe") is None
    assert rules.refusal("vault@host-1", "work", "vault.wipe") is None
    for caller in ("client", "vault2", "orders"):
        assert rules.refusal(caller, "work", "vault.wipe") is not None
    serve = authorization(allow=[], serve=[{"worker": "spare", "service": ["vault", "orders"]}])
    assert serve.refusal("spare", "work", "vault.wipe") is None
    assert serve.refusal("vault", "work", "vault.wipe") is not None


def test_who_serves_has_what_is_its_own() -> None:
    """Its tasks and schedules; not its topics, and nothing of others."""
    rules = authorization(allow=[])
    for right in ("work", "defer", "look", "schedule"):
        assert rules.refusal("vault", right, "vault.wipe") is None  # type: ignore[arg-type]
        assert rules.refusal("vault", right, "orders.wipe") is not None  # type: ignore[arg-type]
    for right, name in (
        ("subscribe", "vault.asked"),
        ("publish", "vault.done"),
        ("lock", "vault.7"),
        ("read", "vault"),
    ):
        assert rules.refusal("vault", right, name) is not None  # type: ignore[arg-type]


def test_jobs_of_a_durable_handler_are_its_workers_alone() -> None:
    """They are events: a right to tasks is none to make or to read them."""
    rules = authorization(subscriptions=("vault.audit",), allow=[{"caller": "client", "service": "vault"}])
    assert rules.refusal("client", "defer", "vault.wipe") is None
    for right in ("defer", "look"):
        assert rules.refusal("client", right, "vault.audit") is not None  # type: ignore[arg-type]
        assert rules.refusal("vault", right, "vault.audit") is None  # type: ignore[arg-type]


def test_operators_may_do_everything_and_others_nothing_of_theirs() -> None:
    """The role of the commands unless [access] names others; an empty list is nobody."""
    for table, operator in (({}, "operator"), ({"operators": ["admin-*"]}, "admin-7")):
        rules = authorization(allow=[{"caller": "*", **EVERYTHING}], **table)
        for right in ("operate", "work", "session", "inspect"):
            assert rules.refusal(operator, right, "backup") is None  # type: ignore[arg-type]
        assert rules.refusal("client", "operate", "backup") is not None
    assert authorization(operators=[]).refusal("operator", "operate", "backup") is not None


def test_answers_are_remembered_and_bounded() -> None:
    """Each denial is told, its first time as new; names that are made up take no memory."""
    denied: list[tuple[Refusal, bool]] = []
    rules = authorization(denied)
    for _ in range(2):
        rules.refusal("a", "read", "carts")
    assert [fresh for _, fresh in denied] == [True, False]
    for number in range(REMEMBERED + 50):
        rules.refusal("a", "read", f"n{number}")
    assert len(rules._known["read"]) == REMEMBERED
    assert rules.refusal("a", "read", "another") is not None


def test_a_malformed_topic_in_a_rule_stops_the_start() -> None:
    """With the place of the rule."""
    with pytest.raises(SetupError, match=r"mesh\.toml:7"):
        authorization(allow=[{"caller": "a", "events": {"publish": "order made"}}])
