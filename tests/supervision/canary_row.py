"""Two canaries side by side under load, with the default rules: one fails 2 % more, and the other one is good.

    python tests/supervision/canary_row.py                  # 400 requests a second to each; about five minutes
    python tests/supervision/canary_row.py --rate 200 --step-time 30s

Starts a project of its own with two services of three workers each and a gateway, under a real supervisord. The new
release of `bad` fails 2 % of its calls, that of `good` none. Each is released by `mesh roll NAME --canary 5%` as it is
typed, `bad` three times. Prints a line for each roll; exit code 1 when the bad one was not rolled back within 60 s
three times, when more than 1 % of all requests failed, or when the good one was not promoted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from canary_load import Load, load
from supervision_project import Made, Project

WITHIN_S = 60.0
MOST_FAILED = 0.01
TRIES = 3

CODE = """\
import random

import mesh
from mesh import http, rpc

FAILS = {fails}


class Bad(mesh.Service):
    @http.get("/bad/{{name}}")
    @rpc(idempotent=True)
    async def ask(self, name: str) -> str:
        if random.random() < FAILS:
            raise RuntimeError("one of fifty")
        return "{word}, " + name


class Good(mesh.Service):
    @http.get("/good/{{name}}")
    @rpc(idempotent=True)
    async def ask(self, name: str) -> str:
        return "{word}, " + name
"""

SETTINGS = """\
[gateway]
port = {port}
replicas = 1

[services.bad]
class = "svc:Bad"
replicas = 3

[services.good]
class = "svc:Good"
replicas = 3
"""


def write(project: Project, word: str, fails: float) -> None:
    """A release of both services."""
    (project.root / "svc.py").write_text(CODE.format(word=word, fails=fails))


def roll(project: Project, name: str, step_time: str) -> tuple[int, float, dict[str, object]]:
    """`mesh roll NAME --canary 5%`: exit code, seconds, and the last thing that it printed."""
    words = [sys.executable, "-m", "mesh.cli.main", "roll", name, "--canary", "5%", "--step-time", step_time, "--json"]
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=project.root, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    text = done.stderr if done.returncode else done.stdout
    return done.returncode, time.monotonic() - began, json.loads(text.splitlines()[-1])


def share_failed(asked: Load, since: int = 0) -> float:
    answers = asked.answers[since:]
    return sum(status != 200 for _, status, _ in answers) / max(1, len(answers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second to each service")
    parser.add_argument("--step-time", default="20s", help="as of mesh roll")
    options = parser.parse_args()
    patch = pytest.MonkeyPatch()
    held = True
    try:
        with Made(patch) as project:
            write(project, "Hello", 0.0)
            (project.root / "mesh.toml").write_text(SETTINGS.format(port=project.port))
            project.up()
            with (
                load(f"{project.url}/bad/you", options.rate) as bad,
                load(f"{project.url}/good/you", options.rate) as good,
            ):
                time.sleep(3.0)
                for turn in range(1, TRIES + 1):
                    write(project, "Hi", 0.02)
                    before = len(bad.answers)
                    code, seconds, told = roll(project, "bad", options.step_time)
                    failed = share_failed(bad, before)
                    rejected = code == 1 and told["error"]["code"] == "canary_rejected"  # type: ignore[index]
                    print(f"bad, try {turn}: rolled back: {rejected}, after {seconds:.1f} s; {failed:.3%} failed")
                    print(f"  {told['error']['message'] if code else told}")  # type: ignore[index]
                    held = held and rejected and seconds <= WITHIN_S and failed <= MOST_FAILED
                write(project, "Hi", 0.0)
                before = len(good.answers)
                code, seconds, told = roll(project, "good", options.step_time)
                at = good.at_s
                time.sleep(2.0)
            words = good.words(at)
            promoted = code == 0 and set(words) == {"Hi"}
            print(f"good: promoted: {promoted}, after {seconds:.1f} s; {share_failed(good, before):.3%} failed")
            print(f"  {told}")
            both = len(bad.answers) + len(good.answers)
            failed = (share_failed(bad) * len(bad.answers) + share_failed(good) * len(good.answers)) / both
            print(f"all: {both:,} requests, {failed:.3%} failed; {threading.active_count()} thread left")
            held = held and promoted and failed <= MOST_FAILED
    finally:
        patch.undo()
    print("held" if held else "NOT held")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
