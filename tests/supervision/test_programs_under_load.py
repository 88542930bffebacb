"""Requests to a program while it is rolled, scaled and killed, all under a real supervisord and through a gateway."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from supervision_project import Project
from test_programs import program_of, shown

from tests.patience import until

pytestmark = pytest.mark.chaos

APPS = Path(__file__).parents[1] / "programs" / "apps"
CALLERS = 6

PROGRAM = """
[services.shop]
command = ["{python}", "-m", "flask", "--app", "flask_app", "run", "--host", "{{host}}", "--port", "{{port}}"]
health = "/healthz"
health_every = "200ms"
route = "/shop"
environment = {{ COLOUR = "{colour}" }}
replicas = {replicas}
"""


def configure(project: Project, colour: str = "blue", replicas: int = 2) -> None:
    project.write(PROGRAM.format(python=sys.executable, colour=colour, replicas=replicas), greetings=0, gateways=1)


async def shop(project: Project, replicas: int = 2) -> Project:
    shutil.copy(APPS / "flask_app.py", project.root)
    configure(project, replicas=replicas)
    await asyncio.to_thread(project.command, "mesh", "up")
    return project


class Load:
    """Requests without a pause: reads, writes that are never sent twice, and answers that take half a second.

    Attributes:
        answers: by method and status, or exception.
        instances: that have answered.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: Counter[str] = Counter()
        self.instances: set[str] = set()

    @property
    def failed(self) -> dict[str, int]:
        return {what: count for what, count in self.answers.items() if not what.endswith(" 200")}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with aiohttp.ClientSession(self._url) as session:
            tasks = [asyncio.create_task(self._call(session, number)) for number in range(CALLERS)]
            try:
                yield self
                await self.more(60)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def more(self, count: int) -> None:
        """Return after so many further answers."""
        wanted = self.answers.total() + count
        await until(lambda: self.answers.total() >= wanted, f"{count} more answers")

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        while True:
            verb = ("GET", "POST", "SLOW")[number % 3]
            try:
                what = await self._ask(session, verb)
            except (aiohttp.ClientError, TimeoutError, AssertionError) as exc:
                what = repr(exc)
            self.answers[f"{verb} {what}"] += 1

    async def _ask(self, session: aiohttp.ClientSession, verb: str) -> str:
        if verb == "POST":
            async with session.post("/shop/echo", data=b"x" * 5000) as answer:
                body = await answer.read()
                assert answer.status != 200 or body == b"x" * 5000
        elif verb == "SLOW":
            async with session.get("/shop/count/10") as answer:
                body = await answer.read()
                assert answer.status != 200 or len(body.split()) == 10
        else:
            async with session.get("/shop/where") as answer:
                body = await answer.read()
                if answer.status == 200:
                    self.instances.add(body.decode())
        return str(answer.status)


async def test_no_request_fails_while_a_program_is_rolled_and_scaled(project: Project):
    """Flask's own server dies on SIGTERM with all its requests; none is lost, not even a POST. The gateways, too."""
    await shop(project)
    async with Load(project.url).running() as load:
        await load.more(60)
        assert len(load.instances) == 2
        configure(project, "green")
        await asyncio.to_thread(project.command, "mesh", "roll", "shop", "--settle", "0.2", "--gate", "0")
        assert load.failed == {}
        await until(lambda: sum(each.startswith("green") for each in load.instances) >= 2, "the new release answers")
        # A new gateway knows the instances before its first request.
        await asyncio.to_thread(project.command, "mesh", "roll", "gateway", "--settle", "0.2", "--gate", "0")
        assert load.failed == {}
        await asyncio.to_thread(project.command, "mesh", "scale", "shop=3")
        await asyncio.to_thread(project.command, "mesh", "scale", "shop=1")
    assert load.failed == {}
    assert load.answers["POST 200"] > 50
    assert load.answers["SLOW 200"] > 10


async def test_kill_9_fails_only_what_was_under_way(project: Project):
    """Of two programs one is killed, then the process beside one: afterwards every request is answered again."""
    await shop(project)
    async with Load(project.url).running() as load:
        for victim in (program_of, lambda project: project.pids()["shop:shop_1"]):
            await until(lambda: len(shown(project)) == 2, "both are registered")
            await load.more(60)
            before = sum(load.failed.values())
            os.kill(victim(project), signal.SIGKILL)
            await load.more(60)
            # Each caller may have had one request at it.
            assert sum(load.failed.values()) - before <= CALLERS
            settled = dict(load.failed)
            await load.more(60)
            assert load.failed == settled
