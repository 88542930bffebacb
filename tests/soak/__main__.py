"""`python -m tests.soak --duration 1h`: exit code 0 when nothing grew."""

from __future__ import annotations

import argparse
import sys

from mesh.config.values import read_duration

from .run import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--duration", type=read_duration, default="1h", help='like "15m"; at least "2m"')
    parser.add_argument("--leak", action="store_true", help="also run a service that leaks, to see it found")
    options = parser.parse_args()
    if options.duration < 120:
        parser.error("--duration: in less than 2m everything is still warming up")
    made = soak(options.duration, leak=options.leak)
    print(made.table())
    return 1 if made.grown else 0


if __name__ == "__main__":
    sys.exit(main())
