"""The plain aiohttp application that the gateway is held against: `python -m benchmarks.web PORT`.

Owns: one route with `json_response`, on uvloop, nothing else.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from benchmarks.host import end_with_stdin, run


async def hello(request: web.Request) -> web.Response:
    return web.json_response({"message": "Hello, world!"})


async def serve(port: int) -> None:
    application = web.Application()
    application.router.add_get("/hello", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    end_with_stdin()
    run(serve(int(sys.argv[1])), uvloop=True)
