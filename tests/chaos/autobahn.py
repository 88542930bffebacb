"""`python -m tests.chaos.autobahn --wstest PATH`: the Autobahn test suite, against mesh and against aiohttp alone.

Needs `wstest` of the package autobahntestsuite, which runs on Python 2.7. The handlers of a service, and an ASGI
application, echo what they get. mesh must pass every case that a plain aiohttp server passes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.edge.site import free_port, process, site

APP = """
from collections.abc import AsyncIterator

import mesh
from mesh import http


async def echo(scope, receive, send):
    if scope["type"] != "websocket":
        raise RuntimeError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        kind = "text" if message.get("text") is not None else "bytes"
        await send({"type": "websocket.send", kind: message[kind]})


class Native(mesh.Service):
    @http.websocket("/text")
    async def text(self, messages: AsyncIterator[str]) -> AsyncIterator[str]:
        async for message in messages:
            yield message

    @http.websocket("/binary")
    async def binary(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message
"""
TOML = """
[gateway]
port = PORT
replicas = 1
[gateway.websocket]
max_message = "64MiB"
compress = true
[services.echo]
class = "asgi:app:echo"
route = "/asgi"
[services.native]
class = "app:Native"
"""
AIOHTTP = """
import sys

from aiohttp import WSMsgType, web


async def echo(request):
    ws = web.WebSocketResponse(max_msg_size=64 * 2**20)
    await ws.prepare(request)
    async for message in ws:
        await (ws.send_str if message.type is WSMsgType.TEXT else ws.send_bytes)(message.data)
    return ws


app = web.Application()
app.router.add_get("/", echo)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
#: Cases that need both kinds of messages, or binary ones, are for the ASGI application.
TEXT = ["1.1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
BINARY = ["1.2.*"]
ALL = ["*"]
PASSED = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})


def results(wstest: str, agent: str, url: str, cases: list[str], without: list[str]) -> dict[str, str]:
    """The behaviour in each case, by its number."""
    with tempfile.TemporaryDirectory() as place:
        spec = {
            "outdir": place,
            "servers": [{"agent": agent, "url": url}],
            "cases": cases,
            "exclude-cases": without,
            "exclude-agent-cases": {},
        }
        path = Path(place) / "spec.json"
        path.write_text(json.dumps(spec))
        subprocess.run([wstest, "-m", "fuzzingclient", "-s", str(path)], check=True, stdout=subprocess.DEVNULL)
        found = json.loads((Path(place) / "index.json").read_text())[agent]
    return {number: each["behavior"] for number, each in found.items()}


def main() -> int:
    """Run all; the exit code is 1 when mesh fails a case that aiohttp passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wstest", required=True, help="the program of autobahntestsuite")
    parser.add_argument("--short", action="store_true", help="without large messages (9) and compression (12, 13)")
    chosen = parser.parse_args()
    without = ["9.*", "12.*", "13.*"] if chosen.short else []
    port = free_port()
    with site(APP, TOML) as running:
        script = running.dir / "plain.py"
        script.write_text(AIOHTTP)
        with process([sys.executable, str(script), str(port)], port):
            socket = running.url.replace("http", "ws")
            runs = {
                "aiohttp": (f"ws://127.0.0.1:{port}/", ALL),
                "asgi": (f"{socket}/asgi/echo", ALL),
                "text": (f"{socket}/text", TEXT),
                "binary": (f"{socket}/binary", BINARY),
            }
            found = {name: results(chosen.wstest, name, url, cases, without) for name, (url, cases) in runs.items()}
    worse = False
    for name, cases_found in found.items():
        failed = sorted(number for number, behavior in cases_found.items() if behavior not in PASSED)
        print(f"{name}: {len(cases_found)} cases, {dict(Counter(cases_found.values()))}, failed: {failed}")
        worse = worse or any(found["aiohttp"][number] in PASSED for number in failed)
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
