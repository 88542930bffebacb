"""What gateways ask each other to count requests together: to decide on requests, and to take counts over.

Owns: the two methods of every gateway, calling them, and sending counts to their owners.
Leaves to others: when to call them, and what happens without an answer (rate_mesh), counting (policy.rate_table).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from mesh.calls.method import Method
from mesh.calls.signature import Signature
from mesh.errors import BadReply, MeshError
from mesh.gateway.ports import Node
from mesh.policy.rate_table import Decision, Key, Parted, Quota, RateTable
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: The service name of gateways in the registry.
SERVICE: Final = "gateway"
_DECIDE: Final = f"{SERVICE}.$decide_rates"
_JOIN: Final = f"{SERVICE}.$join_rates"

#: How long an owner may take to decide; a request waits for so long at most.
ASK_S: Final = 0.25
#: How long a gateway may take to add counts to its own.
JOIN_S: Final = 2.0

#: Counts in one call.
MOST_PARTED: Final = 1000

#: One request: the caller and its limits.
Asked = tuple[str, Sequence[Quota]]


def methods(table: RateTable, now: Callable[[], float], refer: Callable[[], Awaitable[None]]) -> list[Method]:
    """The methods of a gateway, for its server.

    Args:
        table: the counts of the callers that it owns.
        refer: awaited before each decision; raises Draining when the gateway has left its counts to others.
    """

    async def decide_rates(asked: list[tuple[str, list[Quota]]]) -> list[Decision]:
        """Decide on requests, in order."""
        await refer()
        at = now()
        return [table.decide(caller, quotas, at) for caller, quotas in asked]

    async def join_rates(parted: list[Parted]) -> None:
        """Add counts that their owner has handed over."""
        table.join(parted, now())

    return [_method(_DECIDE, decide_rates), _method(_JOIN, join_rates)]


def _method(target: str, run: Callable[..., Awaitable[Any]]) -> Method:
    signature = Signature(run, target, bound=True)
    return Method(
        target=target,
        service=SERVICE,
        name=target.partition(".")[2],
        run=run,
        decode_args=signature.decode_args,
        encode_result=signature.encode_result,
    )


async def ask(node: Node, owner: str, asked: Sequence[Asked]) -> list[Decision]:
    """The decisions of an owner, in order.

    Raises:
        Draining: it has handed its counts over to others, and has counted nothing.
        MeshError: there is no answer, or not the right one.
    """
    answer = await node.call(_DECIDE, asked, timeout=ASK_S, instance=owner)
    try:
        decisions = msgspec.convert(answer, list[Decision])
    except msgspec.ValidationError as exc:
        raise BadReply(f"{owner} sent decisions that cannot be read: {exc}") from exc
    if len(decisions) != len(asked):
        raise BadReply(f"{owner} sent {len(decisions)} decisions on {len(asked)} requests")
    return decisions


async def hand_over(node: Node, table: RateTable, recipient: Callable[[str], str], now: Callable[[], float]) -> None:
    """Send counts to other gateways. Counts that cannot be sent are lost.

    Args:
        recipient: the gateway that gets the counts of a caller; "" to keep them.
    """
    keys = table.held()
    for at in range(0, len(keys), MOST_PARTED):
        moved: dict[str, list[Key]] = {}
        for key in keys[at : at + MOST_PARTED]:
            owner = recipient(key[1])
            if owner:
                moved.setdefault(owner, []).append(key)
        for owner, theirs in moved.items():
            parted = table.part(theirs, now())
            try:
                if parted:
                    await node.call(_JOIN, parted, timeout=JOIN_S, instance=owner)
            except MeshError as exc:
                _log.warning("rates.hand_over_failed", owner=owner, code=exc.code, counts=len(parted))
        # A table may have many keys: answer requests in between.
        await asyncio.sleep(0)
