"""The command: what each part of a mesh costs at so many hosts. docs/scaling.md explains the tables.

Owns: the options.
Leaves to others: everything that is counted (parts) and measured (measure).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict

import msgspec

from benchmarks.scaling.model import Model
from benchmarks.scaling.page import DOCUMENT, fill, tables
from benchmarks.scaling.parts import HUB_BACK_S, SECTIONS, Case, case
from benchmarks.scaling.storm import Storm
from benchmarks.scaling.units import keep, kept
from mesh.telemetry import logs

HOSTS = "10,100,1000"
#: So many agents fit into one process, with a table each.
AGENTS = (100, 200)


def _measured(keeping: bool) -> int:
    # Not before it is asked for: what measures imports more than what counts.
    from benchmarks.scaling.measure import join, measure

    before, now = msgspec.to_builtins(kept()), measure()
    print(f"{'unit':<30} {'kept':>10} {'now':>10}")
    for name, value in msgspec.to_builtins(now).items():
        print(f"{name:<30} {before[name]:>10,.4g} {value:>10,.4g}")
    if keeping:
        keep(now)
    print("\nall come to one hub: its processor time, simulated and real")
    for count in AGENTS:
        storm = Storm(Model(count // 10, workers=10, gateways=0), kept(), spread_s=HUB_BACK_S).run()
        print(f"{count:>4} agents {storm.loop_s + storm.io_s:>8.2f} s {asyncio.run(join(count)):>8.2f} s")
    return 0


def _plain(one: Case) -> dict[str, object]:
    told = {title: {name: write(one) for name, write in rows} for title, rows in SECTIONS.items()}
    return {
        "hosts": one.model.hosts,
        "model": asdict(one.model),
        "scenes": asdict(one.scenes),
        "hub_restarts": asdict(one.hub_back),
        "all_start": asdict(one.all_start),
        "balance": {how: asdict(waits) for how, waits in one.balance.items()},
        "parts": told,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", default=HOSTS, metavar="N,…", help=f"the sizes ({HOSTS})")
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    parser.add_argument("--measure", action="store_true", help="measure the units anew, and show them beside the kept")
    parser.add_argument("--keep", action="store_true", help="with --measure: write them to units.json")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md, too")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        return _measured(chosen.keep)
    try:
        sizes = [int(text) for text in chosen.hosts.split(",")]
    except ValueError:
        parser.error(f"--hosts: {chosen.hosts!r} is not numbers with commas between")
    if not all(1 <= hosts <= 2000 for hosts in sizes):
        parser.error("--hosts: 1 to 2000; a registry of more would not fit a hub, which takes 50,000 records")
    units = kept()
    cases = []
    for hosts in sizes:
        begun = time.monotonic()
        cases.append(case(hosts, units))
        print(f"{hosts} hosts: simulated in {time.monotonic() - begun:.1f} s", file=sys.stderr)
    made = tables(cases)
    if chosen.json:
        print(json.dumps({"benchmark": "scaling", "sizes": [_plain(each) for each in cases]}, indent=2))
    else:
        print("\n\n".join(made.values()))
    if chosen.write:
        DOCUMENT.write_text(fill(DOCUMENT.read_text(), made))
    return 0


if __name__ == "__main__":
    # A hub that is killed in a scene is lost by many; that is no news.
    logs.configure("error")
    sys.exit(main())
