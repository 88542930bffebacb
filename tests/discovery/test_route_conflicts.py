"""Two services that declare one HTTP address are both told."""

from __future__ import annotations

import mesh
from mesh import http
from mesh.discovery.record import Instance, RouteRecord
from mesh.discovery.route_conflicts import ConflictLog, RouteConflict, route_conflicts
from mesh.discovery.table import Change
from mesh.testing import Mesh


def instance(service: str, *routes: tuple[str, str], number: int = 1) -> Instance:
    records = [RouteRecord(verb, path, "page") for verb, path in routes]
    return Instance(service, f"{service}-{number}", number, routes=records)


def test_addresses_are_alike_whatever_their_parameters_are_called():
    """Other copies of one service are no conflict, and neither is another verb or a shorter path."""
    found = route_conflicts(
        [
            instance("b", ("GET", "/users/{id}"), ("GET", "/b")),
            instance("b", ("GET", "/users/{id}"), ("GET", "/b"), number=2),
            instance("a", ("GET", "/users/{name}"), ("POST", "/b"), ("GET", "/users")),
            instance("c", ("GET", "/users/{rest...}")),
        ]
    )
    assert found == [RouteConflict("GET", "/users/{name}", ("a", "b"))]


def test_a_worker_logs_the_conflicts_of_its_own_services_once():
    both = [instance("a", ("GET", "/x")), instance("b", ("GET", "/x"))]
    mine, theirs = ConflictLog(["a"], lambda: both), ConflictLog(["c"], lambda: both)
    for _ in range(2):
        for each in (mine, theirs):
            each.on_change(Change(joined=tuple(both)))
    assert len(mine._logged) == 1
    assert not theirs._logged


class Blue(mesh.Service):
    @http.get("/page")
    async def page(self) -> str:
        return "blue"


class Red(mesh.Service):
    @http.get("/page")
    async def page(self) -> str:
        return "red"


async def test_the_log_of_both_workers_names_the_route(capsys):
    async with Mesh(Blue, Red):
        pass
    lines = [line for line in capsys.readouterr().err.splitlines() if "route.duplicated" in line]
    assert len(lines) == 2
    assert all("/page" in line and "blue" in line and "red" in line for line in lines)
