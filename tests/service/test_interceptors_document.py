"""docs/interceptors.md: its examples run as they are written."""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import mesh
from mesh.gateway import app
from mesh.gateway.server import Gateway
from mesh.testing import Mesh
from tests.patience import until

DOCUMENT = Path(__file__).parents[2] / "docs" / "interceptors.md"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The files of the document in a package; gives the document's [interceptors]."""
    text = DOCUMENT.read_text()
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        first = block.partition("\n")[0]
        if first.startswith("# shop/"):
            (tmp_path / first[2:]).write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = tomllib.loads(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    yield settings
    for name in [name for name in sys.modules if name == "shop" or name.startswith("shop.")]:
        del sys.modules[name]


async def test_tenancy_audit_and_cache_work_together(shop: dict[str, Any]):
    from shop.orders import Orders  # type: ignore[import-not-found]

    settings = {**shop, "gateway": {"hosts": ["*.shop.example"]}}
    async with Mesh(Orders, settings=settings) as m:
        audit = await m.listen("audit.*")
        with pytest.raises(mesh.Forbidden):
            await m.call("orders.order", "tea")
        with mesh.scope(tenant="acme", principal="ann"):
            assert await m.call("orders.order", "tea") == "tea for acme"
        refused = await m.defer(Orders.pack, "tea")
        await until(lambda: len(audit) == 4)
        assert [dead.id for dead in await m.dead("orders.pack")] == [refused.id]
        seen = [(event.data["target"], event.data["principal"], event.data["code"]) for event in audit]
        assert sorted(seen) == [
            ("orders.order", "", "forbidden"),
            ("orders.order", "ann", "ok"),
            ("orders.pack", "", "rejected"),
            ("orders.pack", "ann", "ok"),
        ]

        server = Gateway(m.node, m.settings).make_server()  # type: ignore[arg-type]
        listener = app.bind("127.0.0.1", 0)
        accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
        async with aiohttp.ClientSession(app.shown(listener)) as http:
            for tenant in ("acme", "other"):
                async with http.get("/price/tea", headers={"Host": f"{tenant}.shop.example"}) as answer:
                    assert await answer.json() == {"item": "tea", "for": tenant}
            before = len(audit)
            async with http.get("/price/tea", headers={"Host": "acme.shop.example"}) as answer:
                assert await answer.json() == {"item": "tea", "for": "acme"}
        accepting.close()
        await server.shutdown(0.2)
        await until(lambda: len(audit) > before)
        cache = Orders.price.__mesh_marks__.interceptors[0]
        assert sorted(tenant for _, tenant, _ in cache.kept) == ["acme", "other"]
