"""A client of a run, as a process of its own that can be killed and frozen: `python -m tests.jepsen.client KIND …`.

KIND is "mesh" (a node of its own), "http" (through the gateways), or "collect", which writes down what is stored when
everything else has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp

import mesh
from mesh.errors import from_wire
from mesh.tasks.contract import Status
from tests.patience import run_until_terminated

from .history import Event, Recorder
from .verbs import TTL_S, hold, operate

#: Keys are used for so long; what came before is only read. So each key has few operations, and they can be judged.
EPOCH_S: Final = 10.0
SLOTS: Final = 12
#: Of these keys some are also written without looking, and deleted.
BLIND: Final = 3
ACCOUNTS: Final = 8
LOCKS: Final = 3
#: Things of one row; then a new row begins.
ROW: Final = 50
COLLECT_S: Final = 60.0

Register = Callable[[str, str, Any], Awaitable[Any]]


class Client:
    """What all clients do; how it is sent is passed in."""

    def __init__(self, recorder: Recorder, name: str, seed: int, pause_s: float) -> None:
        self.recorder = recorder
        self.name = name
        self.rng = random.Random(f"{seed}/{name}")
        self.pause_s = pause_s
        self.serial = itertools.count(1)

    def new(self) -> str:
        """A value that nobody else writes."""
        return f"{self.name}.{next(self.serial)}"

    def key(self) -> str:
        """A key of this epoch, or of one of the last: what was in doubt then is looked at."""
        age = self.rng.choice((0, 0, 0, 0, 1, 2))
        return f"r{self.rng.randrange(SLOTS)}-{int(time.monotonic() / EPOCH_S) - age}"

    def transfer(self) -> tuple[str, str, int]:
        source, target = self.rng.sample(range(ACCOUNTS), 2)
        return f"a{source}", f"a{target}", self.rng.randint(1, 100)

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.uniform(0, 2 * self.pause_s))

    async def registers(self, send: Register) -> None:
        """Read, and swap what was read for something new."""
        while True:
            await self.pause()
            key = self.key()
            kind, found = await operate(self.recorder, "read", key, None, send, "read", key, None)
            if kind != "ok" or self.rng.random() < 0.3:
                continue
            value, etag = found
            new = self.new()
            blind = int(key[1:].partition("-")[0]) < BLIND and self.rng.random() < 0.3
            if blind and self.rng.random() < 0.3:
                await operate(self.recorder, "delete", key, None, send, "delete", key, None)
            elif blind:
                await operate(self.recorder, "set", key, new, send, "set", key, new)
            else:
                await operate(self.recorder, "swap", key, [value, new], send, "swap", key, (new, etag))

    async def until_known(self, do: str, key: str, value: Any, work: Callable[[], Awaitable[Any]]) -> bool:
        """Mostly until it is confirmed; sometimes it is given up in doubt. Whether it was confirmed."""
        while True:
            kind, _ = await operate(self.recorder, do, key, value, work)
            if kind == "ok" or self.rng.random() < 0.3:
                return kind == "ok"
            await self.pause()


class MeshClient(Client):
    """A node."""

    def __init__(self, n: mesh.Node, *given: Any) -> None:
        super().__init__(*given)
        self.n = n

    async def direct(self, do: str, key: str, value: Any) -> Any:
        register = self.n.state("register")
        if do == "read":
            return list(await register.get(key))
        if do == "swap":
            return await register.set(key, value[0], etag=value[1])
        if do == "delete":
            return await register.delete(key)
        return await register.set(key, value)

    async def called(self, do: str, key: str, value: Any) -> Any:
        n = self.n
        if do == "read":
            found = await n.call("register.read", key, timeout=1.5)
            return [found["value"], found["etag"]]
        if do == "swap":
            return await n.call("register.swap", key, *value, timeout=1.5)
        if do == "delete":
            return await n.call("register.remove", key, timeout=1.5)
        return await n.call("register.write", key, value, timeout=1.5)

    async def tasks(self) -> None:
        while True:
            await self.pause()
            key, what = self.new(), self.transfer()

            async def defer(key: str = key, what: tuple[str, str, int] = what) -> str:
                return (await self.n.defer("ledger.book", key, *what, key=key)).id

            await self.until_known("defer", key, what, defer)

    async def transfers(self) -> None:
        while True:
            await self.pause()
            entry, (source, target, amount) = self.new(), self.transfer()

            async def commit(entry: str = entry, source: str = source, target: str = target, by: int = amount) -> None:
                async with self.n.atomic():
                    await self.n.state("entries").set(entry, by, etag="")
                    await self.n.state("balances").add(source, -by)
                    await self.n.state("balances").add(target, by)

            await operate(self.recorder, "transfer", entry, (source, target, amount), commit)

            async def sums() -> dict[str, int]:
                found = await self.n.state("balances").get_many([f"a{number}" for number in range(ACCOUNTS)])
                return {name: each.value for name, each in found.items() if each.value is not None}

            await operate(self.recorder, "sums", "", None, sums)

    async def events(self) -> None:
        while True:
            stream = self.new()
            for number in range(ROW):
                await self.pause()

                async def emit(stream: str = stream, number: int = number) -> None:
                    data = {"stream": stream, "number": number}
                    await self.n.emit("jepsen.tick", data, key=stream, durable=True)

                await operate(self.recorder, "emit", stream, number, emit)

    async def ordered(self) -> None:
        while True:
            stream = self.new()
            for number in range(ROW):
                await self.pause()

                async def defer(stream: str = stream, number: int = number) -> str:
                    job = await self.n.defer("ledger.ordered", stream, number, key=f"{stream}/{number}", order=stream)
                    return job.id

                await operate(self.recorder, "ordered", stream, number, defer)

    async def locks(self) -> None:
        while True:
            await self.pause()
            name = f"lock{self.rng.randrange(LOCKS)}-{int(time.monotonic() / EPOCH_S / 3)}"
            seconds = self.rng.choice((0.0, 0.05, 0.2, TTL_S))
            if self.rng.random() < 0.8:
                await hold(self.n, self.recorder, name, seconds)
                continue
            key = self.new()

            async def defer(key: str = key, name: str = name, seconds: float = seconds) -> str:
                return (await self.n.defer("ledger.guarded", name, seconds, key=key)).id

            await self.until_known("guarded", key, name, defer)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(self.registers(self.direct))
            for _ in range(3):
                group.create_task(self.registers(self.called))
            for work in (self.tasks, self.transfers, self.events, self.events, self.ordered, self.locks, self.locks):
                group.create_task(work())


class HttpClient(Client):
    """Requests to whichever gateway chance names."""

    def __init__(self, http: aiohttp.ClientSession, urls: list[str], *given: Any) -> None:
        super().__init__(*given)
        self.http = http
        self.urls = urls

    async def request(self, verb: str, path: str, **options: Any) -> Any:
        """The answer's body.

        Raises:
            MeshError: as the problem that was answered.
        """
        async with self.http.request(verb, self.rng.choice(self.urls) + path, **options) as answer:
            found = await answer.json(content_type=None)
            if answer.status < 400:
                return found
        raise from_wire({**found, "message": found.get("detail", "")})

    async def register(self, do: str, key: str, value: Any) -> Any:
        path = f"/register/{key}"
        if do == "read":
            found = await self.request("GET", path)
            return [found["value"], found["etag"]]
        if do == "swap":
            return await self.request("POST", f"{path}/swap", json={"value": value[0], "etag": value[1]})
        if do == "delete":
            return await self.request("POST", f"{path}/remove")
        return await self.request("POST", f"{path}/write", json={"value": value})

    async def tasks(self) -> None:
        while True:
            await self.pause()
            key, (source, target, amount) = self.new(), self.transfer()
            body = {"entry": key, "source": source, "target": target, "amount": amount}

            async def defer(key: str = key, body: dict[str, Any] = body) -> str:
                headers = {"Idempotency-Key": key}
                found = await self.request("POST", "/tasks/ledger/book", json=body, headers=headers)
                return str(found["id"])

            await self.until_known("defer", key, (source, target, amount), defer)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(self.registers(self.register))
            for _ in range(2):
                group.create_task(self.tasks())


async def collect(n: mesh.Node, recorder: Recorder, keys: list[str]) -> None:
    """Wait until no task and no delivery is open, then write down all that is stored."""
    ends_at = time.monotonic() + COLLECT_S
    open_: dict[str, int] = {"?": 1}
    while any(open_.values()):
        queues = await n.durable.engines.of("queues").leases.queues(timeout_s=COLLECT_S)
        open_ = {each.name: each.waiting + each.delayed + each.ready + each.running + each.backlog for each in queues}
        if time.monotonic() > ends_at:
            break  # what is not done by now counts as lost
        await asyncio.sleep(0.2)
    for key in keys:
        await operate(recorder, "read", key, None, _get, n, key)
    final: dict[str, Any] = {
        "done": [],
        "dead": [],
        "entries": [key async for key in n.state("entries").keys("")],
        "balances": {key: value async for key, value in n.state("balances").items()},
        "emit": {key: value async for key, value in n.state("emit").items()},
        "ordered": {key: value async for key, value in n.state("ordered").items()},
    }
    for queue in ("ledger.book", "ledger.ordered", "ledger.guarded", "ledger.heard"):
        if queue != "ledger.heard":
            final["done"] += [[each.key, each.id] for each in await _jobs(n, queue, "done")]
        final["dead"] += [f"{each.key or each.id}: {each.error}" for each in await _jobs(n, queue, "dead")]
    for name, value in final.items():
        recorder.write(Event(time.monotonic(), "final", do=name, value=value))


async def _get(n: mesh.Node, key: str) -> list[Any]:
    return list(await n.state("register").get(key))


async def _jobs(n: mesh.Node, queue: str, status: Status) -> list[mesh.JobInfo]:
    found: list[mesh.JobInfo] = []
    while True:
        after = found[-1].id if found else ""
        page = await n.durable.engines.of("queues").jobs.page(
            queue, status, after=after, limit=2000, timeout_s=COLLECT_S
        )
        if not page:
            return found
        found += page


async def run(options: argparse.Namespace) -> None:
    name = f"{options.name}.{os.getpid()}"
    recorder = Recorder(options.history / f"{name}.jsonl", name)
    given = (recorder, name, options.seed, options.pause)
    settings = options.root / "mesh.toml"
    if options.kind == "http":
        timeout = aiohttp.ClientTimeout(total=1.5)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            await HttpClient(http, options.urls, *given).run()
    elif options.kind == "mesh":
        flags = {"tasks.defer_timeout": "1500ms"}
        async with mesh.connect(path=settings, flags=flags, wait_s=10) as n:
            await MeshClient(n, *given).run()
    else:
        async with mesh.connect(path=settings, wait_s=COLLECT_S) as n:
            await collect(n, recorder, options.keys.read_text().split())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["mesh", "http", "collect"])
    parser.add_argument("--name", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.01, help="mean seconds between two operations of one caller")
    parser.add_argument("--urls", nargs="*", default=[])
    parser.add_argument("--keys", type=Path, help="a file with the keys to read at the end")
    options = parser.parse_args()
    run_until_terminated(run(options))


if __name__ == "__main__":
    main()
