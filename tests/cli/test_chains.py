"""`mesh config interceptors`: the chains of a project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import exits

TOML = """
[interceptors]
incoming = ["shop.tenancy:Tenancy"]
http = ["shop.tenancy:Tenancy"]

[services.orders]
class = "shop.orders:Orders"
"""

TENANCY = """
import mesh


class Tenancy(mesh.Interceptor):
    async def http(self, call, proceed):
        return await proceed(call)

    async def incoming(self, call, proceed):
        return await proceed(call)
"""

ORDERS = """
import mesh
from shop.tenancy import Tenancy


class Audit(mesh.Interceptor):
    async def incoming(self, call, proceed):
        return await proceed(call)


class Orders(mesh.Service):
    interceptors = [Audit()]

    @mesh.rpc
    @mesh.intercept(Tenancy())
    async def buy(self) -> None: ...
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "mesh.toml").write_text(TOML)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").touch()
    (tmp_path / "shop/tenancy.py").write_text(TENANCY)
    (tmp_path / "shop/orders.py").write_text(ORDERS)
    return tmp_path


def config(project: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "mesh.cli.main", "config", "--json", *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    rows = json.loads(done.stdout) if done.stdout else []
    return done.returncode, {row["key"]: row["value"] for row in rows}, done.stderr


def test_the_chain_of_each_service_is_listed_in_order_with_its_places(shop: Path):
    code, rows, _ = config(shop, "interceptors")
    assert code == exits.OK
    outer = ["shop.tenancy:Tenancy (mesh.toml)", "shop.orders:Audit (Orders)"]
    assert rows["interceptors.gateway.http"] == ["shop.tenancy:Tenancy (mesh.toml)"]
    assert rows["interceptors.orders.incoming"] == outer
    assert rows["interceptors.orders.buy.incoming"] == [*outer, "shop.tenancy:Tenancy (Orders.buy)"]
    assert "interceptors.orders.delivery" not in rows


def test_a_service_that_cannot_be_imported_is_named_and_the_rest_is_listed(shop: Path):
    (shop / "shop/orders.py").write_text("raise RuntimeError('not today')")
    code, rows, told = config(shop, "interceptors")
    assert code == exits.OK
    assert "orders: RuntimeError: not today" in told
    assert rows["interceptors.gateway.http"] == ["shop.tenancy:Tenancy (mesh.toml)"]


def test_without_the_key_no_service_is_imported(shop: Path):
    """Deployments read the settings of a release that may be broken."""
    (shop / "shop/orders.py").write_text("import time; time.sleep(600)")
    code, rows, _ = config(shop)
    assert code == exits.OK
    assert rows["interceptors.incoming"] == ["shop.tenancy:Tenancy"]
