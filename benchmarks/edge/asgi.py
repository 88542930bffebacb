"""A FastAPI application as a service behind the gateway, beside nginx in front of uvicorn with the same one."""

from __future__ import annotations

import statistics
import sys

from benchmarks.edge.site import free_port, nginx, process, site, wrk

APP = """
from fastapi import FastAPI
app = FastAPI()

@app.get("/shop/hello/{name}")
async def hello(name: str) -> dict[str, str]:
    return {"hello": name}
"""
TOML = """
[gateway]
port = PORT
replicas = 1
[services.shop]
class = "asgi:app:app"
"""


def main() -> None:
    """Alternate both."""
    port, front = free_port(), free_port()
    with site(APP, TOML) as running:
        words = [
            sys.executable,
            "-m",
            "uvicorn",
            "app:app",
            "--port",
            str(port),
            "--no-access-log",
            "--log-level",
            "error",
        ]
        with process(words, port, running.dir), nginx(front, port):
            urls = {
                "gateway → --asgi": f"{running.url}/shop/hello/ann",
                "nginx → uvicorn": f"http://127.0.0.1:{front}/shop/hello/ann",
                "uvicorn alone": f"http://127.0.0.1:{port}/shop/hello/ann",
            }
            found: dict[str, list[float]] = {name: [] for name in urls}
            for url in urls.values():
                wrk(url, 1)
            for _ in range(5):
                for name, url in urls.items():
                    found[name].append(wrk(url, 4))
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):,.0f} requests/s")
    mine, theirs = (statistics.median(found[name]) for name in list(found)[:2])
    print(f"ratio: {mine / theirs:.2f}")
