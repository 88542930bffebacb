"""What stands in supervisord.conf itself is rolled like the rest: hub, store, and whatever else is there."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervision_project import until

import mesh
from mesh.deploy import processes as crews
from mesh.deploy import static_programs
from mesh.deploy.roll import roll
from mesh.deploy.scale import scale
from mesh.errors import Unavailable
from mesh.supervisord import layout as layouts

TICKING = """
[program:ticking]
command=sleep 1000
numprocs=2
process_name=%(program_name)s_%(process_num)d
priority=95
"""


@pytest.fixture
def project(running) -> Iterator:
    """The running set; each test leaves it as it was."""
    before = running.pids()
    yield running
    assert sorted(running.pids()) == sorted(before)
    assert set(running.states().values()) == {"RUNNING"}
    assert not list((running.run / "programs").glob("*.pin.conf"))


def rolled(project, *names: str):
    return asyncio.run(roll(project.layout, project.settings, names, settle_s=0.0))


def changed(project, before: dict[str, int]) -> list[str]:
    return [name for name, pid in project.pids().items() if before.get(name) != pid]


class Writer:
    """Writes state all the while, from a thread of its own."""

    def __init__(self, project) -> None:
        self.written = self._last = 0
        self.error: BaseException | None = None
        self._path = project.root / "mesh.toml"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            asyncio.run(self._write())
        except BaseException as exc:  # told by the test's own thread
            self.error = exc

    async def _write(self) -> None:
        async with mesh.connect(path=self._path, wait_s=10.0) as n:
            counts = n.state("counts")
            while not self._over.is_set():
                value = await counts.add("written")
                assert value == (self._last or value - 1) + 1
                self._last, self.written = value, self.written + 1

    def __enter__(self) -> Writer:
        self._thread.start()
        until(lambda: self.written or self.error)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


def test_the_store_hands_over_and_every_write_counts_once(project):
    """Another waits for the folder before the old one leaves, and again before that one does; then it is gone."""
    before = project.pids()
    with Writer(project) as writer:
        (done,) = rolled(project, "store")
        seen = writer.written
        until(lambda: writer.written > seen + 5 or writer.error)
    assert (done.name, done.replaced) == ("store", 1)
    assert changed(project, before) == ["store"]
    for log in ("store", "store_spare"):
        assert '"store.waiting"' in (project.root / f"logs/{log}.log").read_text()
    assert not (project.root / "data/next.pid").exists()
    assert "No config updates" in project.command("supervisorctl", "reread").stdout


#: `mesh roll store` that is killed as soon as its spare store answers.
ROLL_THAT_DIES = """
import os, signal, sys
from mesh.cli.main import main
from mesh.deploy.store_handover import StoreRelay

answers = StoreRelay.answer

async def answer(self, names):
    await answers(self, names)
    os.kill(os.getpid(), signal.SIGKILL)

StoreRelay.answer = answer
sys.argv = ["mesh", "roll", "store"]
main()
"""


def test_a_roll_that_is_killed_in_the_middle_is_mended_by_up(project):
    """With a spare store that has the folder, and the program itself stopped."""
    died = subprocess.run(
        [sys.executable, "-c", ROLL_THAT_DIES], cwd=project.root, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert died.returncode == -signal.SIGKILL
    states = project.states()
    assert states["store"] == "STOPPED"
    assert states["store_spare"] in ("STARTING", "RUNNING")
    up = project.up()
    assert not up.already
    assert up.earlier == []
    with Writer(project):
        pass


def test_the_hub_is_restarted_by_name(project):
    """And a name that nobody has is told with the nearest."""
    before = project.pids()
    (done,) = rolled(project, "hub")
    assert done.replaced == 1
    assert changed(project, before) == ["hub"]
    told = project.command("mesh", "roll", "hubb", check=False)
    assert (told.returncode, '"hub"?' in told.stderr) == (1, True)


def test_without_a_hub_nothing_is_changed(project, monkeypatch: pytest.MonkeyPatch):
    """Nobody could say what is ready: that is told at once, and not after a replacement's whole patience."""
    monkeypatch.setattr(crews, "HUB_S", 0.2)
    before = {name: pid for name, pid in project.pids().items() if name != "hub"}
    project.command("supervisorctl", "stop", "hub")
    for change in (
        lambda: rolled(project),
        lambda: asyncio.run(scale(project.layout, project.settings, {"greeting": 3})),
    ):
        with pytest.raises(Unavailable, match=r"ipc://"):
            change()
    assert {name: pid for name, pid in project.pids().items() if name != "hub"} == before
    project.up()


def test_a_program_comes_and_goes_with_supervisord_conf(project):
    """One that is new in it is started, in all its processes; it is replaced by name; one that is gone leaves."""
    conf = project.root / "supervisord.conf"
    text = conf.read_text()
    conf.write_text(text + TICKING)
    rolled(project, "ticking")
    names = ["ticking:ticking_0", "ticking:ticking_1"]
    before = project.pids()
    assert [name for name in before if name.startswith("ticking")] == names
    rolled(project, "ticking")
    assert changed(project, before) == names
    conf.write_text(text)
    rolled(project)
    assert not [name for name in project.pids() if name.startswith("ticking")]


def test_a_pin_says_what_the_release_says(tmp_path: Path):
    """Its own directory and command, and every other key; supervisor reads it as it was meant."""
    release = tmp_path / "releases" / "a b"
    (release / ".venv/bin").mkdir(parents=True)
    (release / ".venv/bin/mesh").touch()
    (release / "supervisord.conf").write_text(
        "[unix_http_server]\nfile=%(here)s/s\n[program:hub]\ncommand=mesh hub --endpoint tcp://127.0.0.1:7\n"
        'directory=%(here)s\nstopwaitsecs=12\nenvironment=A="1",\n  B="%(here)s"\n'
    )
    (program,) = layouts.read(release / "supervisord.conf").programs
    text = static_programs.section(program, release)
    here = str(release)
    assert static_programs.release_of(text) == here
    assert text.splitlines()[1:] == [
        "[program:hub]",
        f"command='{here}/.venv/bin/mesh' hub --endpoint tcp://127.0.0.1:7",
        f"directory={here}",
        "stopwaitsecs=12",
        'environment=A="1",',
        f'  B="{here}"',
    ]
