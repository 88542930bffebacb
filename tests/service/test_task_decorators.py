"""`@task`, `@cron`, durable `@on`: what they leave on a class, and what is refused when it is created."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import mesh
from mesh.calls.declared import BadDeclaration
from mesh.config.settings import TaskSettings
from mesh.errors import BadRequest
from mesh.node.targets import Targets
from mesh.service.describe import handlers, methods, record
from mesh.service.members import members
from mesh.tasks.deferring import Target
from mesh.worker.workload import workload


class Orders(mesh.Service):
    """Has one of each."""

    version = "1"

    @mesh.task(retries=5, backoff="1s..1m", timeout="30s", rate="50/s", concurrency=10, slots=7, keep="2h", priority=8)
    @mesh.rpc
    async def charge(self, order_id: str, *, amount: int = 1) -> int:
        """Takes the money."""
        return amount

    @mesh.task
    async def plain(self) -> None: ...

    @mesh.on("order.*", durable=True, retries=1, start="all", slots=3)
    @mesh.on("refund.#", durable=True, retries=1, start="all", slots=3)
    async def audit(self, event: mesh.Event) -> None: ...

    @mesh.on("order.*")
    async def watch(self, order: dict[str, str]) -> None: ...

    @mesh.cron("0 3 * * *", tz="Asia/Tokyo")
    async def close_day(self) -> None: ...

    @mesh.cron("0 * * * *")
    @mesh.every("15m", once=True, missed="skip")
    @mesh.task(retries=0)
    async def often(self, dry: bool = False) -> None: ...


# --- what they become -------------------------------------------------------------------------------------


def test_a_task_becomes_work_and_a_queue():
    """With the options of its author, and the configured ones where these say nothing."""
    load = workload([Orders()], TaskSettings(retries=3, timeout_s=300.0, slots=100))
    works = {work.queue: work for work in load.tasks}
    assert list(works) == ["orders.charge", "orders.plain", "orders.close_day", "orders.often"]
    charge = works["orders.charge"]
    assert (charge.retries, charge.timeout_s, charge.backoff.most_s) == (5, 30.0, 60.0)
    assert (works["orders.plain"].retries, works["orders.plain"].timeout_s) == (3, 300.0)
    queue = load.task_queues[0]
    assert (queue.credit, queue.rate_per_s, queue.burst, queue.concurrency) == (7, 50.0, 5, 10)
    assert load.task_queues[1].credit == 100


def test_a_durable_handler_becomes_a_subscription():
    """One queue with all of its topics; it is no plain handler."""
    load = workload([Orders()], TaskSettings())
    (queue,) = load.subscriptions
    assert (queue.name, queue.patterns, queue.start, queue.credit) == (
        "orders.audit",
        ("order.*", "refund.#"),
        "all",
        3,
    )
    assert [work.retries for work in load.deliveries] == [1]
    assert [handler.label for handler in handlers(Orders())] == ["orders.watch"]


def test_schedules_name_their_queue_and_each_its_own_name():
    """A method may have several."""
    found = [(one.name, one.plan.text, one.missed, one.queue) for one in workload([Orders()], TaskSettings()).schedules]
    assert found == [
        ("orders.close_day", "0 3 * * * Asia/Tokyo", "once", "orders.close_day"),
        ("orders.often", "0 * * * * UTC", "once", "orders.often"),
        ("orders.often#2", "every 15m", "skip", "orders.often"),
    ]


def test_the_record_tells_of_tasks_and_durable_topics():
    """Gateways and the command line know the tasks of a service and what they take."""
    told = record(Orders, id="orders-1", epoch=1)
    assert sorted(told.methods) == ["charge"]
    charge = told.tasks["charge"]
    assert (charge.keep_s, charge.priority, charge.doc) == (7200.0, 8, "Takes the money.")
    assert sorted(charge.params["properties"]) == ["amount", "order_id"]
    assert told.tasks["often"].schedules == ["0 * * * * UTC", "every 15m"]
    assert [(one.topic, one.method) for one in told.durable] == [("order.*", "audit"), ("refund.#", "audit")]
    assert [one.topic for one in told.subscriptions] == ["order.*"]
    assert [method.name for method in methods(Orders())] == ["charge"]


def test_an_older_peer_reads_the_record():
    """What it does not know is passed over; a record without tasks has none."""
    import msgspec

    from mesh.discovery.record import Instance

    class Older(msgspec.Struct):
        service: str
        id: str
        epoch: int

    body = msgspec.msgpack.encode(record(Orders, id="orders-1", epoch=1))
    assert msgspec.msgpack.decode(body, type=Older).service == "orders"
    assert msgspec.msgpack.decode(body, type=Instance).tasks["charge"].priority == 8
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Older("a", "b", 1)), type=Instance).tasks == {}


# --- what is refused --------------------------------------------------------------------------------------


def refused(*named: str, **namespace: object) -> None:
    with pytest.raises(BadDeclaration) as caught:
        type("Shop", (mesh.Service,), namespace)
    assert all(word in caught.value.message for word in named), caught.value.message


async def with_argument(self: mesh.Service, n: int) -> None: ...
async def without(self: mesh.Service) -> None: ...
async def stream(self: mesh.Service) -> AsyncIterator[int]:
    yield 1


def fresh(function):
    """The function anew: marks stay on a function."""
    import types

    return types.FunctionType(function.__code__, function.__globals__, function.__name__)


def test_what_cannot_work_is_refused_with_its_name():
    """When the class is created, not when the first task comes."""
    refused("Shop.tick: ", " n", tick=mesh.cron("0 * * * *")(fresh(with_argument)))
    refused("Shop.many: ", "`yield`", many=mesh.task(fresh(stream)))
    refused(
        "Shop.both: ",
        "@on",
        "self.defer(…)",
        both=mesh.on("a", durable=True)(mesh.task(fresh(without))),
    )
    refused(
        "Shop.twice: ",
        "durable",
        "options",
        twice=mesh.on("a", durable=True)(mesh.on("b", durable=True, retries=1)(fresh(without))),
    )
    refused(
        "Shop.tick: ",
        "options",
        "@task",
        tick=mesh.cron("0 * * * *", retries=1)(mesh.task(fresh(without))),
    )
    refused(
        "Shop.tick: ",
        "schedules",
        "options",
        tick=mesh.cron("0 * * * *", retries=1)(mesh.cron("5 * * * *", retries=2)(fresh(without))),
    )
    refused("Shop.work", "offload='thread'", "`def`", work=mesh.task(offload="thread")(fresh(without)))


def test_the_verbs_of_a_service_keep_their_names():
    """A method called `state` would take the verb away."""
    for name in ("defer", "batch", "step", "chain", "group", "job", "state", "lock", "atomic"):
        refused(f"Shop.{name}: ", **{name: mesh.task(fresh(without))})


def test_names_of_the_framework_are_not_for_users():
    """`mesh-store` is a process of mesh; nobody may pass for it."""
    refused("mesh- ", "'mesh-store'", name="mesh-store")


@pytest.mark.parametrize(
    ("decorate", "named"),
    [
        (lambda: mesh.task(priority=10), ["@task: priority 10", "0 to 9"]),
        (lambda: mesh.task(offload="cloud"), ["@task: offload", '"thread"', '"process"', "'cloud'"]),
        (lambda: mesh.task(keep="never"), ["@task: keep 'never'"]),
        (lambda: mesh.task(mesh.task(fresh(without))), ["@task"]),
        (lambda: mesh.cron("0 25 * * *"), ['"25"']),
        (lambda: mesh.cron("0 3 * * *", tz="Tokyo"), ['"Asia/Tokyo"?']),
        (lambda: mesh.cron("0 3 * * *", missed="never"), ["missed", '"once"', '"all"', '"skip"', "'never'"]),
        (lambda: mesh.every("10s", retries=1), ["@every('10s'): retries", "once=True"]),
        (lambda: mesh.every("10s", missed="all"), ["@every('10s'): missed", "once=True"]),
        (lambda: mesh.every("10ms", once=True), ["1s"]),
        (lambda: mesh.on("a", retries=1), ["retries", "durable=True"]),
        (lambda: mesh.on("a", start="all"), ["start", "durable=True"]),
        (lambda: mesh.on("a", durable=True, to="every"), ['to="every"']),
        (lambda: mesh.on("a", durable=True, start="old"), ["start", '"new"', '"all"', "'old'"]),
        (lambda: mesh.on("a", durable=True, slots=0), ["slots 0"]),
    ],
)
def test_nonsense_in_an_option_is_refused_where_it_is_written(decorate, named):
    """With the decorator's name."""
    with pytest.raises(BadDeclaration) as caught:
        decorate()
    assert all(word in caught.value.message for word in named), caught.value.message


def test_an_override_without_marks_takes_the_task_back():
    """As with every other mark."""

    class Lean(Orders):
        async def plain(self) -> None: ...

    assert "plain" not in {member.name for member in members(Lean)}


# --- finding a task where it is deferred ------------------------------------------------------------------


class Table:
    """A registry of one instance."""

    def __init__(self, *records):
        self.version = 1
        self.records = records

    def instances(self, service):
        return [each for each in self.records if each.service == service]


def test_a_task_is_found_by_method_and_by_name():
    """With the time to keep it and the priority that its author gave."""
    targets = Targets(Table(record(Orders, id="orders-1", epoch=1)), TaskSettings())
    orders = Orders()
    for task in (orders.charge, Orders.charge, "orders.charge"):
        found = targets.find(task)
        assert (found.queue, found.keep_s, found.priority) == ("orders.charge", 7200.0, 8)
    assert targets.find(orders.charge) is targets.find(Orders.charge)
    assert targets.find("other.task") == Target("other.task", keep_s=3600.0)


def test_a_task_is_of_the_class_that_it_is_taken_from():
    """An inherited one by `self` is the subclass's; by the base class, the base's."""

    class Special(Orders):
        name = "special"

    targets = Targets(None, TaskSettings())
    assert targets.find(Special().charge).queue == "special.charge"
    assert targets.find(Orders.charge).queue == "orders.charge"


def test_a_mixin_s_task_needs_to_be_told_whose_it_is():
    """When several services have it."""

    class Cleaning:
        @mesh.task
        async def clean(self) -> None: ...

    class Attic(Cleaning, mesh.Service): ...

    targets = Targets(None, TaskSettings())
    assert targets.find(Attic.clean).queue == "attic.clean"

    class Cellar(Cleaning, mesh.Service): ...

    assert targets.find(Cellar().clean).queue == "cellar.clean"
    with pytest.raises(BadRequest, match=r"\(attic, cellar\)"):
        targets.find(Attic.clean)


def test_what_is_no_task_is_refused_with_what_to_write():
    """A method without @task, a stranger, a name without a dot."""
    targets = Targets(None, TaskSettings())
    for task, named in (
        (Orders().watch, ["Orders.watch", "@task"]),
        (Orders.audit, ["Orders.audit", "@task"]),
        (Orders.started, ["started", "@task"]),
        (print, ["print", "self.charge"]),
        (7, ["7", "self.charge"]),
        ("charge", ['"service.method"']),
    ):
        with pytest.raises(BadRequest) as caught:
            targets.find(task)
        assert all(word in caught.value.message for word in named), caught.value.message


def test_news_of_the_registry_is_news_of_the_task():
    """A release that keeps jobs longer is seen at the next defer."""
    table = Table()
    targets = Targets(table, TaskSettings())
    assert targets.find("orders.charge").keep_s == 3600.0
    table.records, table.version = (record(Orders, id="orders-1", epoch=1),), 2
    assert targets.find("orders.charge").keep_s == 7200.0
