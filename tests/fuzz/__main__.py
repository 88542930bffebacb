"""`python -m tests.fuzz --seconds 30 [TARGET …]`: each target by atheris, guided by coverage, for so long.

What it finds is printed with the input, as a line for an `@example` in test_fuzz.py; exit code 0 when it is nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

#: Inputs from which atheris begins: shapes that chance would take long to come to.
SEEDS: dict[str, list[bytes]] = {
    "codec": [b"\x92\x07\x01", b"\x97\x03\x01\xa3a.b\x05\xc4\x01x\x00\x80"],
    "http-binding": [
        b'7\0name=x&ratio=1.5&flags=true\0{"side": "left", "address": {"street": "s"}}',
        b"7\0\0\x81\xa4side\xa4left",
    ],
    "http-headers": [b"2.5", b"text/event-stream;q=0.5, */*", b"application/json; charset=utf-8"],
    "settings": [
        b'[mesh]\nname = "x"\n[services.a]\nclass = "a:A"\nreplicas = 2\n',
        b'[[access.allow]]\ncaller = "a"\nservice = "b*"\n',
    ],
    "values": [b"1h30m", b"64MiB", b"A='b c'\n"],
    "schedule": [b"30 3 * * MON-FRI Europe/Berlin", b"every 15m", b"0 0 L * FRI#2 UTC"],
    "topics": [b"a.*.#\0a.b.c"],
    "store": [b"\x91\x92\xa1u\x91\x93\xa2id\xa3a.b\xc4\x01\x90", b"\x92\xa3a.b\x05"],
}


def fuzz_one(name: str, seconds: int, folder: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["mesh"]):
        from tests.fuzz.targets import TARGETS

    words = [
        sys.argv[0],
        str(folder),
        f"-max_total_time={seconds}",
        "-max_len=2048",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup([*words, f"-artifact_prefix={folder}/found-"], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(SEEDS)}; all unless given")
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.targets) - set(SEEDS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(SEEDS)}")
    if options.inside is not None:
        fuzz_one(options.targets[0], options.seconds, options.inside)
    if find_spec("atheris") is None:
        print("skipped: atheris is not installed (pip install --group fuzz; it has wheels for Linux on x86-64 alone)")
        return 0
    return max([_run(name, options.seconds) for name in options.targets or SEEDS])


def _run(name: str, seconds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as made:
        folder = Path(made)
        for number, seed in enumerate(SEEDS[name]):
            (folder / f"seed-{number}").write_bytes(seed)
        words = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds), "--inside", made]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=seconds + 120)
        found = sorted(folder.glob("found-*"))
        runs = next((line for line in done.stderr.splitlines() if "executed_units" in line), "::? ").split()[-1]
        print(f"{name}: {runs} inputs{', FOUND' if done.returncode else ', nothing found'}", flush=True)
        for file in found:
            print(f"  @example({file.read_bytes()!r})")
        if done.returncode:
            # What it was, above libFuzzer's own words.
            lines = [
                line
                for line in (done.stdout + done.stderr).splitlines()
                if not line.startswith(("==", "INFO", "#", "stat::"))
            ]
            print("  " + "\n  ".join(lines[-25:]))
        return int(bool(done.returncode))


if __name__ == "__main__":
    sys.exit(main())
