"""A gateway with rate limits in a process of its own: `edge_rates_process.py RUN_DIR [KEY=VALUE …]`.

Prints its address once it listens. Takes the caller from the header X-Caller. ASK_S is how long it waits for an owner.
"""

from __future__ import annotations

import sys

from edge_rates_front import authentication

from mesh import config
from mesh.cli import loop
from mesh.gateway import app
from mesh.gateway.edge import concurrency, rate_peers, rates, registry


def main() -> None:
    registry.CONCERNS = (rates.by_address, authentication, rates.by_caller, concurrency.make)  # type: ignore[misc]
    flags: dict[str, object] = {"mesh.run_dir": sys.argv[1], "gateway.drain": "1s"}
    flags |= dict(each.split("=", 1) for each in sys.argv[2:])
    rate_peers.ASK_S = float(str(flags.pop("ASK_S", rate_peers.ASK_S)))  # type: ignore[misc]
    settings = config.load(env={}, flags=flags)
    loop.run(app.serve(settings, port=0, started=lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main()
