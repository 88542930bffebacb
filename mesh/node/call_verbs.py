"""The call verbs of a node, and its view of the registry.

Owns: their signatures and documentation; calling every instance, and one call for each of many items.
Leaves to others: making a call (calls.client), the proxies (rpc), the registry (discovery).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

from mesh.calls.answers import Outcome, as_answer, decode_any
from mesh.calls.checks import Duration, seconds
from mesh.calls.client import Client
from mesh.calls.intercepting import Calls
from mesh.calls.options import CallKeywords, CallOptions, RawKeywords
from mesh.calls.request import Call, Decode, Stream
from mesh.calls.signature import encode_arguments
from mesh.calls.sources import encode_with_source
from mesh.clock import Clock
from mesh.config import Settings
from mesh.discovery.record import Instance, MethodRecord
from mesh.discovery.share import declaring
from mesh.discovery.table import Table
from mesh.errors import BadArguments, MeshError, Unavailable
from mesh.node.rpc import Rpc


class CallVerbs:
    """Calls and streams, and the registry as callers see it; see Node.

    Attributes:
        client: the client half of the process.
        _calls: the client, or the interceptors in front of it.
        table: the registered instances that this process knows.
        settings, clock: of the node.
    """

    client: Client
    _calls: Calls
    table: Table
    settings: Settings
    clock: Clock

    def call(
        self,
        target: str,
        /,
        *args: Any,
        timeout: Duration | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Call:
        """Call a method; await the returned object for the answer.

        A parameter of the method with the name of an option is passed by position, or through `n.rpc`.

        Args:
            target: "service.method".
            args, kwargs: the arguments of the method. For its parameter `AsyncIterator[T]` an asynchronous iterator,
                which is read while the handler reads; the call then has the default timeout of streams.
            timeout: seconds, or text like "2s"; None uses the method's own, then the configured one. Never longer than
                the rest of the deadline of the call that this process is answering.
            key: calls with the same key go to the same instance, as long as it lives.
            instance: call only this instance.
            meta: strings that travel with the call.

        Raises:
            MeshError: when awaited; mesh.errors groups the errors by what a caller can do about them.
        """
        try:
            body = encode_arguments(args, kwargs, target)
        except BadArguments:
            # Looked for only here, so that other calls do not pay for it.
            body, options = encode_with_source(args, kwargs, target, CallOptions(timeout, key, instance, meta))
            return self._calls.call(target, body, 0, options)
        if timeout is None and key is None and instance is None and meta is None:
            return self._calls.call(target, body)
        return self._calls.call(target, body, 0, CallOptions(timeout, key, instance, meta))

    def stream(
        self,
        target: str,
        /,
        *args: Any,
        timeout: Duration | None = None,
        key: str | None = None,
        instance: str | None = None,
        meta: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Stream:
        """Call a method that answers with many items; iterate over the result. Arguments as for `call`."""
        options = CallOptions(timeout, key, instance, meta)
        try:
            body = encode_arguments(args, kwargs, target)
        except BadArguments:
            body, options = encode_with_source(args, kwargs, target, options)
        return self._calls.stream(target, body, 0, options)

    def call_raw(self, target: str, body: bytes, encoding: int, **options: Unpack[RawKeywords]) -> Call:
        """Make a call with encoded arguments; the answer is an `Answer` in the same encoding (RAW for bytes).

        Args:
            options: see mesh.calls.options.CallOptions.
        """
        return self._calls.call(target, body, encoding, CallOptions(**options), decode=as_answer)

    def stream_raw(self, target: str, body: bytes, encoding: int, **options: Unpack[RawKeywords]) -> Stream:
        """Open a stream of `Answer`s; see `call_raw`."""
        return self._calls.stream(target, body, encoding, CallOptions(**options), decode=as_answer)

    async def scatter(
        self, target: str, /, *args: Any, timeout: Duration | None = None, **kwargs: Any
    ) -> list[Outcome]:
        """Call every instance of a service at once: the value or the error of each, in the order of the registry.

        Waits for a first instance as a call does.

        Raises:
            Unavailable, UnknownService: there is no instance to call.
        """
        body = encode_arguments(args, kwargs, target)
        service = target.rpartition(".")[0]
        if not self.client.instances(service):
            await self.wait_for(service, self.settings.calls.timeout_s if timeout is None else timeout)
        instances = self.client.instances(service)
        calls = [
            self._calls.call(target, body, 0, CallOptions(timeout, instance=instance.id)) for instance in instances
        ]
        try:
            values = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            for call in calls:
                call.cancel()
        outcomes = []
        for instance, value in zip(instances, values, strict=True):
            if isinstance(value, MeshError):
                outcomes.append(Outcome(instance, error=value))
            elif isinstance(value, BaseException):
                raise value
            else:
                outcomes.append(Outcome(instance, value))
        return outcomes

    async def map(
        self,
        target: str,
        items: Iterable[Any],
        *,
        timeout: Duration | None = None,
        at_once: int = 256,
    ) -> list[Any]:
        """Make one call for each item, spread over the instances; the answers in the order of the items.

        Args:
            target: a method that takes an item as its one positional argument.
            items: consumed as calls end, so it may be long.
            timeout: of each call; seconds, or text like "2s".
            at_once: the maximum number of concurrent calls.

        Raises:
            MeshError: of the first call that fails; the others are cancelled.
        """
        answers: list[Any] = []
        under_way: deque[Call] = deque()
        try:
            for item in items:
                if len(under_way) >= at_once:
                    answers.append(await under_way[0])
                    under_way.popleft()
                under_way.append(self.call(target, item, timeout=timeout))
            while under_way:
                answers.append(await under_way[0])
                under_way.popleft()
        finally:
            for call in under_way:
                if not call.cancel() and not call.cancelled():
                    call.exception()  # retrieve it, so that asyncio does not report it as never retrieved
        return answers

    def using(self, **options: Unpack[CallKeywords]) -> Rpc:
        """`n.rpc` with these options for each call: `await n.using(timeout=0.5).greeting.hello("x")`.

        Args:
            options: `timeout`, `key`, `instance` and `meta`, as for `call`.
        """
        return Rpc(self, CallOptions(**options))

    def begin_call(self, target: str, body: bytes, options: CallOptions, decode: Decode = decode_any) -> Call:
        """For the proxies of `rpc`."""
        return self._calls.call(target, body, 0, options, decode=decode)

    def begin_stream(self, target: str, body: bytes, options: CallOptions, decode: Decode = decode_any) -> Stream:
        """For the proxies of `rpc`."""
        return self._calls.stream(target, body, 0, options, decode=decode)

    # --- who is there -------------------------------------------------------------------------------------

    async def wait_for(self, service: str, timeout: Duration) -> None:
        """Return when an instance of the service can be called.

        Raises:
            Unavailable: there was none within `timeout` (seconds, or text like "2s").
        """
        timeout = seconds(f"wait_for({service!r})", "timeout", timeout)
        self.client.use(service)
        deadline_at = self.clock.now() + timeout
        while not self.client.links(service):
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            forget = self.client.on_ready(service, woken)
            timer = self.clock.call_at(deadline_at, _wake, woken)
            try:
                await woken
            finally:
                timer.cancel()
                forget()
            if self.clock.now() >= deadline_at and not self.client.links(service):
                raise Unavailable(f"no instance of {service} within {timeout:g} s")

    def instances(self, service: str) -> Sequence[Instance]:
        """The instances of a service, in the order in which they became known."""
        return self.table.instances(service)

    def method(self, target: str) -> MethodRecord | None:
        """The record of "service.method" in the registry; None when it has none."""
        service, _, name = target.rpartition(".")
        for instance in reversed(declaring(self.table.instances(service))):
            record = instance.methods.get(name)
            if record is not None:
                return record
        return None

    def is_stream(self, target: str) -> bool:
        """Whether the registry knows the method as a stream."""
        record = self.method(target)
        return record is not None and record.stream

    def service_names(self) -> list[str]:
        """The names of all services that have an instance."""
        return self.table.services()

    def method_names(self, service: str) -> list[str]:
        """The names of all methods of a service."""
        return sorted({name for instance in self.table.instances(service) for name in instance.methods})


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
