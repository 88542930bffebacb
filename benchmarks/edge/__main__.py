"""`python -m benchmarks.edge NAME`; `upload 5` sends 5 GB instead of 2."""

import importlib
import sys

NAMES = ("sockets", "upload", "asgi", "auth")

if not 2 <= len(sys.argv) <= 3 or sys.argv[1] not in NAMES or (len(sys.argv) == 3 and sys.argv[1] != "upload"):
    raise SystemExit(f"usage: python -m benchmarks.edge {'|'.join(NAMES)}, or upload GB")
importlib.import_module(f"benchmarks.edge.{sys.argv[1]}").main()
