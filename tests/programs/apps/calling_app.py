"""A FastAPI application that calls the mesh: as a node of its own, and through the gateway, as any language can."""

import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

import mesh


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with mesh.connect() as app.state.mesh:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/shop/connected")
async def connected(request: Request) -> str:
    return str(await request.app.state.mesh.call("greeting.hello", "node"))


@app.get("/shop/over-http")
async def over_http(request: Request) -> str:
    call = urllib.request.Request(
        os.environ["MESH_GATEWAY"] + "/rpc/greeting/hello",
        json.dumps({"name": "gateway"}).encode(),
        {"Content-Type": "application/json", "traceparent": request.headers["traceparent"]},
    )
    with await asyncio.to_thread(urllib.request.urlopen, call, timeout=10) as answer:
        return str(json.load(answer))
