"""`python -m benchmarks.edge NAME`."""

import importlib
import sys

NAMES = ("sockets", "upload", "asgi", "auth")

if len(sys.argv) != 2 or sys.argv[1] not in NAMES:
    raise SystemExit(f"usage: python -m benchmarks.edge {'|'.join(NAMES)}")
importlib.import_module(f"benchmarks.edge.{sys.argv[1]}").main()
