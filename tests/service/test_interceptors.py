"""Interceptors: their order, what they may change, and where they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import mesh
from mesh.calls.declared import BadDeclaration
from mesh.errors import BadRequest, DeadlineExceeded, Forbidden, MeshError, SetupError
from mesh.testing import Mesh
from tests.patience import until
from tests.service.interceptor_services import LOG, Noting, Shop, Stock, Twice

TOML = "tests.service.interceptor_services:Deployed"


@pytest.fixture(autouse=True)
def _clean() -> None:
    LOG.clear()


def everywhere() -> dict[str, Any]:
    return {"interceptors": {"incoming": [TOML], "outgoing": [TOML], "delivery": [TOML]}}


def entered() -> list[str]:
    return [line for line in LOG if not line.endswith(("done", "started", "stopped"))]


# --- order ------------------------------------------------------------------------------------------------


async def test_the_order_is_deployment_base_class_class_method():
    async with Mesh(Shop, Stock, settings={"interceptors": {"incoming": [TOML]}}) as m:
        LOG.clear()
        assert await m.call("shop.buy", "tea") == "bought tea"
    names = ["toml", "base", "class", "method"]
    assert LOG[: 2 * len(names) + 1] == [
        *(f"{name}.incoming shop.buy" for name in names),
        "buy tea",
        *(f"{name}.incoming done" for name in reversed(names)),
    ]


async def test_outgoing_interceptors_are_those_of_the_process_the_service_and_the_method_that_run():
    async with Mesh(Shop, Stock, settings={"interceptors": {"outgoing": [TOML]}}) as m:
        for method, inner in (("relay", []), ("relay_inside", ["method"])):
            LOG.clear()
            assert await m.call(f"shop.{method}", "tea") == "took tea"
            outgoing = [line for line in entered() if ".outgoing stock.take" in line]
            assert outgoing == [f"{name}.outgoing stock.take" for name in ["toml", "base", "class", *inner]]


async def test_the_outgoing_interceptors_of_a_service_do_not_reach_the_services_that_it_calls():
    class Caller(mesh.Service):
        interceptors = [Noting("caller")]

        @mesh.rpc
        async def go(self) -> str:
            return str(await self.call("middle.go"))

    class Middle(mesh.Service):
        @mesh.rpc
        async def go(self) -> str:
            return str(await self.call("stock.take", "x"))

    for transport in ("memory", "ipc"):
        async with Mesh([Caller, Middle], Stock, transport=transport) as m:
            LOG.clear()
            await m.call("caller.go")
            assert [line for line in entered() if "outgoing" in line] == ["caller.outgoing middle.go"]


async def test_tasks_and_events_pass_their_interceptors():
    async with Mesh(Shop, Stock, settings={"interceptors": {"delivery": [TOML]}}) as m:
        LOG.clear()
        await (await m.defer(Shop.pack, "glass")).result()
        around = [f"{name}.delivery shop.pack" for name in ("toml", "base", "class")]
        assert entered() == [*around, "pack glass 1", *around, "pack glass 2"]
        for topic, durable in (("sold", True), ("seen", False), ("shout", False)):
            LOG.clear()
            await m.emit(topic, 1, durable=durable)
            await until(lambda topic=topic: f"{topic} 1" in LOG)
            assert entered() == [
                *(f"{name}.delivery shop.{topic}" for name in ("toml", "base", "class")),
                f"{topic} 1",
            ]


async def test_interceptors_start_before_their_services_and_stop_after_them_once_in_each_process():
    class Hooked(Shop):
        async def started(self) -> None:
            LOG.append("service started")

        async def stopped(self) -> None:
            LOG.append("service stopped")

    async with Mesh(Hooked, settings={"interceptors": {"incoming": [TOML], "delivery": [TOML]}}):
        pass
    # The client of the mesh is a process, too, with those of the deployment only.
    assert LOG[0] == "toml.started"
    assert LOG.count("toml.started") == LOG.count("toml.stopped") == 2
    mine = [line for line in LOG if line.endswith(("started", "stopped")) and not line.startswith("toml")]
    begun = ["base.started", "class.started", "method.started", "method.started", "service started"]
    assert mine == [*begun, *(line.replace("started", "stopped") for line in reversed(begun))]


# --- what they may change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["memory", "ipc"])
async def test_arguments_and_answers_are_changed_in_every_executor(transport: str):
    async with Mesh(Twice, transport=transport) as m:
        assert await m.call("twice.here", 1) == 4
        assert await m.call("twice.in_thread", 1) == 4
        assert await m.call("twice.in_process", {"x": 1, "y": 3}) == {"x": 4, "y": 12}
        assert [item async for item in m.stream("twice.lines", 2)] == [0, 2, 4, 6]
        for task in (Twice.task_here, Twice.task_in_thread, Twice.task_in_process):
            assert await (await m.defer(task, 1)).result() == 4


async def test_wrong_arguments_of_an_intercepted_process_method_are_refused():
    async with Mesh(Twice) as m:
        with pytest.raises(MeshError) as caught:
            await m.call("twice.in_process", {"x": "one"})
        assert caught.value.code == "bad_arguments"


async def test_an_answer_of_an_interceptor_is_checked_like_the_handlers():
    class Wrong(mesh.Interceptor):
        async def incoming(self, call: Any, proceed: Any) -> Any:
            return "text"

    class Number(mesh.Service):
        interceptors = [Wrong()]

        @mesh.rpc
        async def one(self) -> int:
            return 1

    async with Mesh(Number) as m:
        with pytest.raises(MeshError) as caught:
            await m.call("number.one")
        assert caught.value.code == "bad_result"


async def test_an_interceptor_answers_itself_and_refuses():
    class Gate(mesh.Interceptor):
        async def incoming(self, call: mesh.IncomingCall, proceed: Any) -> Any:
            if call.meta.get("skip"):
                return "skipped"
            if not call.context.tenant:
                raise mesh.Forbidden("no tenant")
            return await proceed(call)

    class Asked(mesh.Service):
        interceptors = [Gate()]

        @mesh.rpc
        async def one(self) -> str:
            return mesh.current().tenant  # type: ignore[union-attr]

    async with Mesh(Asked) as m:
        with pytest.raises(Forbidden) as caught:
            await m.call("asked.one")
        assert caught.value.code == "forbidden"
        assert await m.call("asked.one", meta={"skip": "1"}) == "skipped"
        with mesh.scope(tenant="acme"):
            assert await m.call("asked.one") == "acme"


async def test_outgoing_interceptors_set_metadata_answer_and_retry():
    tries: list[int] = []

    class Stamp(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            call.meta["stamp"] = f"{call.service}/{call.method}/{call.arguments}"
            if call.method == "local":
                return "answered here"
            try:
                return await proceed(call)
            except mesh.RemoteError:
                return await proceed(call)

    class Flaky(mesh.Service):
        @mesh.rpc
        async def get(self, n: int) -> str:
            tries.append(n)
            if len(tries) == 1:
                raise ValueError("first")
            return mesh.current().meta["stamp"]  # type: ignore[union-attr]

        @mesh.rpc
        async def items(self) -> AsyncIterator[str]:
            yield mesh.current().meta["stamp"]  # type: ignore[union-attr]

    async with Mesh(Flaky, interceptors=[Stamp()]) as m:
        assert await m.call("flaky.get", 7) == "flaky/get/[7]"
        assert tries == [7, 7]
        assert await m.call("flaky.local") == "answered here"
        assert [item async for item in m.stream("flaky.items")] == ["flaky/items/[]"]
        assert await m.node.using(meta={"a": "b"}).flaky.get(8) == "flaky/get/[8]"
        assert (await m.scatter("flaky.get", 9))[0].value == "flaky/get/[9]"


async def test_an_outgoing_interceptor_that_calls_is_not_intercepted_again():
    class Asking(mesh.Interceptor):
        async def started(self, node: Any) -> None:
            self.node = node

        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            call.meta["checked"] = await self.node.call("stock.take", "x")
            return await proceed(call)

    class Last(mesh.Service):
        @mesh.rpc
        async def one(self) -> str:
            return mesh.current().meta["checked"]  # type: ignore[union-attr]

    async with Mesh(Last, Stock, interceptors=[Asking()]) as m:
        assert await m.call("last.one") == "took x"


# --- time and cancellation --------------------------------------------------------------------------------


class Held(mesh.Service):
    """A handler that waits until it is cancelled."""

    def __init__(self) -> None:
        self.ended = 0

    @mesh.rpc
    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    @mesh.rpc
    async def feed(self) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.ended += 1


async def test_an_incoming_interceptor_shortens_the_deadline():
    class Short(mesh.Interceptor):
        async def incoming(self, call: mesh.IncomingCall, proceed: Any) -> Any:
            call.deadline_at = min(call.deadline_at, asyncio.get_running_loop().time() + 0.05)
            return await proceed(call)

    class Hurried(Held):
        interceptors = [Short()]

    async with Mesh(Hurried) as m:
        with pytest.raises(DeadlineExceeded):
            await m.call("hurried.wait", timeout=20.0)
        assert m.instances(Hurried)[0].ended == 1


async def test_an_outgoing_interceptor_that_hangs_ends_with_the_deadline():
    ended = asyncio.Event()

    class Hangs(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async with Mesh(Held, interceptors=[Hangs()]) as m:
        with pytest.raises(DeadlineExceeded):
            await m.call("held.wait", timeout=0.05)
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_call_that_an_interceptor_sends_late_or_again_has_what_is_left_of_its_timeout():
    left_s: list[float] = []

    class Later(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            first = await proceed(call)
            await asyncio.sleep(0.3)
            return [first, await proceed(call)]

    class Timed(mesh.Service):
        @mesh.rpc
        async def left(self) -> int:
            left_s.append(mesh.current().deadline_at - self.node.clock.now())  # type: ignore[union-attr]
            return len(left_s)

    async with Mesh(Timed, interceptors=[Later()]) as m:
        assert await m.call("timed.left", timeout=20.0) == [1, 2]
        assert 19.0 < left_s[0] < 20.1
        assert left_s[1] <= left_s[0] - 0.25


async def test_a_call_with_a_bad_target_or_timeout_is_refused_behind_an_interceptor_that_waits():
    class Waits(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            await asyncio.sleep(0.2)
            return await proceed(call)

    async with Mesh(Held, interceptors=[Waits()]) as m:
        for target, timeout in (("held", 1.0), ("held.wait", "soon"), ("held.wait", float("nan"))):
            with pytest.raises(BadRequest):
                await m.call(target, timeout=timeout)  # type: ignore[arg-type]


async def test_cancelling_a_call_stops_its_interceptors_and_its_handler():
    async with Mesh(Held, interceptors=[Noting("node")]) as m:
        call = m.call("held.wait")
        held = m.instances(Held)[0]
        await until(lambda: m.workers(Held)[0].node.server.in_hand == 1)  # type: ignore[union-attr]
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: held.ended == 1)
        assert LOG[-1] == "node.outgoing done"


async def test_a_call_that_is_cancelled_before_its_interceptors_have_begun_ends():
    async with Mesh(Held, interceptors=[Noting("node")]) as m:
        for turns in range(4):
            call = m.call("held.wait")
            for _ in range(turns):
                await asyncio.sleep(0)
            assert call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(call, 10)


async def test_leaving_a_stream_stops_its_handler():
    async with Mesh(Held, interceptors=[Noting("node")]) as m:
        async with m.stream("held.feed") as items:
            assert await anext(items) == 1
        await until(lambda: m.instances(Held)[0].ended == 1)


async def test_an_exception_of_an_outgoing_interceptor_reaches_the_caller():
    class Refuses(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            raise mesh.Forbidden("not from here")

    async with Mesh(Stock, interceptors=[Refuses()]) as m:
        with pytest.raises(Forbidden):
            await m.call("stock.take", "x")
        with pytest.raises(Forbidden):
            await anext(m.stream("stock.take", "x"))


async def test_something_else_than_an_iterator_for_a_stream_is_named():
    class Loses(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            return None

    async with Mesh(Held, interceptors=[Loses()]) as m:
        with pytest.raises(SetupError):
            await anext(m.stream("held.feed"))


# --- declarations -----------------------------------------------------------------------------------------


class NotAsync(mesh.Interceptor):
    def incoming(self, call: Any, proceed: Any) -> Any:  # type: ignore[override]
        return None


class TooFew(mesh.Interceptor):
    async def incoming(self, call: Any) -> Any:  # type: ignore[override]
        return None


@pytest.mark.parametrize("wrong", [Noting, "text", 7, [Noting], [object()], [NotAsync()], [TooFew()], None])
def test_a_class_with_wrong_interceptors_is_refused(wrong: Any):
    with pytest.raises(BadDeclaration):
        type("Wrong", (mesh.Service,), {"interceptors": wrong, "__module__": __name__})


def test_a_method_with_interceptors_needs_another_mark():
    with pytest.raises(BadDeclaration):

        class Alone(mesh.Service):
            @mesh.intercept(Noting("x"))
            async def one(self) -> None: ...

    with pytest.raises(BadDeclaration):
        mesh.intercept()
    with pytest.raises(BadDeclaration):
        mesh.intercept(Noting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "word",
    [
        "no_colon",
        "no.such.module:Thing",
        "tests.service.interceptor_services:Missing",
        "tests.service.interceptor_services:Shop",
        "tests.service.interceptor_services:Noting",  # needs an argument
        "tests.service.interceptor_services:Doubling",  # has no method `outgoing`
        "a b:c",
    ],
)
async def test_an_entry_of_mesh_toml_that_cannot_be_used_is_named(word: str):
    with pytest.raises(MeshError) as caught:
        async with Mesh(Stock, settings={"interceptors": {"outgoing": [word]}}):
            pass
    assert caught.value.code in ("setup_error", "bad_declaration")
    assert word in str(caught.value)


async def test_an_interceptor_that_does_not_start_stops_the_worker_and_those_before_it_are_stopped():
    class Broken(mesh.Interceptor):
        async def started(self, node: Any) -> None:
            raise RuntimeError("no database")

    class Needs(mesh.Service):
        interceptors = [Noting("first"), Broken()]

    with pytest.raises(RuntimeError):
        async with Mesh(Needs):
            pass
    assert [line for line in LOG if line.startswith("first")] == ["first.started", "first.stopped"]


# --- the awaitable ----------------------------------------------------------------------------------------


async def test_an_intercepted_call_begins_without_being_awaited():
    async with Mesh(Held, Stock, interceptors=[Noting("node")]) as m:
        call = m.call("held.wait")
        await until(lambda: m.workers(Held)[0].node.server.in_hand == 1)  # type: ignore[union-attr]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize("how", ["gather", "wait", "wait_for", "shield", "timeout", "twice", "task"])
async def test_an_intercepted_call_is_a_future(how: str):
    async with Mesh(Stock, interceptors=[Noting("node")]) as m:
        with mesh.scope(tenant="acme"):
            call = m.call("stock.take", "x")
        if how == "gather":
            answers = await asyncio.gather(call, m.call("stock.take", "x"))
        elif how == "wait":
            done, _ = await asyncio.wait([call, m.call("stock.take", "x")])
            answers = [each.result() for each in done]
        elif how == "wait_for":
            answers = [await asyncio.wait_for(call, 10)]
        elif how == "shield":
            answers = [await asyncio.shield(call)]
        elif how == "timeout":
            async with asyncio.timeout(10):
                answers = [await call]
        elif how == "twice":
            answers = [await call, await call]
        else:
            answers = [await asyncio.ensure_future(call)]
        assert set(answers) == {"took x"}


async def test_a_timeout_around_an_intercepted_call_stops_the_handler_and_only_the_call():
    async with Mesh(Held, Stock, interceptors=[Noting("node")]) as m:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await m.call("held.wait")
        await until(lambda: m.instances(Held)[0].ended == 1)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await m.call("stock.take", "x") == "took x"


async def test_an_expired_chain_leaves_its_task_uncancelled():
    class Hangs(mesh.Interceptor):
        async def outgoing(self, call: mesh.OutgoingCall, proceed: Any) -> Any:
            if call.service == "held":
                await asyncio.Event().wait()
            return await proceed(call)

    async with Mesh(Held, Stock, interceptors=[Hangs()]) as m:
        with pytest.raises(DeadlineExceeded):
            await m.call("held.wait", timeout=0.02)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await m.call("stock.take", "x") == "took x"


async def test_each_call_has_its_own_context_when_it_is_not_awaited():
    class Tenant(mesh.Service):
        @mesh.rpc
        async def current(self) -> str:
            return mesh.current().tenant  # type: ignore[union-attr]

    async with Mesh(Tenant, interceptors=[Noting("node")]) as m:
        calls = []
        for name in ("a", "b", "c"):
            with mesh.scope(tenant=name):
                calls.append(m.call("tenant.current"))
        assert await asyncio.gather(*calls) == ["a", "b", "c"]
