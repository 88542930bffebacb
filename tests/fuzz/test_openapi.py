"""Requests by chance from the mesh's own OpenAPI document, against a running set: it says what mesh does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install --group test")

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SETTINGS = '[mesh]\nrun_dir = "{root}/run"\nlog_dir = "{root}/logs"\n[store]\ndir = "{root}/data"\n'


#: Everything that protects the edge, and changes answers.
EDGE = """
[gateway]
etag = true
origins = ["https://app.example"]
max_json_depth = 20
[gateway.cors]
credentials = true
[gateway.headers]
secure = true
extra = ["X-Robots-Tag: noindex"]
[gateway.compression]
codings = ["zstd", "br", "gzip"]
minimum = "1B"
"""


@pytest.fixture
def shop(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a gateway before a hub, a store and a worker, as processes of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        root = Path(folder)
        for name in ("run", "logs", "data"):
            (root / name).mkdir(mode=0o700)
        (root / "mesh.toml").write_text(SETTINGS.format(root=root) + getattr(request, "param", ""))
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        env["PYTHONPATH"] = str(ROOT)
        commands = (["hub"], ["store"], ["run", "tests.fuzz.shop:Shop"], ["gateway", "--port", str(port)])
        with (root / "logs/all").open("w") as log:
            processes = [
                subprocess.Popen(
                    [BIN / "mesh", *words], cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
                for words in commands
            ]
        try:
            _wait(f"http://127.0.0.1:{port}/openapi.json", b"/items/{id}")
            yield f"http://127.0.0.1:{port}"
            assert [process.poll() for process in processes] == [None] * 4, (root / "logs/all").read_text()
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            for process in reversed(processes):
                process.wait(20)


def _wait(url: str, wanted: bytes) -> None:
    """Until the gateway has heard of the service."""
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if wanted in answer.read():
                    return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise AssertionError(f"{url} does not tell of {wanted.decode()}")


#: Which options of a defer exclude each other, and the longest time, are nothing that a document can say.
TASKS = "^/(tasks|jobs)/"


def judged(shop: str, folder: Path, *options: str) -> list[int]:
    """How many operations passed in each phase; fails with what Schemathesis found."""
    words = [BIN / "schemathesis", "run", f"{shop}/openapi.json", "--checks", "all"]
    words += ["--phases", "coverage,fuzzing", "--max-examples", "3", "--seed", "1", "--no-color"]
    words += ["--generation-database", "none", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    return [int(count) for count in re.findall(r"(\d+) passed$", done.stdout, re.MULTILINE)]


@pytest.mark.timeout(180)
def test_the_document_says_what_mesh_does(shop: str, tmp_path: Path) -> None:
    """All checks of Schemathesis: no 5xx, no status or type that is not declared, nothing valid refused, nothing else
    accepted."""
    passed = judged(shop, tmp_path, "--exclude-path-regex", TASKS)
    # Every operation, in both phases; a document that was read too early has fewer.
    assert len(passed) >= 2
    assert min(passed) >= 14


@pytest.mark.timeout(180)
@pytest.mark.parametrize("shop", [EDGE], indirect=True, ids=["edge"])
def test_the_document_holds_with_the_edge_on(shop: str, tmp_path: Path) -> None:
    """CORS, security headers, compression of every body, ETags, and conditional requests and ranges."""
    headers = ("--header", "Origin: https://app.example", "--header", "Accept-Encoding: gzip, deflate, br")
    passed = judged(shop, tmp_path, "--exclude-path-regex", TASKS, *headers, "--header", 'If-None-Match: "x"')
    assert len(passed) >= 2
    assert min(passed) >= 14


@pytest.mark.timeout(180)
def test_tasks_and_jobs_answer_as_the_document_says(shop: str, tmp_path: Path) -> None:
    """The same for these, without the two checks that ask which values are accepted."""
    free = "negative_data_rejection,positive_data_acceptance"
    passed = judged(shop, tmp_path, "--include-path-regex", TASKS, "--exclude-checks", free)
    assert len(passed) >= 2
    assert min(passed) >= 3
