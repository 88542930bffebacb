"""What an author may write over a method, and what is refused when the class is created."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh import http
from mesh.calls.declared import BadDeclaration
from mesh.service.decorators import DEFAULT_QUEUE, every, marks_of, on, path_parameters, rpc
from mesh.service.members import members
from mesh.service.service import Service, snake_case


class Greeting(Service):
    """Says hello."""

    @http.get("/hello/{name}")
    @rpc(idempotent=True, timeout="2s", concurrency=5)
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @rpc
    @http.get("/bye/{name}", status=203, produces="text/plain; charset=utf-8")
    @http.post("/bye/{name}")
    async def bye(self, name: str) -> str:
        return f"Bye, {name}!"

    @http.delete("/")
    async def clear(self) -> None: ...

    @rpc(offload="thread", timeout=1.5)
    def heavy(self, n: int) -> int:
        return n

    @on("order.*")
    @on("order.#", to="every")
    @every("10s")
    async def tick(self, event: Any = None) -> None: ...

    async def plain(self) -> None: ...


def named(cls: type) -> dict[str, Any]:
    return {member.name: member for member in members(cls)}


async def test_a_decorated_method_is_still_the_method():
    """It can be called and tested as written."""
    assert await Greeting().hello("ujun") == "Hello, ujun!"
    assert marks_of(Greeting.plain) is None
    assert list(named(Greeting)) == ["hello", "bye", "clear", "heavy", "tick"]


def test_options_are_kept_in_whatever_order_decorators_stand():
    """@http above @rpc, below it, or alone."""
    found = named(Greeting)
    rpc_mark = found["hello"].rpc
    assert (rpc_mark.idempotent, rpc_mark.timeout_s, rpc_mark.concurrency, rpc_mark.queue) == (
        True,
        2.0,
        5,
        DEFAULT_QUEUE,
    )
    assert found["bye"].rpc is not None
    assert [(route.verb, route.status, route.produces) for route in found["bye"].marks.routes] == [
        ("GET", 203, "text/plain; charset=utf-8"),
        ("POST", 200, ""),
    ]
    assert found["clear"].rpc is not None, "@http alone can be called"
    assert (found["heavy"].rpc.offload, found["heavy"].rpc.timeout_s) == ("thread", 1.5)


def test_topics_and_timers_are_kept_in_the_order_they_are_read():
    """And they alone do not let a method be called."""
    tick = named(Greeting)["tick"]
    assert tick.rpc is None
    assert [(mark.topic, mark.to) for mark in tick.marks.topics] == [("order.*", "one"), ("order.#", "every")]
    assert [mark.period_s for mark in tick.marks.timers] == [10.0]


def _of(decorate: Callable[[Any], Any], body: str = "async def method(self, a=None): ...") -> dict[str, Any]:
    scope: dict[str, Any] = {"AsyncIterator": AsyncIterator}
    exec(body, scope)
    return {"method": decorate(scope["method"])}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: rpc(timeout="2"), "@rpc: timeout '2'"),
        (lambda: rpc(timeout=0), "@rpc: timeout 0"),
        (lambda: rpc(timeout=-1.0), "@rpc: timeout -1.0"),
        (lambda: rpc(timeout=True), "@rpc: timeout True"),
        (lambda: rpc(concurrency=-1), "@rpc: concurrency -1"),
        (lambda: rpc(queue=5), "@rpc: queue"),
        (lambda: rpc(offload="gpu"), "'gpu'"),  # type: ignore[call-overload]
        (lambda: rpc(5), "@rpc"),  # type: ignore[call-overload]
        (lambda: rpc(staticmethod(lambda: 1)), "@staticmethod"),
        (lambda: http.get("hello"), "'hello'"),
        (lambda: http.get("/a//b"), "'/a//b'"),
        (lambda: http.get("/a/"), "'/a/'"),
        (lambda: http.get("/a-{b}"), "'a-{b}'"),
        (lambda: http.get("/{a}/{a}"), "'a'"),
        (lambda: http.get("/{a...}/b"), "{a...}"),
        (lambda: http.get("/a b"), "'a b'"),
        (lambda: http.get("/a?b"), "'a?b'"),
        (lambda: http.get("/a", status=404), "status 404"),
        (lambda: http.get("/a", produces="html"), "produces 'html'"),
        (lambda: on("a..b"), "'a..b'"),
        (lambda: on("a", to="all"), "'all'"),  # type: ignore[arg-type]
        (lambda: every("soon"), "@every 'soon'"),
        (lambda: every(0), "@every 0"),
    ],
)
def test_nonsense_is_refused_where_it_stands(make, named):
    """A wrong option never waits for the first call to show."""
    with pytest.raises(BadDeclaration) as caught:
        make()
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (_of(rpc(offload="process")), "offload='process'"),
        (_of(rpc(offload="thread"), "async def method(self):\n    yield 1"), "offload='thread'"),
        (_of(http.get("/{id}")), "{id}"),
        (_of(every("1s"), "async def method(self, a): ..."), "@every"),
        (_of(every("1s"), "def method(self):\n    yield 1"), "@every"),
        (_of(on("a"), "async def method(self):\n    yield 1"), "@on"),
        ({"_hidden": _of(rpc)["method"]}, "Broken._hidden"),
        ({"emit": _of(rpc)["method"]}, "Broken.emit"),
    ],
)
def test_a_class_that_cannot_work_is_not_created(members, named):
    """The error names class and method."""
    with pytest.raises(BadDeclaration) as caught:
        type("Broken", (Service,), members)
    assert named in caught.value.message
    assert caught.value.message.startswith("Broken.")


def test_two_methods_on_one_route_are_refused():
    """Also when only the parameters' names differ."""
    with pytest.raises(BadDeclaration, match=r"Shop\.b: GET /items/\{y\} .*Shop\.a"):

        class Shop(Service):
            @http.get("/items/{x}")
            async def a(self, x: int) -> None: ...

            @http.post("/items/{x}")
            async def c(self, x: int) -> None: ...

            @http.get("/items/{y}")
            async def b(self, y: int) -> None: ...


def test_a_process_can_only_find_a_class_of_the_module():
    """A class inside a function has no name in another process."""
    with pytest.raises(BadDeclaration, match=r"Inner\.work"):

        class Inner(Service):
            @rpc(offload="process")
            def work(self) -> None: ...


def test_rpc_twice_is_refused():
    """Which options would count?"""
    with pytest.raises(BadDeclaration, match="@rpc"):
        rpc(rpc(_of(rpc)["method"]))


def test_methods_are_inherited_and_taken_back():
    """An override without a decorator cannot be called from outside."""

    class Base(Service):
        @rpc
        async def a(self) -> int: ...

        @rpc
        async def b(self) -> int: ...

    class Derived(Base):
        async def a(self) -> int: ...

        @rpc
        async def c(self) -> int: ...

    assert list(named(Derived)) == ["b", "c"]


@pytest.mark.parametrize(
    ("written", "name"),
    [("Greeting", "greeting"), ("TextStats", "text_stats"), ("HTTPProxy", "http_proxy"), ("V2Api", "v2_api")],
)
def test_the_class_name_gives_the_service_name(written, name):
    """CamelCase to snake_case."""
    assert snake_case(written) == name
    assert type(written, (Service,), {}).name == name


def test_a_given_name_is_inherited_and_a_made_one_is_not():
    """A subclass for a test answers for the service it stands in for."""

    class Made(Service): ...

    class Given(Service):
        name = "given-1"

    class OfMade(Made): ...

    class OfGiven(Given): ...

    class Below(OfGiven): ...

    assert (Made.name, OfMade.name, OfGiven.name, Below.name) == ("made", "of_made", "given-1", "given-1")


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"name": "Bad"}, "name 'Bad'"),
        ({"name": "a.b"}, "name 'a.b'"),
        ({"name": ""}, "name ''"),
        ({"name": "x" * 64}, "name 'xxx"),
        ({"needs": "users"}, "needs"),
        ({"needs": ["a.b"]}, "needs 'a.b'"),
        ({"name": "a", "needs": ["a"]}, "needs"),
        ({"meta": {"a": 1}}, "meta"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"queue": -1}, "queue -1"),
    ],
)
def test_wrong_attributes_are_refused(attributes, named):
    """With the class's name."""
    with pytest.raises(BadDeclaration) as caught:
        type("Wrong", (Service,), attributes)
    assert named in caught.value.message
    assert caught.value.message.startswith("Wrong: ")


def test_paths_give_their_parameters():
    """In order; the last may take the remainder."""
    assert path_parameters("/") == []
    assert path_parameters("/a/{b}/c.json/{d...}") == ["b", "d"]


async def test_verbs_are_passed_to_the_node():
    """And without a node the error says so."""

    class Node:
        rpc = "rpc"

        def __getattr__(self, verb: str) -> Any:
            return lambda *args, **kwargs: (verb, args, kwargs)

    service = Greeting()
    with pytest.raises(Exception, match="greeting"):
        service.call("a.b")
    service.node = Node()  # type: ignore[assignment]
    assert service.call("a.b", 1, timeout=2) == ("call", ("a.b", 1), {"timeout": 2})
    assert service.stream("a.b") == ("stream", ("a.b",), {})
    assert service.scatter("a.b", x=1) == ("scatter", ("a.b",), {"x": 1})
    assert service.emit("t", 1, key="k") == ("emit", ("t", 1), {"key": "k", "meta": None, "durable": None})
    assert service.rpc == "rpc"
    await service.started()
    await service.stopped()
