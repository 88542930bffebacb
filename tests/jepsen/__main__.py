"""`python -m tests.jepsen --duration 30m --seed 7`: one run, its table, and the history for `tests.jepsen.check`."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from mesh.config.values import read_duration

from .run import FAULTS, Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jepsen", description=__doc__)
    parser.add_argument("--duration", type=read_duration, default="30m", help='like "30m"')
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--lease", type=read_duration, default="10s", help="store.lease")
    parser.add_argument("--freeze", default="5s-60s", help="the shortest and the longest freeze")
    parser.add_argument("--gap", default="1s-10s", help="the shortest and the longest time between faults")
    parser.add_argument("--pause", type=read_duration, default="10ms", help="mean pause of a caller")
    parser.add_argument("--save", type=Path, help="where to save the history; jepsen-SEED.jsonl unless given")
    parser.add_argument("--logs", type=Path, help="a directory to keep the logs of all processes in")
    options = parser.parse_args()
    faults = [each for each in options.faults.split(",") if each]
    unknown = set(faults) - set(FAULTS)
    if unknown:
        parser.error(f"--faults: no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    plan = Plan(
        seconds=options.duration,
        seed=options.seed,
        faults=faults,
        lease_s=options.lease,
        freeze_s=_range(options.freeze),
        gap_s=_range(options.gap),
        pause_s=options.pause,
    )
    save_to = options.save or Path(f"jepsen-{options.seed}.jsonl")
    print(f"seed {options.seed}, {options.duration:g} s, faults {', '.join(faults) or 'none'}", flush=True)
    report, made = run(plan, save_to, options.logs)
    for fault, why in made.skipped.items():
        print(f"skipped: {fault}: {why}")
    print(report.table())
    print(f"history: {save_to} (judge it again: python -m tests.jepsen.check {save_to})")
    return 0 if report.ok else 1


def _range(text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    return read_duration(first), read_duration(last or first)


if __name__ == "__main__":
    sys.exit(main())
