"""Short-lived clients, thousands of them: what hub and worker hold afterwards.

    python -m tests.chaos.churn --clients 20000                    # make churn
    python -m tests.chaos.churn --clients 2000 --link curve

Starts a hub, a store, a worker and a gateway as tests.chaos.hostile does. Each client joins the mesh as
`mesh.connect()` does, calls the worker, and leaves. The memory of each process after a tenth of the clients is compared
with that at the end. Exit code 1 when one of them grew by more than `--tolerance`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import mesh
from mesh.config import load

from .hostile import Victims, victims

WATCHED: Final = ("hub", "worker", "gateway", "store")
#: Processes that make clients, and clients that each of them makes at once.
MAKERS: Final = 2
AT_ONCE: Final = 8
#: What was freed is given back a little later than the last client has left.
SETTLE_S: Final = 4.0


async def _clients(toml: Path, count: int) -> None:
    settings = load(toml, env={})
    left = iter(range(count))

    async def one_by_one() -> None:
        for _ in left:
            async with mesh.connect(settings=settings) as n:
                await n.call("victim.echo", "x" * 1000, timeout=20.0)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_by_one())


def _make(toml: str, count: int) -> None:
    asyncio.run(_clients(Path(toml), count))


def come_and_go(made: Victims, count: int) -> dict[str, float]:
    """So many clients, one after the other; what each process holds afterwards, in MB."""
    context = multiprocessing.get_context("spawn")
    toml = str(made.root / "mesh.toml")
    makers = [context.Process(target=_make, args=(toml, count // MAKERS)) for _ in range(MAKERS)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"a process that makes clients ended with {maker.exitcode}")
    time.sleep(SETTLE_S)
    return {name: made.memory_mb(name) for name in WATCHED}


def measure(link: str, clients: int) -> dict[str, tuple[float, float]]:
    """Process -> MB after the first tenth of the clients, and after all of them."""
    with victims(link) as made:
        warm = come_and_go(made, max(MAKERS, clients // 10))
        held = come_and_go(made, clients - clients // 10)
        return {name: (warm[name], held[name]) for name in WATCHED}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.churn", description=__doc__)
    parser.add_argument("--clients", type=int, default=20_000)
    parser.add_argument("--link", choices=("ipc", "curve"), default="ipc")
    parser.add_argument("--tolerance", type=float, default=0.10)
    options = parser.parse_args(argv)
    good = True
    for name, (warm, held) in measure(options.link, options.clients).items():
        print(f"{options.link:5} {name:8} {warm:6.1f} MB, then {held:6.1f} MB: {held / warm - 1:+.1%}", flush=True)
        good = good and held <= warm * (1 + options.tolerance)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
