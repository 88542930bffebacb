"""Which method an address means: the trie, conflicts, verbs, decoding."""

from __future__ import annotations

import pytest
from gateway_fakes import FakeNode

from mesh.config import Settings
from mesh.discovery.record import Instance, MethodRecord, RouteRecord
from mesh.errors import BadRequest, MethodNotAllowed, UnknownRoute
from mesh.gateway.routes import Conflict, Routes
from mesh.gateway.server import Gateway

METHOD = MethodRecord("m")


def routes(*declared: str, living: list[str] | None = None) -> Routes:
    """`routes("a GET /x/{id}")`: service, verb, path; the method is called as the path."""
    by_service: dict[str, list[tuple[RouteRecord, MethodRecord]]] = {}
    for text in declared:
        service, verb, path = text.split()
        by_service.setdefault(service, []).append((RouteRecord(verb, path, path), METHOD))
    return Routes(by_service, living)


def found(routes: Routes, verb: str, path: str) -> tuple[str, list[str]]:
    route, values = routes.find(verb, path)
    return f"{route.service} {route.record.path}", values


def test_a_literal_beats_a_parameter_and_a_parameter_beats_a_rest() -> None:
    """The more a route says of a path, the sooner it is taken."""
    table = routes("a GET /x/{id}", "b GET /x/me", "c GET /x/{all...}")
    assert found(table, "GET", "/x/me") == ("b /x/me", [])
    assert found(table, "GET", "/x/7") == ("a /x/{id}", ["7"])
    assert found(table, "GET", "/x/7/y/z") == ("c /x/{all...}", ["7/y/z"])


def test_a_better_match_that_leads_nowhere_is_left_again() -> None:
    """A literal first step does not hide a parameter whose further steps fit."""
    table = routes("a GET /x/me/photo", "b GET /x/{id}/orders/{n}")
    assert found(table, "GET", "/x/me/orders/3") == ("b /x/{id}/orders/{n}", ["me", "3"])


def test_a_literal_without_the_verb_leaves_it_to_a_parameter_that_has_it() -> None:
    """PUT /users/me reaches PUT /users/{id} although GET /users/me exists."""
    table = routes("a GET /users/me", "a PUT /users/{id}")
    assert found(table, "PUT", "/users/me") == ("a /users/{id}", ["me"])


def test_a_path_for_other_verbs_is_405_with_all_of_them() -> None:
    """Allow names every verb of every route that matches the path, and what is always allowed."""
    table = routes("a GET /x/{id}", "a DELETE /x/{key}", "b PUT /x/me")
    with pytest.raises(MethodNotAllowed) as caught:
        table.find("POST", "/x/me")
    assert caught.value.details["allow"] == "GET, HEAD, PUT, DELETE, OPTIONS"
    assert table.allow("/x/7") == "GET, HEAD, DELETE, OPTIONS"


@pytest.mark.parametrize("path", ["/y", "/x", "/x/", "/x/1/2", "//x/1", "/X/1"])
def test_a_path_that_nobody_declares_is_unknown(path: str) -> None:
    """A parameter is one segment, and not an empty one."""
    with pytest.raises(UnknownRoute):
        routes("a GET /x/{id}").find("GET", path)


def test_head_is_served_by_get_unless_somebody_declares_head() -> None:
    """HEAD needs no declaration."""
    assert found(routes("a GET /x"), "HEAD", "/x") == ("a /x", [])


def test_segments_are_decoded_after_they_are_split() -> None:
    """An encoded slash is no separator; UTF-8 comes through, also unencoded."""
    table = routes("a GET /x/{id}", "a GET /grüße")
    assert found(table, "GET", "/x/a%C3%BCb%20c") == ("a /x/{id}", ["aüb c"])
    assert found(routes("a GET /x/{all...}"), "GET", "/x/a%2Fb/c") == ("a /x/{all...}", ["a/b/c"])
    assert found(table, "GET", "/x/%C3%BC") == ("a /x/{id}", ["ü"])
    assert found(table, "GET", "/gr%C3%BC%C3%9Fe") == ("a /grüße", [])
    assert found(table, "GET", "/x/100%") == ("a /x/{id}", ["100%"])


@pytest.mark.parametrize("path", ["/x/%ff", "/x/\udcff"])
def test_a_segment_that_is_not_utf8_is_a_bad_request(path: str) -> None:
    """Bytes that are no text are told so, and do not travel further."""
    with pytest.raises(BadRequest, match="UTF-8"):
        routes("a GET /x/{id}").find("GET", path)


@pytest.mark.parametrize(
    "path",
    [
        "/f/../etc",
        "/f/a/%2e%2e/b",
        "/f/..%2Fetc",
        "/f/%2E./x",
        "/f//etc/hostname",
        "/f/%2Fetc/hostname",
        "/f/%2fetc",
        "/f/a//b",
        "/f/a/",
        "/f/./a",
        "/f/a/.",
        "/f/..",
        "/f/..%5C..%5Cx",
        "/f/..\\x",
        "/f/C:%5Cx",
        "/f/a%00b",
        "/f/%c0%ae%c0%ae/x",
        "/f/%e0%80%af",
    ],
)
def test_a_rest_stays_below_its_directory(path: str) -> None:
    """No spelling of "..", of an absolute path or of a separator reaches a handler that joins it to a directory."""
    with pytest.raises(BadRequest):
        routes("a GET /f/{path...}").find("GET", path)


@pytest.mark.parametrize(
    "path", ["/n/..", "/n/%2e%2e", "/n/.", "/n/a%2Fb", "/n/%2Fetc", "/n/a%5Cb", "/n/a%00", "/n/\\x"]
)
def test_a_parameter_is_one_segment(path: str) -> None:
    """Also once decoded: a handler may use it as a file's name."""
    for declared in ("a GET /n/{name}", "a GET /n/{name}|b GET /n/{rest...}"):
        with pytest.raises(BadRequest):
            routes(*declared.split("|")).find("GET", path)


@pytest.mark.parametrize(
    ("path", "value"),
    [("/f/.well-known/x..y/...", ".well-known/x..y/..."), ("/f/%252e%252e/x", "%2e%2e/x"), ("/f/a.b", "a.b")],
)
def test_names_with_dots_are_names(path: str, value: str) -> None:
    """Decoded once, and only whole segments of dots are refused."""
    assert found(routes("a GET /f/{path...}"), "GET", path) == ("a /f/{path...}", [value])


def test_a_rest_may_be_empty_after_its_slash() -> None:
    """`/f/` is a path below /f; `/f` is not."""
    table = routes("a GET /f/{path...}")
    assert found(table, "GET", "/f/") == ("a /f/{path...}", [""])
    with pytest.raises(UnknownRoute):
        table.find("GET", "/f")


def test_two_services_with_one_address_are_decided_by_name_and_reported() -> None:
    """Every gateway decides alike, whatever the order in which it heard of them; names of parameters do not matter."""
    for order in (["b GET /x/{id}", "a GET /x/{key}"], ["a GET /x/{key}", "b GET /x/{id}"]):
        table = routes(*order)
        assert found(table, "GET", "/x/1") == ("a /x/{key}", ["1"])
        assert [(each.winner, each.loser) for each in table.conflicts] == [("a", "b")]
        assert str(table.conflicts[0]).startswith("GET /x/{")


def test_a_service_that_lives_wins_over_one_that_is_only_remembered() -> None:
    """A service that is gone does not keep its address from another."""
    table = routes("a GET /x", "b GET /x", living=["b"])
    assert found(table, "GET", "/x") == ("b /x", [])


@pytest.mark.parametrize("path", ["/rpc/a/b", "/tasks", "/jobs/{id}", "/livez/x", "/metrics", "/docs/x", "/mesh"])
async def test_the_gateways_own_addresses_cannot_be_taken(path: str) -> None:
    """Such a route is reported and not served."""
    node = FakeNode()
    node.join(Instance("a", "a-1", 1, methods={"m": METHOD}, routes=[RouteRecord("GET", path, "m")]))
    table = Gateway(node, Settings()).catalog.routes
    assert table.conflicts == [Conflict("GET", path, "gateway", "a")]
    with pytest.raises(UnknownRoute):
        table.find("GET", path)


def test_the_root_is_a_path_like_others() -> None:
    """A service may declare `/`."""
    assert found(routes("a GET /"), "GET", "/") == ("a /", [])
