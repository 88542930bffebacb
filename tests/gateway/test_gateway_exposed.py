"""What /rpc and /tasks reach: what is exposed, and nothing else that exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest

import mesh
from mesh import http, rpc, task
from mesh.calls.declared import BadDeclaration
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

Client = aiohttp.ClientSession
Start = Callable[[str], Awaitable[Client]]


class Bank(mesh.Service):
    """Some of it is public."""

    name = "bank"

    @rpc(expose=True)
    async def rate(self) -> float:
        return 1.5

    @http.get("/balance/{account}")
    async def balance(self, account: str) -> int:
        return 7

    @rpc
    async def wipe(self) -> str:
        return "wiped"

    @task(expose=True)
    async def order(self, cents: int) -> int:
        return cents

    @task
    async def audit(self) -> None: ...


class Vault(mesh.Service):
    """None of it is."""

    name = "vault"

    @rpc
    async def open(self) -> str:
        return "open"

    @task
    async def close(self) -> None: ...


class Shown(mesh.Service):
    """All of it is, but one."""

    name = "shown"
    expose = True

    @rpc
    async def one(self) -> int:
        return 1

    @rpc(expose=False)
    async def two(self) -> int:
        return 2

    @task(expose=False)
    async def three(self) -> None: ...

    @task
    async def four(self) -> None: ...


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def begin(mode: str) -> Client:
            m = await stack.enter_async_context(Mesh(Bank, Vault, Shown))
            limits = msgspec.structs.replace(m.settings.gateway, rpc=mode)
            gateway = Gateway(m.node, msgspec.structs.replace(m.settings, gateway=limits))
            server = gateway.make_server()
            listener = app.bind("127.0.0.1", 0)
            accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
            session = await stack.enter_async_context(Client(app.shown(listener)))
            stack.push_async_callback(server.shutdown, 0.2)
            stack.callback(accepting.close)
            return session

        yield begin


async def ask(client: Client, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    async with client.post(path, json={} if body is None else body) as answer:
        told = await answer.json(content_type=None)
        if isinstance(told, dict):
            told.pop("trace_id", None)
        return answer.status, told


async def statuses(client: Client) -> list[int]:
    paths = {
        "/rpc/bank/rate": {},
        "/rpc/bank/balance": {"account": "a"},
        "/rpc/bank/wipe": {},
        "/rpc/vault/open": {},
        "/rpc/shown/one": {},
        "/rpc/shown/two": {},
        "/tasks/bank/order": {"cents": 1},
        "/tasks/bank/audit": {},
        "/tasks/vault/close": {},
        "/tasks/shown/three": {},
        "/tasks/shown/four": {},
        "/rpc/mesh-store/apply": {},
        "/tasks/mesh-store/apply": {},
        "/rpc/$worker/metrics": {},
    }
    return [(await ask(client, path, body))[0] for path, body in paths.items()]


async def test_only_what_is_exposed_is_reached(start: Start) -> None:
    """By its decorator or by its class, a method or a task; a route stays reachable."""
    client = await start("exposed")
    assert await statuses(client) == [200, 404, 404, 404, 200, 404, 202, 404, 404, 404, 202, 404, 404, 404]
    async with client.get("/balance/a") as answer:
        assert await answer.json() == 7


async def test_all_and_off(start: Start) -> None:
    """ "all" leaves out only the framework's own services; "off" leaves only routes."""
    assert await statuses(await start("all")) == [200] * 6 + [202] * 5 + [404] * 3
    client = await start("off")
    assert await statuses(client) == [404] * 14
    async with client.get("/balance/a") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("mount", ["rpc", "tasks"])
async def test_what_is_not_exposed_looks_as_if_it_did_not_exist(start: Start, mount: str) -> None:
    """The same body but for the name that was asked for, in a service that is partly public and in one that is not."""
    client = await start("exposed")
    hidden, missing = ("wipe", "wixx") if mount == "rpc" else ("audit", "auxxx")
    found = await ask(client, f"/{mount}/bank/{hidden}"), await ask(client, f"/{mount}/bank/{missing}")
    assert msgspec.json.encode(found[0]).replace(hidden.encode(), missing.encode()) == msgspec.json.encode(found[1])
    found = await ask(client, f"/{mount}/vault/open"), await ask(client, f"/{mount}/vaulx/open")
    assert msgspec.json.encode(found[0]).replace(b"vault", b"vaulx") == msgspec.json.encode(found[1])
    async with client.get("/openapi.json") as answer:
        text = await answer.text()
    async with client.get("/mesh") as answer:
        listed = {each["name"]: each["methods"] for each in (await answer.json())["services"]}
    assert "wipe" not in text
    assert "vault" not in text
    assert (listed["bank"], listed["vault"]) == (["rate"], [])


async def test_exposed_tasks_are_documented(start: Start) -> None:
    """202, Idempotency-Key, the arguments, and the job at its address."""
    client = await start("exposed")
    async with client.get("/openapi.json") as answer:
        spec = await answer.json()
    operation = spec["paths"]["/tasks/bank/order"]["post"]
    assert {each["name"] for each in operation["parameters"]} >= {"Idempotency-Key", "delay", "order"}
    accepted = operation["responses"]["202"]["content"]["application/json"]["schema"]
    assert accepted == {"$ref": "#/components/schemas/Deferred"}
    taken = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"][0]
    assert taken["properties"] == {"cents": {"type": "integer"}}
    shown = spec["paths"]["/jobs/{id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    job = spec["components"]["schemas"][shown["$ref"].rpartition("/")[2]]
    _, told = await ask(client, "/tasks/bank/order", {"cents": 3})
    async with client.get(f"{told['job']}?wait=10s") as answer:
        found = await answer.json()
    assert found["result"] == 3
    assert set(found) <= set(job["properties"])
    assert set(job["required"]) <= set(found)


def test_expose_is_a_truth_value() -> None:
    """Anything else is refused where it is written."""
    for decorator in (rpc, task):
        with pytest.raises(BadDeclaration):
            decorator(expose="yes")  # type: ignore[call-overload]
    with pytest.raises(BadDeclaration):
        type("Wrong", (mesh.Service,), {"expose": 1})
