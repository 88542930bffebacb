"""Rate limits over all gateways of a mesh: each caller is counted by one of them, its owner.

Owns: when owners are asked, the shares that apply while one cannot be reached, and when counts are handed over.
Leaves to others: who owns a caller (policy.ownership), the calls between gateways (rate_peers), counting
(policy.rate_table), refusing (rates).

A gateway that does not own a caller asks the owner: one call at a time, for all requests that have come while the
previous one was under way. Each request is counted when the owner decides, so the limit holds exactly. A refusal is
remembered until it ends: a caller that goes on sending costs the owner nothing.

While an owner does not answer, each gateway admits its share: the limit divided by the number of gateways, where the
remainder goes to some of them; together never more than the limit. A limit below the number of gateways has no share in
some of them.

When the registry lists other gateways than before, counts of callers with another owner are sent there; a gateway that
stops sends all of its counts first, and then refers those that ask to the next owner. What gateways have admitted as
their shares is sent to the next owner as well, or to the same one when it answers again. The counts of a gateway that
died are lost: up to twice the limit may be admitted in that window.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from mesh.errors import Draining, MeshError
from mesh.gateway.edge.rate_peers import SERVICE, ask, hand_over, methods
from mesh.gateway.ports import Change, Node
from mesh.policy.ownership import Owners
from mesh.policy.rate_table import Decision, Quota, RateTable, Standing
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: How long an owner that did not answer is not asked.
AVOID_S: Final = 1.0
#: How long a gateway that stops may take to hand its counts over.
HAND_OVER_S: Final = 2.0

#: Requests in one call.
MOST_ASKED: Final = 1000

#: Remembered refusals.
MOST_REFUSALS: Final = 8192

#: Calls of other gateways that one gateway answers at the same time, and that may wait.
CONCURRENCY: Final = 1024

#: One request: the caller, its limits, and where its decision goes.
Pending = tuple[str, tuple[Quota, ...], "asyncio.Future[Decision]"]


class MeshCounter:
    """Counts requests together with the other gateways.

    Args:
        table: the counts of the callers that this gateway owns.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, node: Node, table: RateTable, now: Callable[[], float]) -> None:
        self._node = node
        self._me = node.identity
        self._table = table
        self._now = now
        self._owners = Owners(self._me)
        #: What this gateway has admitted while owners could not be reached.
        self._shares = RateTable(table.most_keys)
        #: Owners that did not answer, and until when they are not asked.
        self._avoided: dict[str, float] = {}
        #: Gateways that have referred to the next owner, and are still in the registry.
        self._left: set[str] = set()
        #: When the refusal of (limit, caller) ends.
        self._refusals: dict[tuple[str, str], float] = {}
        #: Requests for the next call to each owner that has a call under way.
        self._batches: dict[str, list[Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Calls to owners have neither the deadline nor the trace of the request that happens to be first.
        self._context = contextvars.Context()
        self._leaving = False
        self._handed_over = asyncio.Event()

    # --- deciding -----------------------------------------------------------------------------------------

    def decide(self, caller: str, quotas: tuple[Quota, ...]) -> Decision | Awaitable[Decision]:
        """Admit or refuse a request; see rate_counters.Counter."""
        owner = self._owners.of(caller)
        if owner == self._me:
            return self._table.decide(caller, quotas, self._now())
        decision = self._decide_for(owner, caller, quotas)
        if decision is not None:
            return decision
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._enqueue(owner, (caller, quotas, future))
        return future

    def admit(self, caller: str, limit: str) -> tuple[int, float] | None:
        """Admit a request with one limit, when this gateway counts its caller; see rate_counters.Counter."""
        return self._table.admit(caller, limit, self._now()) if self._owners.of(caller) == self._me else None

    def _decide_for(self, owner: str, caller: str, quotas: tuple[Quota, ...]) -> Decision | None:
        """The decision for another owner that needs no call; None when it needs one."""
        now = self._now()
        if self._refusals:
            for index, quota in enumerate(quotas):
                until = self._refusals.get((quota.name, caller), 0.0)
                if until > now:
                    standings: list[Standing | None] = [None] * len(quotas)
                    standings[index] = Standing(0, until - now)
                    return Decision(index, standings)
        if self._avoided and self._avoided.get(owner, 0.0) > now:
            return self._decide_share(caller, quotas, now)
        return None

    def _decide_share(self, caller: str, quotas: tuple[Quota, ...], now: float) -> Decision:
        shares = [Quota(name, self._owners.share(caller, most), window_s) for name, most, window_s in quotas]
        for index, share in enumerate(shares):
            if not share.most:
                # The owner will be back, or replaced, within the lease of the registry.
                return Decision(index, [Standing(0, AVOID_S) if each is share else None for each in shares])
        return self._shares.decide(caller, shares, now)

    # --- asking owners ------------------------------------------------------------------------------------

    def _enqueue(self, owner: str, pending: Pending) -> None:
        batch = self._batches.get(owner)
        if batch is not None:
            batch.append(pending)
        else:
            self._batches[owner] = [pending]
            self._start(self._ask(owner))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, owner: str) -> None:
        """Ask an owner, one call after the other, as long as requests wait for it. The first call has the requests of
        one turn of the event loop, each later one what came while its predecessor was under way."""
        batch: list[Pending] = []
        try:
            while batch := self._batches[owner][:MOST_ASKED]:
                del self._batches[owner][:MOST_ASKED]
                await self._ask_once(owner, batch)
                if owner in self._avoided:
                    # What has come in the meantime does not wait for another call.
                    rest, self._batches[owner] = self._batches[owner], []
                    for pending in rest:
                        self._decide_again(pending)
        finally:
            for *_, future in (*batch, *self._batches.pop(owner)):
                # Only when this task was cancelled: the gateway stops.
                future.cancel()

    async def _ask_once(self, owner: str, batch: list[Pending]) -> None:
        """Get the decisions on a batch from the owner; where it does not answer, apply the shares."""
        asked = [(caller, quotas) for caller, quotas, _ in batch]
        if owner in self._avoided:
            # Another attempt: until it succeeds, no other request waits for it.
            self._avoided[owner] = self._now() + AVOID_S
        try:
            decisions = await ask(self._node, owner, asked)
        except Draining:
            # It has handed its counts over; nothing was counted there.
            self._left.add(owner)
            self._relist()
            for pending in batch:
                self._decide_again(pending)
        except MeshError as exc:
            self._unanswered(owner, exc)
            now = self._now()
            for caller, quotas, future in batch:
                _resolve(future, self._decide_share(caller, quotas, now))
        else:
            if self._avoided.pop(owner, None) is not None:
                _log.info("rates.owner_answers", owner=owner)
                self._start(self._hand_over(self._shares))
            now = self._now()
            for (caller, quotas, future), decision in zip(batch, decisions, strict=True):
                if decision.refused >= 0 and (standing := decision.standings[decision.refused]) is not None:
                    self._remember((quotas[decision.refused].name, caller), now + standing.reset_s, now)
                _resolve(future, decision)

    def _decide_again(self, pending: Pending) -> None:
        caller, quotas, future = pending
        owner = self._owners.of(caller)
        if owner == self._me:
            _resolve(future, self._table.decide(caller, quotas, self._now()))
            return
        decision = self._decide_for(owner, caller, quotas)
        if decision is not None:
            _resolve(future, decision)
        else:
            self._enqueue(owner, pending)

    def _unanswered(self, owner: str, error: MeshError) -> None:
        if owner not in self._avoided:
            _log.warning(
                "rates.owner_unreachable",
                owner=owner,
                code=error.code,
                error=error.message[:300],
                effect="this gateway admits its share of each limit",
            )
        self._avoided[owner] = self._now() + AVOID_S
        self._node.recorder.counter(
            "http_rate_owner_unanswered", "Calls to owners of callers that were not answered.", code=error.code
        ).add()

    def _remember(self, key: tuple[str, str], until: float, now: float) -> None:
        if len(self._refusals) >= MOST_REFUSALS:
            self._refusals = {each: end for each, end in self._refusals.items() if end > now}
            if len(self._refusals) >= MOST_REFUSALS:
                self._refusals.clear()
        self._refusals[key] = until

    # --- owners come and go -------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, node: Node) -> AsyncIterator[None]:
        """Answer other gateways, and follow the registry; at the end, hand all counts over."""
        server = getattr(node, "server", None)
        if server is None:
            # A node that answers no calls: it counts alone.
            yield
            return
        server.host(methods(self._table, self._now, self._refer), CONCURRENCY, CONCURRENCY)
        stop: Any = node.agent.on_change(self._on_change)
        self._relist()
        try:
            yield
        finally:
            stop()
            await self._leave()

    def _on_change(self, change: Change) -> None:
        if any(each.service == SERVICE for each in (*change.joined, *(each for each, _ in change.left))):
            self._relist()

    def _relist(self) -> None:
        """Compute the owners anew from the registry."""
        listed = {each.id for each in self._node.table.instances(SERVICE) if each.endpoint}
        self._left &= listed
        members = sorted(listed - self._left - ({self._me} if self._leaving else set()))
        if tuple(members) == self._owners.members:
            return
        self._owners.change(members)
        self._avoided = {owner: until for owner, until in self._avoided.items() if owner in listed}
        if not self._leaving:
            for table in (self._table, self._shares):
                if len(table):
                    self._start(self._hand_over(table))

    async def _hand_over(self, table: RateTable) -> None:
        """Move counts to the owners of their callers, except to those that do not answer."""
        if table is self._shares:
            mine = [key for key in table.held() if self._owners.of(key[1]) == self._me]
            self._table.join(table.part(mine, self._now()), self._now())
        await hand_over(self._node, table, self._recipient, self._now)

    def _recipient(self, caller: str) -> str:
        """Where the counts of a caller belong; "" to keep them."""
        owner = self._owners.of(caller)
        return "" if owner == self._me or owner in self._avoided else owner

    async def _refer(self) -> None:
        if self._leaving:
            # Refer to the next owner only when it has the counts.
            await self._handed_over.wait()
            raise Draining(f"{self._me} is leaving, and has handed its counts over")

    async def _leave(self) -> None:
        self._leaving = True
        self._relist()
        try:
            if self._owners.members:
                async with asyncio.timeout(HAND_OVER_S):
                    await self._hand_over(self._table)
                    await self._hand_over(self._shares)
        except TimeoutError:
            _log.warning("rates.hand_over_failed", code="timeout", counts=len(self._table))
        finally:
            self._handed_over.set()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _resolve(future: asyncio.Future[Decision], decision: Decision) -> None:
    if not future.done():
        future.set_result(decision)
