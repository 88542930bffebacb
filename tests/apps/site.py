"""Applications for the tests: FastAPI and Flask, with everything that a gateway passes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, Response, UploadFile, WebSocket
from fastapi.responses import RedirectResponse, StreamingResponse
from flask import Flask, request

import mesh

EVENTS: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    EVENTS.append("startup")
    yield {"pool": "a pool"}
    EVENTS.append("shutdown")


app = FastAPI(title="Shop", lifespan=lifespan)


@app.get("/items/{id}")
async def item(id: int, q: str = "") -> dict[str, Any]:
    return {"id": id, "q": q}


@app.get("/scope")
async def scope(request: Request, response: Response) -> dict[str, Any]:
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    response.headers["X-Many"] = "yes"
    context = mesh.current()
    return {
        "path": request.url.path,
        "root_path": request.scope["root_path"],
        "scheme": request.url.scheme,
        "client": request.client.host if request.client else "",
        "cookies": request.cookies,
        "state": request.state.pool,
        "target": context.target if context else "",
        "trace": context.trace if context else "",
    }


@app.get("/call")
async def call(request: Request) -> Any:
    return await request.state.mesh.call("greeter.hello", "you")


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, Any]:
    return {"name": file.filename, "size": len(await file.read())}


@app.post("/echo")
async def echo(request: Request) -> StreamingResponse:
    return StreamingResponse(request.stream(), media_type="application/x-echo")


@app.get("/stream/{n}")
async def stream(n: int) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(n):
            yield b"%d\n" % number

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/breaks")
async def breaks() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(0.05)
        raise ZeroDivisionError

    return StreamingResponse(parts())


@app.get("/fails")
async def fails() -> None:
    raise ZeroDivisionError


@app.get("/waits")
async def waits() -> None:
    EVENTS.append("waiting")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        EVENTS.append("cancelled")
        raise


@app.get("/later")
async def later(tasks: BackgroundTasks) -> str:
    async def work() -> None:
        await asyncio.sleep(0.1)
        EVENTS.append("done later")

    tasks.add_task(work)
    return "now"


@app.get("/later/stream")
async def later_stream(tasks: BackgroundTasks) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def work() -> None:
        await asyncio.sleep(0.3)
        EVENTS.append("done later")

    tasks.add_task(work)
    return StreamingResponse(parts())


@app.post("/early")
async def early() -> str:
    return "early"


@app.get("/elsewhere")
async def elsewhere() -> RedirectResponse:
    return RedirectResponse("/items/1", status_code=307)


@app.websocket("/ws/{room}")
async def socket(ws: WebSocket, room: str) -> None:
    if room == "closed":
        await ws.close(1008)
        await asyncio.sleep(0.1)
        EVENTS.append("refused")
        return
    await ws.accept(subprotocol="chat" if "chat" in ws.scope["subprotocols"] else None)
    await ws.send_text(f"welcome to {room}")
    async for text in ws.iter_text():
        if text == "bytes":
            await ws.send_bytes(b"\x00\x01")
        elif text == "bye":
            await ws.close(4001, "bye")
            await asyncio.sleep(0.1)
            EVENTS.append("closed")
            return
        elif text == "fail":
            raise ZeroDivisionError
        else:
            await ws.send_text(text.upper())
    EVENTS.append("left")


flask = Flask(__name__)


@flask.route("/hello/<name>", methods=["GET", "POST", "PURGE"])
def hello(name: str) -> Any:
    context = mesh.current()
    return {
        "name": name,
        "method": request.method,
        "size": len(request.get_data()),
        "script": request.environ["SCRIPT_NAME"],
        "target": context.target if context else "",
    }


def factory() -> FastAPI:
    return app


not_an_application = 7


def broken_factory() -> FastAPI:
    raise ZeroDivisionError


async def refuses_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"x-bad\r\n", b"1")] if scope["path"] == "/bad" else [],
        }
    )
    await send({"type": "http.response.body", "body": b"plain"})


async def fails_to_start(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError
