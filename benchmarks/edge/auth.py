"""HTTP with everything off, and with tokens, CORS, a rate limit per principal and an access log.

Beside them FastAPI with the same middleware.
"""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks.edge.site import free_port, process, site, wrk

SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef"
APP = """
import mesh
from mesh import http

class Shop(mesh.Service):
    @http.get("/hello/{name}")
    async def hello(self, name: str) -> dict[str, str]:
        return {"hello": name}
"""
OFF = """
[gateway]
port = PORT
replicas = 1
[services.shop]
class = "app:Shop"
"""
ON = """
[gateway]
port = PORT
replicas = 1
origins = ["https://app.example"]
access_log = "json"
[gateway.limits]
rate = ["100000000/m by principal"]
[auth.jwt]
issuer = "https://id.example"
audience = "shop"
secret = "env:TOKEN_SECRET"
[services.shop]
class = "app:Shop"
"""
FASTAPI = f'''
import json, sys, time
import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

app = FastAPI()
bearer = HTTPBearer()
windows = {{}}

@app.middleware("http")
async def log_and_limit(request: Request, call_next):
    began = time.perf_counter()
    response = await call_next(request)
    line = {{"path": request.url.path, "status": response.status_code, "took": time.perf_counter() - began}}
    sys.stderr.write(json.dumps(line) + "\\n")
    return response

app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"], allow_methods=["*"], allow_headers=["*"])

def principal(token: HTTPAuthorizationCredentials = Depends(bearer)) -> str:
    try:
        options = {{"algorithms": ["HS256"], "audience": "shop", "issuer": "https://id.example"}}
        claims = jwt.decode(token.credentials, "{SECRET}", **options)
    except jwt.PyJWTError:
        raise HTTPException(401)
    window = int(time.time() // 60), claims["sub"]
    windows[window] = windows.get(window, 0) + 1
    if windows[window] > 100_000_000:
        raise HTTPException(429)
    return claims["sub"]

@app.get("/hello/{{name}}")
async def hello(name: str, who: str = Depends(principal)) -> dict[str, str]:
    return {{"hello": name}}
'''


def main() -> None:
    """Alternate all three."""
    import os

    import jwt

    os.environ["TOKEN_SECRET"] = SECRET
    now = int(time.time())
    claims = {"sub": "ann", "iss": "https://id.example", "aud": "shop", "exp": now + 3600, "iat": now}
    headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}", "Origin": "https://app.example"}
    port = free_port()
    with site(APP, OFF) as off, site(APP, ON) as on:
        (off.dir / "theirs.py").write_text(FASTAPI)
        words = [
            sys.executable,
            "-m",
            "uvicorn",
            "theirs:app",
            "--port",
            str(port),
            "--no-access-log",
            "--log-level",
            "error",
        ]
        with process(words, port, off.dir):
            urls = {
                "everything off": (f"{off.url}/hello/ann", None),
                "everything on": (f"{on.url}/hello/ann", headers),
                "FastAPI with the same": (f"http://127.0.0.1:{port}/hello/ann", headers),
            }
            found: dict[str, list[float]] = {name: [] for name in urls}
            for url, sent in urls.values():
                wrk(url, 1, headers=sent)
            for _ in range(5):
                for name, (url, sent) in urls.items():
                    found[name].append(wrk(url, 4, headers=sent))
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, rate in medians.items():
        print(f"{name}: {rate:,.0f} requests/s")
    print(f"on / off: {medians['everything on'] / medians['everything off']:.2f}")
    print(f"on / FastAPI: {medians['everything on'] / medians['FastAPI with the same']:.2f}")
