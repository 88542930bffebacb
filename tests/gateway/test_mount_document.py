"""The example of docs/http.md, "Write a mount", does what the page says."""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

import mesh
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh

PAGE = Path(mesh.__file__).parents[1] / "docs/http.md"


class Greeting(mesh.Service):
    @mesh.rpc
    async def hello(self, name: str) -> str:
        return f"Hello, {name}!"

    @mesh.rpc
    async def secret(self) -> str:
        return "secret"


async def test_the_example_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module and the setting, as they are written there."""
    section = PAGE.read_text().partition("## Write a mount")[2]
    code, setting, entry_point = (
        found[1] for found in re.finditer(r"```(?:python|toml)\n(.*?)```", section, re.DOTALL)
    )
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/jsonrpc.py").write_text(code)
    mounts = tomllib.loads(setting)["gateway"]["mounts"]
    assert "mesh.mounts" in tomllib.loads(entry_point)["project"]["entry-points"]
    monkeypatch.setattr(sys, "path", list(sys.path))
    async with Mesh(Greeting) as m:
        limits = msgspec.structs.replace(m.settings.gateway, mounts=mounts)
        gateway = Gateway(m.node, msgspec.structs.replace(m.settings, gateway=limits, root=tmp_path))
        listener = app.bind("127.0.0.1", 0)
        server = gateway.make_server()
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with aiohttp.ClientSession(app.shown(listener)) as session:

            async def ask(**call: Any) -> Any:
                async with session.post("/jsonrpc", json=call) as answer:
                    assert answer.status == 200
                    return await answer.json()

            told = {"jsonrpc": "2.0", "id": 1, "result": "Hello, ann!"}
            assert await ask(method="greeting.hello", params=["ann"], id=1) == told
            assert await ask(method="greeting.hello", params={"name": "ann"}, id=1) == told
            assert (await ask(method="greeting.hello", params=[7], id=1))["error"]["code"] == -32602
            assert (await ask(method="greeting.secret", id="a"))["error"]["code"] == -32601
            assert (await ask(methot="x"))["error"]["code"] == -32600
            async with session.get("/jsonrpc") as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST, OPTIONS")
        accepting.close()
        await server.shutdown(0.2)
        validate(msgspec.json.decode(gateway.openapi()), cls=OpenAPIV31SpecValidator)
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]
