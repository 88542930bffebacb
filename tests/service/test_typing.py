"""What a type checker says of calls and tasks: wrong arguments are its errors, right ones are not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mesh
from mesh.testing import Mesh

ROOT = Path(mesh.__file__).parents[1]

CODE = """
from typing import Any
from collections.abc import Mapping
from typing import Annotated
import mesh
from mesh import http, step

class Till(mesh.Service):
    @http.post("/x", status=201, responses={409: "Closed."})
    async def x(
        self, tenant: Annotated[str, http.Header("X-T")], s: Annotated[str, http.Cookie] = ""
    ) -> http.Response[str]:
        await self.call("till.y", tenant.upper())
        if s:
            return http.Response(1)  # E
        return http.Response("a", status=201, headers={"X-A": ["1"]}, cookies=[http.SetCookie(name="a")])

    @http.get("/y")
    async def y(self) -> int | http.Response[int]:
        return http.Response(3) if mesh.current() else 3

    @http.get("/z")
    async def z(self) -> http.Response[None]:
        return http.redirect("/y", status=303)

class Orders(mesh.Service):
    @mesh.task
    async def charge(self, order: str, amount: int = 1) -> str:
        return order

    @mesh.task(offload="thread")
    def refund(self, order: str, *, quick: bool = False) -> int:
        return 1

    @mesh.rpc
    async def count(self, n: int) -> int:
        await self.defer(self.charge, "a")
        await self.defer(self.charge, "a", 3, key="k", delay="5m")
        await self.defer(self.charge, order="a", amount=3)
        await self.defer(self.refund, "a", quick=True)
        await self.defer("orders.charge", 1, 2, 3, key="k", anything=4)
        await self.defer(step(self.charge, order="a"), key="k")
        await self.defer(self.charge)  # E
        await self.defer(self.charge, 3)  # E
        await self.defer(self.charge, "a", "b")  # E
        await self.defer(self.charge, ordr="a")  # E
        await self.defer(self.charge, 3, key="k")  # E
        await self.defer(self.charge, "a", 1, 2, key="k")  # E
        await self.defer(self.charge, "a", keey="k")  # E
        await self.defer(self.refund, 3)  # E
        await self.defer(step(self.charge, 3), key="k")  # E
        return n

async def main(n: mesh.Node) -> None:
    text: str = await (await n.defer(Orders.charge, "a")).result()
    number: int = await (await n.defer(Orders.refund, "a", key="k")).result()
    await n.defer(Orders.charge, "a", 3, key="k")
    await n.defer(Orders.charge, 3)  # E
    await n.defer(Orders.charge, "a", "b", key="k")  # E
    wrong: int = await (await n.defer(Orders.charge, "a")).result()  # E
    three: int = await n.rpc[Orders].count(3)
    await n.rpc[Orders].count("3")  # E
    await n.call("orders.count", 3, timeout="5s")
    await n.call("orders.count", 3, timeout=b"5s")  # E
    async with n.using(timeout="5s") as x:  # E
        pass
"""


@pytest.mark.timeout(300)
def test_the_checker_finds_wrong_arguments_and_no_others(tmp_path: Path):
    """By mypy, as strict as it can be."""
    pytest.importorskip("mypy")
    path = tmp_path / "orders.py"
    path.write_text(CODE)
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache'}"]
    done = subprocess.run(
        [*words, "--follow-imports=silent", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = {int(line) for line in re.findall(r"orders\.py:(\d+): error", done.stdout)}
    wanted = {number for number, line in enumerate(CODE.splitlines(), start=1) if line.endswith("# E")}
    assert found == wanted, done.stdout


class Orders(mesh.Service):
    @mesh.task
    async def charge(self, order: str, key: str = "") -> str:
        return f"{order} {key}"


async def test_a_step_may_be_deferred_with_options():
    """So that arguments by name are checked beside them, also those that are named like an option."""
    async with Mesh(Orders) as m:
        job = await m.defer(mesh.step(Orders.charge, order="o1", key="its own"), key="k")  # type: ignore[arg-type]
        assert await job.result(5) == "o1 its own"
        again = await m.defer(mesh.step(Orders.charge, "o2").options(key="k"))  # type: ignore[arg-type]
        assert again.id == job.id
        with pytest.raises(mesh.BadArguments):
            await m.defer(mesh.step(Orders.charge, "o3"), "o4")  # type: ignore[call-overload]
