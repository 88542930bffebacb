"""Records that say the same share what they say."""

from __future__ import annotations

import pytest

from mesh.discovery import shapes as shapes_module
from mesh.discovery.admission import encode_record, encode_records
from mesh.discovery.record import Instance, MethodRecord, RouteRecord, Subscription, TaskRecord
from mesh.discovery.shapes import SHARED, Shapes


def full(instance_id: str, **fields) -> Instance:
    """A record of which nothing is as it would be without being told."""
    values = {
        "service": "a",
        "id": instance_id,
        "epoch": 7,
        "worker": "w",
        "version": "1",
        "host": "h",
        "pid": 3,
        "endpoint": "tcp://h:1",
        "events": "tcp://h:2",
        "methods": {"m": MethodRecord("m", {"type": "object"}, {}, doc="d")},
        "routes": [RouteRecord("GET", "/m", "m")],
        "subscriptions": [Subscription("a.b")],
        "meta": {"zone": "x"},
        "doc": "d",
        "load": 0.5,
        "tasks": {"t": TaskRecord("t")},
        "durable": [Subscription("c")],
        "places": 4,
    }
    assert set(values) == set(Instance.__struct_fields__)
    return Instance(**{**values, **fields})


def test_what_is_read_is_what_was_written():
    """Every field, whether told or left out."""
    records = [full("a-1"), Instance("b", "b-1", 1), full("a-2", version="2", methods={})]
    assert Shapes().read(encode_records(records)) == records
    assert Shapes().read_one(encode_record(records[0])) == records[0]


@pytest.mark.parametrize("field", SHARED)
def test_equal_parts_are_one_object(field):
    """Within a message and from one to the next; what differs does not."""
    shapes = Shapes()
    one, other = shapes.read(encode_records([full("a-1"), full("a-2", endpoint="tcp://h:9")]))
    [later] = shapes.read(encode_records([full("a-3")]))
    [different] = shapes.read(encode_records([full("a-4", **{field: type(getattr(one, field))()})]))
    assert getattr(one, field) is getattr(other, field) is getattr(later, field)
    assert getattr(different, field) != getattr(one, field)


def test_what_is_remembered_is_bounded(monkeypatch):
    """Releases come and go; records are right all the same."""
    monkeypatch.setattr(shapes_module, "REMEMBERED_BYTES", 1000)
    shapes = Shapes()
    for number in range(100):
        [record] = shapes.read(encode_records([full("a-1", meta={"release": "x" * 50 + str(number)})]))
        assert record.meta["release"].endswith(str(number))
        assert sum(len(key) for _, key in shapes._seen) <= 1000
