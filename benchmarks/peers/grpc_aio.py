"""grpc.aio over a unix socket, with msgpack in place of protobuf so that the body is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from benchmarks.drive import Call
from benchmarks.peers import Peer, Place

PEER = Peer(
    key="grpc_aio",
    title="grpc.aio",
    how="generic unary handler, msgpack bodies, unix socket, asyncio's own loop",
    modules=("grpc",),
    install="pip install grpcio",
    # Measured on both loops: its own poller thread wakes asyncio a tenth faster than uvloop.
    uvloop=False,
    package="grpcio",
)

#: gRPC refuses messages over 4 MiB unless told otherwise; no limit keeps the loads free to grow.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def serve(place: Place) -> None:
    import grpc

    async def echo(argument: Any, context: Any) -> Any:
        return argument

    method = grpc.unary_unary_rpc_method_handler(
        echo, request_deserializer=msgpack.unpackb, response_serializer=msgpack.packb
    )
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": method}),))
    server.add_insecure_port(f"unix:{place.directory / 'grpc'}")
    await server.start()
    await server.wait_for_termination()


@asynccontextmanager
async def connect(place: Place) -> AsyncIterator[dict[str, Call]]:
    import grpc

    async with grpc.aio.insecure_channel(f"unix:{place.directory / 'grpc'}", options=OPTIONS) as channel:
        call = channel.unary_unary(
            "/bench.Echo/Echo", request_serializer=msgpack.packb, response_deserializer=msgpack.unpackb
        )
        yield {"small": call, "big": call}
