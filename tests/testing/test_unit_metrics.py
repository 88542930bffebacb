"""What a service counts is seen in a unit test."""

from __future__ import annotations

import mesh
from mesh import rpc
from mesh.testing import FakeNode, unit


class Orders(mesh.Service):
    @rpc
    async def place(self) -> None:
        self.metrics.counter("orders_placed", kind="gift").add()


async def test_a_unit_test_sees_what_a_service_counts():
    node = FakeNode()
    orders = unit(Orders, node=node)
    await orders.place()
    await orders.place()
    assert node.recorder.counter("orders_placed", kind="gift").value == 2
