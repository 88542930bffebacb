"""Calls in the form of methods: `n.rpc.greeting.hello("x")` and, typed, `n.rpc[Greeting].hello("x")`.

Owns: the proxies. Leaves to others: making the call (node).
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

from mesh.calls.answers import typed_decoder
from mesh.calls.declared import read
from mesh.calls.options import NO_OPTIONS, CallOptions
from mesh.calls.request import Call, Decode, Stream
from mesh.calls.signature import encode_arguments
from mesh.calls.sources import encode_with_source
from mesh.errors import BadArguments, UnknownMethod
from mesh.node.calling import Calling
from mesh.service.members import members
from mesh.service.service import Service

S = TypeVar("S", bound=Service)


class Rpc:
    """`n.rpc`: every service by attribute or by class."""

    __slots__ = ("_node", "_options", "_typed")

    def __init__(self, node: Calling, options: CallOptions = NO_OPTIONS) -> None:
        self._node = node
        self._options = options
        self._typed: dict[type, Any] = {}

    def __getattr__(self, service: str) -> ServiceProxy:
        if service.startswith("_"):
            raise AttributeError(service)
        return ServiceProxy(self._node, service, self._options)

    def __getitem__(self, service: type[S]) -> S:
        """A proxy typed as the class: editors complete its methods, and type checkers check their arguments.

        Answers are decoded into the annotated types; an answer that does not match raises BadReply.
        """
        proxy = self._typed.get(service)
        if proxy is None:
            proxy = self._typed[service] = TypedProxy(self._node, service, self._options)
        return cast(S, proxy)

    def __dir__(self) -> list[str]:
        return self._node.service_names()


class ServiceProxy:
    """`n.rpc.greeting`: every method by attribute."""

    __slots__ = ("_name", "_node", "_options")

    def __init__(self, node: Calling, name: str, options: CallOptions) -> None:
        self._node = node
        self._name = name
        self._options = options

    def __getattr__(self, method: str) -> MethodProxy:
        if method.startswith("__"):
            raise AttributeError(method)
        return MethodProxy(self._node, f"{self._name}.{method}", self._options)

    def __dir__(self) -> list[str]:
        return self._node.method_names(self._name)


class MethodProxy:
    """`n.rpc.greeting.hello`: await the result of a call, or iterate over it when the method is a stream.

    The registry determines whether a method is a stream; before the service is known there, use `n.stream`.
    """

    __slots__ = ("_node", "_options", "_target")

    def __init__(self, node: Calling, target: str, options: CallOptions) -> None:
        self._node = node
        self._target = target
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        options = self._options
        try:
            body = encode_arguments(args, kwargs, self._target)
        except BadArguments:
            body, options = encode_with_source(args, kwargs, self._target, options)
        if self._node.is_stream(self._target):
            return self._node.begin_stream(self._target, body, options)
        return self._node.begin_call(self._target, body, options)


class TypedProxy:
    """`n.rpc[Greeting]`: the methods of one class, their answers decoded into the annotated types."""

    def __init__(self, node: Calling, service: type[Service], options: CallOptions) -> None:
        self._node = node
        self._service = service
        self._options = options
        self._callable = {member.name: member.function for member in members(service) if member.rpc is not None}

    def __getattr__(self, method: str) -> Any:
        function = self._callable.get(method)
        if function is None:
            if method.startswith("__"):
                raise AttributeError(method)
            raise UnknownMethod(f"{self._service.__qualname__}.{method} is not marked @rpc")
        target = f"{self._service.name}.{method}"
        decode = typed_decoder(target, read(function, target, self._service, False).returns)
        names = [p.name for p in list(inspect.signature(function).parameters.values())[1:]]
        typed = _typed(self._node, target, decode, names, inspect.isasyncgenfunction(function), self._options)
        setattr(self, method, typed)
        return typed

    def __dir__(self) -> list[str]:
        return sorted(self._callable)


def _typed(node: Calling, target: str, decode: Decode, names: list[str], stream: bool, options: CallOptions) -> Any:
    def encode(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, CallOptions]:
        try:
            return encode_arguments(args, kwargs, target), options
        except BadArguments:
            return encode_with_source(args, kwargs, target, options)

    def call(*args: Any, **kwargs: Any) -> Call:
        body, chosen = encode(args, kwargs)
        return node.begin_call(target, body, chosen, decode)

    def iterate(*args: Any, **kwargs: Any) -> Stream:
        body, chosen = encode(args, kwargs)
        return node.begin_stream(target, body, chosen, decode)

    proxy = iterate if stream else call
    proxy.__name__ = target
    proxy.__doc__ = f"{target}({', '.join(names)})"
    return proxy
