"""What a caller learns of a handler that failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from calls_services import Echo, Faulty

import mesh
from mesh.testing import ManualClock, Mesh, no_leaks

#: A call that is never answered fails its test soon, not after the run's own patience.
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with no_leaks():
        yield


@pytest.fixture
async def m() -> AsyncIterator[Mesh]:
    async with Mesh(Faulty, Echo, clock=ManualClock()) as m:
        yield m


async def test_an_exception_arrives_by_type_name_message_and_code(m: Mesh):
    """Never as the object, and without its traceback."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("faulty.plain")
    error = caught.value
    assert (error.type_name, error.message, error.code, error.status) == (
        "ValueError",
        "three is not four",
        "handler_error",
        500,
    )
    assert error.details == {}


async def test_a_traceback_is_sent_only_when_configured():
    """calls.traceback_on_wire."""
    async with Mesh(Faulty, settings={"calls.traceback_on_wire": True}) as m:
        with pytest.raises(mesh.RemoteError) as caught:
            await m.call("faulty.plain")
        assert "raise ValueError" in caught.value.details["traceback"]


async def test_a_service_gives_its_errors_code_status_and_details(m: Mesh):
    """A ServiceError of the service's own."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("faulty.own")
    error = caught.value
    assert (error.type_name, error.code, error.status, error.details) == (
        "OutOfStock",
        "out_of_stock",
        409,
        {"left": 0},
    )
    assert str(error) == "OutOfStock: no more shoes"


async def test_lone_surrogates_never_break_a_link(m: Mesh):
    """File names have them: in a message they are replaced, in an answer or a target they are an error."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("faulty.surrogates")
    assert caught.value.type_name == "LookupError"
    with pytest.raises(mesh.MeshError) as refused:
        await m.call("faulty.surrogate_answer")
    assert refused.value.code == "bad_result"
    with pytest.raises(mesh.BadArguments):
        m.call("echo.one", "\udcff")
    assert await m.call("echo.one", "still there") == "still there"


async def test_a_target_with_a_lone_surrogate_is_refused_alone(m: Mesh):
    """And takes nothing else of the same moment with it."""
    before = m.call("echo.one", 1)
    with pytest.raises(mesh.BadRequest):
        await m.call("echo.\udcff", timeout=1.0)
    after = m.call("echo.one", 2)
    await m.advance(2.0)
    assert [await before, await after] == [1, 2]


async def test_an_exception_that_cannot_be_shown_is_still_an_answer(m: Mesh):
    """Its type name is all there is to tell; the caller does not wait for its deadline, and the place is given back."""
    call = m.call("faulty.unprintable")
    await m.settle()
    assert call.done()
    with pytest.raises(mesh.RemoteError) as caught:
        await call
    assert caught.value.type_name == "Unprintable"
    assert (await m.call("$worker.info", instance=m.workers(Faulty)[0].instance_ids[0]))["in_hand"] == 1


async def test_an_answer_that_cannot_travel_names_its_type(m: Mesh):
    """Told to the caller, as the method's own fault."""
    with pytest.raises(mesh.MeshError) as caught:
        await m.call("faulty.unsendable")
    assert (caught.value.code, caught.value.details["got"]) == ("bad_result", "object")


async def test_a_framework_error_of_a_handler_comes_back_as_what_it_is(m: Mesh):
    """And is not taken for a refusal: the handler ran."""
    with pytest.raises(mesh.Overloaded):
        await m.call("faulty.framework")


async def test_a_handler_that_cancels_itself_has_failed(m: Mesh):
    """Nobody cancelled the call; and its caller is not cancelled itself."""
    with pytest.raises(mesh.RemoteError) as caught:
        await m.call("faulty.cancels_itself")
    assert (caught.value.code, caught.value.status, caught.value.type_name) == ("handler_error", 500, "CancelledError")


async def test_an_unknown_method_is_refused_with_the_nearest(m: Mesh):
    """At once, by name."""
    with pytest.raises(mesh.UnknownMethod, match=r"faulty .*'plian'.*\"plain\"\?"):
        await m.call("faulty.plian")


async def test_a_stream_is_no_call_and_a_call_no_stream(m: Mesh):
    """Each error says how it is done."""
    with pytest.raises(mesh.BadRequest, match=r"echo\.count is a stream"):
        await m.call("echo.count", 3)
    with pytest.raises(mesh.BadRequest, match=r"echo\.one is a call"):
        async for _ in m.stream("echo.one", 3):
            pass


class Strict(msgspec.Struct):
    """A type whose own check raises what msgspec does not expect."""

    x: int

    def __post_init__(self) -> None:
        raise LookupError("checked")


class Loose(mesh.Service):
    """Answers something that the caller's class does not allow."""

    name = "echo"

    @mesh.rpc
    async def one(self, value: int) -> Strict:
        raise NotImplementedError


async def test_an_answer_of_the_wrong_type_is_a_bad_reply(m: Mesh):
    """Whatever the type's own check raises, the link and the calls beside it go on."""
    beside = m.call("echo.one", 2)
    call = m.rpc[Loose].one({"x": 1})
    behind = m.call("echo.one", 3)
    await m.settle()
    assert beside.done()
    assert behind.done(), "the call behind it has lost its answer"
    assert [await beside, await behind] == [2, 3]
    assert call.done()
    with pytest.raises(mesh.MeshError) as caught:
        await call
    assert caught.value.code == "bad_reply"


async def test_a_failed_call_that_nobody_awaits_harms_nobody(m: Mesh):
    """It is forgotten like any future."""
    call = m.call("faulty.plain")
    await m.settle()
    assert isinstance(call.exception(), mesh.RemoteError)
    await asyncio.wait([m.call("echo.one", 1)])
