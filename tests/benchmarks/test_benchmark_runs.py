"""The command itself, short, with the contestants that every installation has."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import peers
from benchmarks.__main__ import main
from benchmarks.children import ROOT


def test_a_short_run_measures_shows_and_writes(tmp_path):
    """One command: a table on stdout, progress on stderr, JSON and page where they were asked for."""
    command = [sys.executable, "-m", "benchmarks", "rpc", "--short", "--only", "raw,zmq_asyncio"]
    written = tmp_path / "figures.json"
    done = subprocess.run(
        [*command, "--json", str(written), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Round trips: 64 callers, small body" in done.stdout
    assert "rpc, round 1 of 1" in done.stderr
    assert "rpc, round 1 of 1" not in done.stdout
    section = json.loads(written.read_text())["sections"]["rpc"]
    assert section["short"]
    for key in ("mesh", "raw", "zmq_asyncio"):
        contestant = section["contestants"][key]
        assert set(contestant["loads"]) == {"small-1", "small-64", "small-1000", "big-1", "big-8"}
        for figures in contestant["loads"].values():
            assert 0 < figures["p50_us"] <= figures["p99_us"]
            assert figures["calls_per_s"] > 1
    assert "raw coalesced loop" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("part", ["peers", "publishers", "queues"])
def test_contestants_without_their_libraries_can_still_be_named(part):
    """Their files import nothing that may be missing, and say what brings it."""
    script = (
        "import sys\n"
        "for name in ('zmq', 'grpc', 'nats', 'aiozmq', 'zero', 'mesh', 'aio_pika', 'redis', 'celery', 'taskiq'):\n"
        "    sys.modules[name] = None\n"
        f"from benchmarks.{part} import ROSTER\n"
        "assert ROSTER.keys[0] == 'mesh'\n"
        "for key, peer in zip(ROSTER.keys, ROSTER.peers(), strict=True):\n"
        "    assert peer.key == key and peer.title and peer.how and peer.install, key\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=20)


def test_what_is_missing_is_found_by_name(tmp_path):
    """Modules, programs and files alike."""
    peer = peers.Peer(
        key="x",
        title="x",
        how="",
        modules=("json", "no_such_module"),
        programs=("sh", "no-such-program"),
        files=(tmp_path, tmp_path / "no-such-file"),
    )
    assert peer.missing() == ["no_such_module", "no-such-program", "no-such-file"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rcp"], "'rcp' is no part"),
        (["rpc", "--only", "nats"], "'nats' is no contestant"),
        (["--rounds", "0"], "--rounds is at least 1"),
        (["--seconds", "0"], "--seconds between"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_allowed(arguments, words, capsys):
    """Before anything is started."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
