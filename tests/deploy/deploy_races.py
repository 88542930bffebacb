"""Deployments that meet, and hosts that lose their power in the middle of one; as a command, as often as is asked for.

    python -m tests.deploy.deploy_races --meet 20 --power 20

Tests run it in short.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import tempfile
import time
from pathlib import Path

from .deploy_project import Deployment, Project


def meet(deployment: Deployment, other: Project, number: int, apart_s: float) -> str:
    """Two deployments of different releases, of which the second begins a little later; what each reported.

    Whatever happened: `current`, what runs, and what the later one of those that succeeded reported are the same.
    """
    deployment.project.says(f"One{number}")
    other.says(f"Two{number}")
    first = deployment.begin("deploy")
    time.sleep(apart_s)
    second = deployment.begin("deploy", mesh_project=str(other.root))
    ended = {}
    for name, running in (("One", first), ("Two", second)):
        out, err = running.communicate(timeout=240)
        assert running.returncode in (0, 2), out + err
        ended[name] = running.returncode, out
    agreed(deployment)
    word = re.match(r"(One|Two)", deployment.get("/hello/ujun"))
    assert word is not None
    assert ended[word[1]][0] == 0, f"{word[1]} runs, and its deployment reported a failure:\n{ended[word[1]][1]}"
    # Both waited for each other, so both went live, one after the other.
    assert [code for code, _ in ended.values()] == [0, 0], ended
    return f"both went live, {word[1]} last"


def power(deployment: Deployment, number: int, after_s: float) -> str:
    """A host that loses its power some time after a deployment began; it starts again, and is deployed to again."""
    before = deployment.current
    deployment.project.says(f"Powerful{number}")
    running = deployment.begin("deploy")
    time.sleep(after_s)
    ended = running.poll() is not None
    deployment.lose_power()
    running.communicate(timeout=60)
    found = deployment.current
    assert found, f"{before} was current, and now none is"
    # As the unit does when the machine starts.
    deployment.mesh("up")
    agreed(deployment)
    done = deployment.play("deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    agreed(deployment)
    assert deployment.get("/hello/ujun") == f"Powerful{number}, ujun!"
    return f"{after_s:.1f} s: " + (
        "after the end" if ended else "before the link" if found == before else "after the link"
    )


def agreed(deployment: Deployment) -> None:
    """Whatever runs is of the current release, and answers."""
    until = time.monotonic() + 10
    while deployment.running != {deployment.current} and time.monotonic() < until:
        time.sleep(0.1)
    assert deployment.running == {deployment.current}
    deployment.get("/hello/ujun")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meet", type=int, default=0, help="how often two deployments meet")
    parser.add_argument("--power", type=int, default=0, help="how often the power is lost")
    parser.add_argument("--build", type=Path, default=Path(tempfile.gettempdir()) / "mesh-deploy-build")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="mesh-"))
    asked.build.mkdir(exist_ok=True)
    deployment = Deployment(root, asked.build)
    try:
        other = Project(root / "other")
        done = deployment.play("deploy")
        assert done.returncode == 0, done.stdout + done.stderr
        for number in range(asked.meet):
            print("meet", number, meet(deployment, other, number, random.uniform(0, 6)), flush=True)
        for number in range(asked.power):
            print("power", number, power(deployment, number, random.uniform(0, 16)), flush=True)
    finally:
        deployment.end()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
