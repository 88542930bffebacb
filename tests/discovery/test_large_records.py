"""Services with very many methods, and what is said of one with too many."""

from __future__ import annotations

import msgspec
import pytest

import mesh
from mesh.discovery.admission import Limits, encode_record
from mesh.discovery.record import Instance, MethodRecord
from mesh.discovery.registrations import Holdings
from mesh.errors import SetupError
from mesh.testing import Mesh


class Parcel(msgspec.Struct):
    weight: int
    address: str
    notes: list[str]


def _method(number: int) -> object:
    async def method(self: object, name: str, count: int = 3, parcel: Parcel | None = None) -> dict[str, int]:
        """Sends a parcel so many times, and tells how often it arrived."""
        return {name: count * number}

    method.__name__ = f"method_{number}"
    return mesh.rpc(method)


async def test_a_service_with_a_thousand_methods_is_registered_and_called():
    """Its record is far beyond what small ones take, and within the limit."""
    Big = type("Big", (mesh.Service,), {f"method_{number}": _method(number) for number in range(1000)})
    async with Mesh(Big) as m:
        assert await m.call("big.method_999", name="x") == {"x": 2997}
        record = m.node.agent.table.instances("big")[0]
        assert len(record.methods) == 1000
        assert 256 * 1024 < len(memoryview(encode_record(record))) < Limits().record_bytes


def test_one_that_is_too_large_is_named_with_its_size_and_the_remedy():
    """Before any hub hears of it."""
    methods = {f"m{number}": MethodRecord(f"m{number}", doc="x" * 1000) for number in range(50)}
    record = Instance(service="orders", id="orders-1", epoch=1, methods=methods)
    with pytest.raises(SetupError) as caught:
        Holdings(Limits(record_bytes=10_000)).add([record])
    size = len(memoryview(encode_record(record)))
    for wanted in ("'orders'", "50 methods", str(size), "10000", "max_record"):
        assert wanted in caught.value.message
