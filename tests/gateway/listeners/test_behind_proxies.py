"""Behind real proxies: nginx and Caddy speak HTTP/2 to clients, HAProxy the PROXY protocol to the gateway.

The configurations are those of docs/tls.md. Each test is skipped, by name, where its proxy is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from listener_set import Authority, free_port, served, settings_of

#: The proxies do not see which loop the gateway runs on.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

GUIDE = Path(__file__).parents[3] / "docs/tls.md"


def has_http2() -> bool:
    curl = shutil.which("curl")
    return curl is not None and "HTTP2" in subprocess.run([curl, "-V"], capture_output=True, text=True).stdout


def needs(program: str) -> pytest.MarkDecorator:
    missing = shutil.which(program) is None or not has_http2()
    return pytest.mark.skipif(
        missing, reason=f"{program}, or curl with HTTP/2, is missing (apt install {program} curl)"
    )


def snippet(language: str) -> str:
    """The configuration that the guide shows."""
    found = re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@asynccontextmanager
async def running(home: Path, port: int, *words: str | Path) -> AsyncIterator[None]:
    """A proxy, once it accepts connections."""
    child = await asyncio.create_subprocess_exec(
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Caddy keeps files of its own below.
        env={**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)},
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    assert child.returncode is None, (await child.stdout.read()).decode()
                    await asyncio.sleep(0.02)
        yield
    finally:
        if child.returncode is None:
            child.terminate()
        await child.communicate()


async def curl(root: Path, url: str, *words: str) -> tuple[str, str]:
    """The HTTP version that the proxy speaks, and the body."""
    port = url.split(":")[2].partition("/")[0]
    child = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--http2", "--cacert", root / "ca.pem", "--resolve", f"shop.example:{port}:127.0.0.1",
        "-w", "\n%{http_version} %{http_code}", *words, url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(20):
        told, complaint = await child.communicate()
    assert child.returncode == 0, complaint.decode()
    body, _, version = told.decode().rpartition("\n")
    return version, body


def certified(root: Path, authority: Authority) -> None:
    authority.write(root / "site.crt", root / "site.key", "shop.example")
    (root / "ca.pem").write_bytes(authority.pem)


async def check(root: Path, port: int) -> None:
    at = f"https://shop.example:{port}"
    assert await curl(root, f"{at}/client") == ("2 200", '"127.0.0.1"')
    assert await curl(root, f"{at}/scheme") == ("2 200", '"https"')
    # What a client makes up is not believed.
    forged = ("-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Forwarded-Host: evil.example", "-H", "Forwarded: for=6.6.6.6")
    assert await curl(root, f"{at}/client", *forged) == ("2 200", '"127.0.0.1"')
    # The pages of operators are not published.
    assert (await curl(root, f"{at}/metrics"))[0] == "2 404"
    # The origin of the application's own pages is known.
    own = ("-X", "POST", "-H", f"Origin: https://shop.example:{port}", "-H", "Content-Type: application/json")
    assert (await curl(root, f"{at}/items", *own, "-d", '{"name": "x", "price": 1}'))[0] in ("2 200", "2 201")
    other = ("-X", "POST", "-H", "Origin: https://evil.example", "-H", "Content-Type: application/json")
    assert (await curl(root, f"{at}/items", *other, "-d", '{"name": "x", "price": 1}'))[0] == "2 403"


UNIX = '[gateway]\nunix = "run/gateway.sock"\nhosts = ["shop.example"]\n'


@needs("nginx")
async def test_nginx_in_front_gives_http_2(tmp_path: Path, authority: Authority):
    certified(tmp_path, authority)
    port = free_port()
    site = (
        snippet("nginx")
        .replace("listen 443 ", f"listen 127.0.0.1:{port} ")
        .replace("/srv/shop/run", str(tmp_path / "run"))
        .replace("/etc/ssl/shop", str(tmp_path / "site"))
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\npid {tmp_path}/nginx.pid;\nerror_log stderr;\nworker_processes 1;\nuser root;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n"
        f"client_body_temp_path {tmp_path}/body;\nproxy_temp_path {tmp_path}/proxy;\n"
        f"fastcgi_temp_path {tmp_path}/f;\nuwsgi_temp_path {tmp_path}/u;\nscgi_temp_path {tmp_path}/s;\n{site}}}\n"
    )
    async with (
        served(settings_of(tmp_path, UNIX)),
        running(tmp_path, port, "nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf"),
    ):
        await check(tmp_path, port)


@needs("caddy")
async def test_caddy_in_front_gives_http_2(tmp_path: Path, authority: Authority):
    certified(tmp_path, authority)
    port = free_port()
    site = (
        snippet("caddyfile")
        .replace(
            "shop.example {",
            f"https://shop.example:{port} {{\n    bind 127.0.0.1\n    tls {tmp_path}/site.crt {tmp_path}/site.key",
        )
        .replace("/srv/shop/run", str(tmp_path / "run"))
    )
    (tmp_path / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https off\n}}\n{site}")
    async with (
        served(settings_of(tmp_path, UNIX)),
        running(tmp_path, port, "caddy", "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"),
    ):
        await check(tmp_path, port)


@needs("haproxy")
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"])
async def test_haproxy_tells_the_client_by_the_proxy_protocol(tmp_path: Path, authority: Authority, version: str):
    certified(tmp_path, authority)
    (tmp_path / "both.pem").write_bytes((tmp_path / "site.crt").read_bytes() + (tmp_path / "site.key").read_bytes())
    port = free_port()
    text = '[gateway]\nproxy_protocol = true\nproxies = ["127.0.0.5"]\nhosts = ["shop.example"]\n'
    async with served(settings_of(tmp_path, text)) as front:
        (tmp_path / "haproxy.cfg").write_text(
            "defaults\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n  mode tcp\n"
            f"frontend f\n  bind 127.0.0.1:{port} ssl crt {tmp_path}/both.pem\n  default_backend b\n"
            # A health check speaks the protocol for itself.
            f"backend b\n  server s 127.0.0.1:{front.port()} {version} check inter 100ms source 127.0.0.5\n"
        )
        async with running(tmp_path, port, "haproxy", "-db", "-f", tmp_path / "haproxy.cfg"):
            at = f"https://shop.example:{port}"
            assert await curl(tmp_path, f"{at}/client") == ("1.1 200", '"127.0.0.1"')
            scheme = json.loads((await curl(tmp_path, f"{at}/scheme"))[1])
            assert scheme == ("https" if version.endswith("ssl") else "http")
