"""Rules for principals over tcp with keys: the key of a link alone decides who may assert a principal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.calls.propagation import PRINCIPAL, ROLES
from mesh.config import AccessRule, AccessSettings
from mesh.errors import Forbidden
from mesh.node.node import Node
from mesh.transport.curve import key_store
from mesh.worker.worker import Worker
from tests.integration.test_secure_mesh import Secure
from tests.patience import until

RULES = AccessSettings(
    allow=(
        AccessRule(callers=("*",), services=("ledger",), methods=("read",), principals=("alice", "svc-*")),
        AccessRule(callers=("*",), services=("ledger",), methods=("write",), roles=("clerk",)),
        AccessRule(callers=("gateway",), services=("ledger",), methods=("audit",), principals=("alice",)),
        AccessRule(callers=("*",), services=("ledger",), methods=("open",)),
    )
)


class Ledger(mesh.Service):
    name = "ledger"

    def __init__(self) -> None:
        self.written = 0

    @mesh.rpc
    async def read(self) -> list[Any]:
        return _seen()

    @mesh.rpc
    async def write(self) -> list[Any]:
        self.written += 1
        return _seen()

    @mesh.rpc
    async def audit(self) -> list[Any]:
        return _seen()

    @mesh.rpc
    async def open(self) -> list[Any]:
        return _seen()


def _seen() -> list[Any]:
    context = mesh.current()
    assert context is not None
    return [context.user, context.principal, sorted(context.roles), context.verified]


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    made = Secure(tmp_path)
    for name in ("ledger", "evil", "gateway@host-2"):
        key_store.make(made.keys, name)
    try:
        await made.start_hub()
        yield made
    finally:
        await made.close()


async def ledger(secure: Secure, access: AccessSettings = RULES) -> Ledger:
    worker = Worker([Ledger], secure.settings(access))
    secure._ends.append(worker.stop)
    listed = len(secure.hub.registry)
    await worker.start()
    await until(lambda: len(secure.hub.registry) > listed, "the hub knows it")
    service = worker.services[0]
    assert isinstance(service, Ledger)
    return service


async def ask(n: Node, method: str, principal: str, *roles: str) -> Any:
    with mesh.scope(principal=principal, roles=roles):
        try:
            return await n.call(f"ledger.{method}", timeout=5.0)
        except Forbidden as error:
            return error.code


async def test_the_gateway_asserts_principals_and_roles(secure: Secure) -> None:
    """Many principals over one link, each call decided by its own."""
    service = await ledger(secure)
    for gateway in (await secure.client("gateway"), await secure.client("gateway", keys__name="gateway@host-2")):
        name = gateway.settings.keys.name or "gateway"
        assert await ask(gateway, "read", "alice") == [name, "alice", [], True]
        assert await ask(gateway, "read", "svc-mail") == [name, "svc-mail", [], True]
        assert await ask(gateway, "read", "bob", "clerk") == "forbidden"
        assert await ask(gateway, "write", "bob", "clerk", "a") == [name, "bob", ["a", "clerk"], True]
        assert await ask(gateway, "write", "alice") == "forbidden"
        assert await ask(gateway, "read", "") == "forbidden"
    assert service.written == 2


@pytest.mark.parametrize(
    "forged",
    [
        {"principal": "alice"},
        {"principal": "svc-mail", "roles": ["clerk"]},
        {"meta": {PRINCIPAL: "alice", ROLES: "clerk"}},
        {"meta": {PRINCIPAL: "alice", ROLES: "clerk", "mesh.user": "gateway", "user": "gateway"}},
        {"principal": "bob", "meta": {PRINCIPAL: "alice", ROLES: "clerk"}},
    ],
)
@pytest.mark.parametrize("role", ["evil", "gateway"])
async def test_a_client_with_its_own_key_cannot_forge_a_principal(
    secure: Secure, forged: dict[str, Any], role: str
) -> None:
    """Whatever it names, in whatever way, also when it calls itself gateway: its key is not the gateway's."""
    service = await ledger(secure)
    evil = await secure.client(role, keys__name="evil")
    meta = forged.get("meta")
    with mesh.scope(principal=forged.get("principal", ""), roles=forged.get("roles", ())):
        for method in ("read", "write", "audit"):
            with pytest.raises(Forbidden) as caught:
                await evil.call(f"ledger.{method}", meta=meta, timeout=5.0)
            assert caught.value.details["caller"] == "evil"
            assert caught.value.details.get("principal", "") == ""
        user, principal, _, verified = await evil.call("ledger.open", meta=meta, timeout=5.0)
    assert (user, verified) == ("evil", False)
    assert principal in ("alice", "svc-mail")
    assert service.written == 0


async def test_a_decision_for_the_gateway_is_none_for_another_key(secure: Secure) -> None:
    """The cache of decisions knows the caller."""
    await ledger(secure)
    gateway, evil = await secure.client("gateway"), await secure.client("evil")
    for _ in range(2):
        assert await ask(gateway, "read", "alice") == ["gateway", "alice", [], True]
        assert await ask(evil, "read", "alice") == "forbidden"
        assert await ask(gateway, "read", "bob") == "forbidden"


async def test_assert_names_other_keys(secure: Secure) -> None:
    """The key in the list alone, and only for rules that name it as a caller."""
    await ledger(secure, AccessSettings(allow=RULES.allow, asserting=("evil",)))
    gateway, evil = await secure.client("gateway"), await secure.client("evil")
    assert await ask(evil, "read", "alice") == ["evil", "alice", [], True]
    assert await ask(evil, "audit", "alice") == "forbidden"
    assert await ask(gateway, "read", "alice") == "forbidden"
    assert await ask(gateway, "open", "alice") == ["gateway", "alice", [], False]


async def test_a_denial_is_logged_once_for_each_principal(secure: Secure, capsys: pytest.CaptureFixture[str]) -> None:
    await ledger(secure)
    gateway = await secure.client("gateway")
    for principal in ("bob", "bob", "mallory"):
        assert await ask(gateway, "read", principal) == "forbidden"
    lines = [line for line in capsys.readouterr().err.splitlines() if "call.forbidden" in line]
    assert [("principal=bob" in line, "principal=mallory" in line) for line in lines] == [(True, False), (False, True)]
