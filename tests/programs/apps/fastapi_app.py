"""A FastAPI application on uvicorn, which finishes its requests on SIGTERM."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/shop/hello/{name}")
async def hello(name: str, request: Request) -> dict[str, object]:
    return {"hello": name, "headers": dict(request.headers), "query": dict(request.query_params)}


@app.post("/shop/echo")
async def echo(request: Request) -> Response:
    # Not StreamingResponse(request.stream()): Starlette waits for a disconnect meanwhile, and eats pieces of the body.
    return Response(await request.body(), media_type=request.headers["content-type"])


@app.get("/shop/count/{last}")
async def count(last: int) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(last):
            await asyncio.sleep(0.05)
            yield f"{number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.websocket("/shop/chat")
async def chat(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text.upper())


@app.get("/healthz")
async def healthy() -> str:
    return "well"
