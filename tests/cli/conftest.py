"""A small project with a hub and one worker, started with the command line itself, for all tests of this directory."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cli_project import SERVICE, Mesh, command, environment


@pytest.fixture(scope="session")
def project() -> Iterator[Path]:
    """The directory of a project in which a hub and a worker with `greeting` run."""
    # Not pytest's: a unix socket's path has room for 107 characters.
    root = Path(tempfile.mkdtemp(prefix="mesh-cli-"))
    (root / "mesh.toml").write_text("")
    (root / "greet.py").write_text(textwrap.dedent(SERVICE))
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words in (("hub",), ("run", "greet:Greeting")):
            log = (root / f"{words[0]}.log").open("wb")
            started.append(
                subprocess.Popen(
                    command(*words), cwd=root, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            )
            log.close()
        end = time.monotonic() + 20
        while b'"worker.ready"' not in (root / "run.log").read_bytes():
            assert time.monotonic() < end, (root / "run.log").read_text() + (root / "hub.log").read_text()
            assert all(child.poll() is None for child in started), (root / "hub.log").read_text()
            time.sleep(0.05)
        yield root
        for child in reversed(started):
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
    finally:
        for child in started:
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(root)


@pytest.fixture
def mesh(project: Path) -> Mesh:
    """Run one command line in the project and give what it wrote and its exit code."""

    def run(
        *words: str, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words),
            cwd=cwd or project,
            env=environment(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run
