"""The mesh that is reckoned with: what runs on a host, who calls whom, and what a record holds.

Owns: every assumption, as a number with a name. docs/scaling.md lists them; change one here and all else follows.
Leaves to others: what anything costs (units), what happens over time (storm, registry), the sums (parts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mesh.discovery.record import Instance, MethodRecord

#: How many methods the records have, by turns, and how long each one's documentation is: 0.7, 2.4, 6.3 and 11 KB, as
#: the four services of this project had when this was written.
SHAPES: Final = ((2, 40), (4, 270), (8, 510), (12, 650))


@dataclass(frozen=True)
class Model:
    """One mesh.

    Attributes:
        hosts: how many machines.
        hubs: how many of them have a hub that is listed in mesh.hubs.
        workers: on each host; each runs one instance of one service.
        gateways: on each host.
        services: in the whole mesh; every service has as many workers as every other.
        calls_to: how many other services each service calls.
        listens: of the services, how many have a handler for an event that every service emits, `to="every"`.
        swinging: one in so many instances has few places and is full one second and empty the next.
        bare: records without their methods, as if hubs kept what a release offers once. Not built; a what-if.
    """

    hosts: int
    hubs: int = 3
    workers: int = 8
    gateways: int = 2
    services: int = 20
    calls_to: int = 3
    listens: int = 1
    swinging: int = 20
    bare: bool = False

    @property
    def instances(self) -> int:
        return self.hosts * self.workers

    @property
    def processes(self) -> int:
        """Those that register or watch: workers and gateways."""
        return self.hosts * (self.workers + self.gateways)

    @property
    def per_service(self) -> float:
        return self.instances / self.services

    @property
    def links_of_worker(self) -> float:
        """Out of a worker, to the workers of the services that it calls."""
        return self.calls_to * self.per_service

    @property
    def links_into_worker(self) -> float:
        """From workers that call its service, and from every gateway."""
        return self.calls_to * self.per_service + self.hosts * self.gateways

    @property
    def links_of_gateway(self) -> int:
        """Out of a gateway, which has routes to every service, to every worker."""
        return self.instances

    def record(self, number: int) -> Instance:
        """What the instance of that number tells of itself."""
        methods, words = SHAPES[number % len(SHAPES)]
        service = number % self.services
        name = f"service-{service:02d}"
        return Instance(
            service=name,
            id=f"{name}-{number:08x}",
            epoch=1_760_000_000_000 + number,
            worker=f"{name}-{number:08x}",
            version="1.4.2",
            host=f"web-{number // self.workers:04d}",
            pid=10_000 + number % 20_000,
            endpoint=f"tcp://10.0.{number // 1000 % 250}.{number % 250}:{40_000 + number % 20_000}?key={number:064x}",
            events=f"tcp://10.0.{number // 1000 % 250}.{number % 250}:{30_000 + number % 10_000}?key={number:064x}",
            methods={} if self.bare else {f"method_{at}": _method(at, words) for at in range(methods)},
        )


def _method(at: int, words: int) -> MethodRecord:
    params: dict[str, Any]
    text = {"type": "string", "title": "a field", "maxLength": 200}
    params = {
        "type": "object",
        "properties": {
            "name": text,
            "count": {"type": "integer", "minimum": 0, "default": 1},
            "tags": {"type": "array"},
        },
        "required": ["name"],
    }
    if words < 100:
        params = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    return MethodRecord(f"method_{at}", params, {"type": "array", "items": text}, doc="x" * words)
