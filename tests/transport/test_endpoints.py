"""Endpoints are read strictly, the run directory is private, and an ipc path has one live owner at most."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import AddressInUse, BadEndpoint, SetupError
from mesh.transport import endpoints
from mesh.transport.endpoints import Claim, Endpoint, parse

# --- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ipc:///run/mesh/w-1.sock", Endpoint("ipc", "/run/mesh/w-1.sock")),
        ("tcp://127.0.0.1:5555", Endpoint("tcp", "127.0.0.1", 5555)),
        ("tcp://*:5555", Endpoint("tcp", "*", 5555)),
        ("tcp://node-1.example:*", Endpoint("tcp", "node-1.example", None)),
        ("tcp://[::1]:65535", Endpoint("tcp", "[::1]", 65535)),
        ("mem://w-1", Endpoint("mem", "w-1")),
    ],
)
def test_an_endpoint_is_taken_apart_and_put_together_again(text, expected):
    """Each kind comes back as it was written."""
    assert parse(text) == expected
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "tcp://host:port"),
        ("nonsense", "tcp://host:port"),
        ("udp://127.0.0.1:1", "'udp'"),
        ("ipc://", "ipc:///directory/name.sock"),
        ("ipc://run/x.sock", "ipc:///directory/name.sock"),
        ("ipc://@abstract", "ipc:///directory/name.sock"),
        ("ipc:///run/", "ipc:///directory/name.sock"),
        ("ipc:///run/a\tb.sock", "tcp://host:port"),
        ("ipc:///run/a\0b", "tcp://host:port"),
        ("tcp://local host:80", "tcp://host:port"),
        ("mem://a b", "mem://name"),
        ("tcp://127.0.0.1", "tcp://host:port"),
        ("tcp://:80", "tcp://host:port"),
        ("tcp://::1:80", r"\[::1\]"),
        ("tcp://127.0.0.1:", "1–65535"),
        ("tcp://127.0.0.1:0", "1–65535"),
        ("tcp://127.0.0.1:65536", "1–65535"),
        ("tcp://127.0.0.1:-1", "'-1'.*1–65535"),
        ("tcp://127.0.0.1:80a", "'80a'.*1–65535"),
        ("tcp://127.0.0.1:٣", "1–65535"),
        ("mem://", "mem://name"),
    ],
)
def test_a_malformed_endpoint_is_named_with_its_mend(text, says):
    """The error shows the endpoint, what is wrong with it, and the form to write."""
    with pytest.raises(BadEndpoint, match=says) as caught:
        parse(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:*", "tcp://*:80"])
def test_a_wildcard_cannot_be_dialled(text):
    """A place to listen on is not always one to connect to."""
    parse(text)
    with pytest.raises(BadEndpoint, match=re.escape(repr(text))):
        parse(text, dialling=True)


def test_an_ipc_path_has_107_bytes_at_most():
    """The limit counts bytes, not characters, and the error names limit and mend."""
    longest = "/" + "x" * 106
    assert parse(f"ipc://{longest}").address == longest
    for path in (longest + "x", "/" + "ö" * 54):
        with pytest.raises(BadEndpoint, match=r"10[89].*107.*mesh\.run_dir"):
            parse(f"ipc://{path}")
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        path = os.path.join(directory, "x" * (endpoints.IPC_PATH_BYTES - len(directory) - 1))
        with socket.socket(socket.AF_UNIX) as real:
            real.bind(path)  # the operating system agrees


# --- the run directory -------------------------------------------------------------------------------


def test_the_run_directory_is_made_private(tmp_path):
    """It is made with its parents, for its owner alone; making it again changes nothing."""
    run_dir = tmp_path / "a" / "run"
    assert endpoints.ensure_run_dir(run_dir) == run_dir
    assert run_dir.stat().st_mode & 0o777 == 0o700
    endpoints.ensure_run_dir(run_dir)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_run_directory_that_others_may_write_is_refused(tmp_path, mode):
    """Who may write there may put a socket of his own in place of ours."""
    tmp_path.chmod(mode)
    with pytest.raises(SetupError, match=f"chmod 700 {tmp_path}"):
        endpoints.ensure_run_dir(tmp_path)


def test_a_run_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    """Its owner could exchange what is in it."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SetupError, match=r"mesh\.run_dir"):
        endpoints.ensure_run_dir(tmp_path)


def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path):
    """A file in the way is said plainly."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SetupError, match=r"set mesh\.run_dir"):
            endpoints.ensure_run_dir(path)


# --- claims ------------------------------------------------------------------------------------------

#: A process that claims a path, listens there, and says so; it lives until its stdin ends or it is killed.
OWNER = """
import socket, sys
from mesh.errors import AddressInUse
from mesh.transport.endpoints import Claim
try:
    claim = Claim.take(sys.argv[1])
except AddressInUse as exc:
    print("refused", exc.details.get("pid"), flush=True)
else:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        print("claimed", flush=True)
        sys.stdin.read()
    claim.release()
"""


class Owner:
    """A child process that runs OWNER."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        if self.process.returncode is None:
            self.process.communicate()


@pytest.fixture
def owners() -> Iterator[list[Owner]]:
    started: list[Owner] = []
    yield started
    for owner in started:
        owner.leave()
        for pipe in (owner.process.stdin, owner.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        yield Path(directory)


@pytest.fixture
def path(run_dir) -> str:
    return str(run_dir / "w-1.sock")


def stale_socket(path: str | Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_a_claim_leaves_nothing_behind(path, run_dir):
    """Released, the socket and the lock are gone, and the path may be claimed anew; releasing twice is harmless."""
    for _ in range(2):
        claim = Claim.take(path)
        stale_socket(path)
        claim.release()
        claim.release()
        assert list(run_dir.iterdir()) == []
    with endpoints.claimed(path):
        assert [entry.name for entry in run_dir.iterdir()] == ["w-1.sock.lock"]
    assert list(run_dir.iterdir()) == []


def test_a_path_is_claimed_once_in_one_process(path):
    """The second listener of a process is refused like any other, and the first keeps its claim."""
    with endpoints.claimed(path):
        for _ in range(2):
            with pytest.raises(AddressInUse, match=rf"\b{os.getpid()}\b") as caught:
                Claim.take(path)
            assert caught.value.details == {"pid": os.getpid()}


def test_a_live_owner_is_named(path, owners):
    """The error says which process to look at, and its socket still answers."""
    owners.append(Owner(path))
    assert owners[0].says() == "claimed"
    with pytest.raises(AddressInUse, match=rf"\b{owners[0].pid}\b"):
        Claim.take(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_the_path_of_a_killed_owner_is_taken(path, owners):
    """kill -9 leaves socket and lock file behind; the next claim removes the one and takes the other."""
    owners.append(Owner(path))
    assert owners[0].says() == "claimed"
    owners[0].kill()
    assert os.path.exists(path)
    with endpoints.claimed(path):
        assert not os.path.exists(path)
        assert Path(path + ".lock").read_text() == f"{os.getpid()}\n"


def test_of_many_that_come_at_once_one_wins(path, owners):
    """Eight processes race for the path of a dead owner: one claims it, and the others are told who did."""
    owners.append(Owner(path))
    owners[0].says()
    owners[0].kill()
    racers = [Owner(path) for _ in range(8)]
    owners.extend(racers)
    answers = {racer.pid: racer.says() for racer in racers}
    winners = [pid for pid, answer in answers.items() if answer == "claimed"]
    assert len(winners) == 1
    losers = {answer for answer in answers.values() if answer != "claimed"}
    # Who loses in the moment between lock and pid is told of the dead owner or of nobody yet.
    assert losers <= {f"refused {winners[0]}", "refused None", f"refused {owners[0].pid}"}


def test_claims_and_releases_never_overlap(path):
    """Threads that take and release without pause: never two holders, though the lock file comes and goes."""
    holders: list[int] = []
    overlaps: list[int] = []
    taken = threading.Semaphore(0)
    end = threading.Event()

    def contend() -> None:
        while not end.is_set():
            try:
                claim = Claim.take(path)
            except AddressInUse:
                continue
            holders.append(1)
            if len(holders) > 1:
                overlaps.append(1)
            holders.pop()
            claim.release()
            taken.release()

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    enough = all(taken.acquire(timeout=20) for _ in range(300))
    end.set()
    for thread in threads:
        thread.join()
    assert enough
    assert not overlaps


def test_a_lock_file_that_was_replaced_is_no_longer_a_lock(path, monkeypatch):
    """Who locks the file of an owner that just released it must take the new file instead."""
    first = Claim.take(path)
    real = endpoints.fcntl.flock
    calls = []

    def flock(fd: int, how: int) -> None:
        if not calls:
            first.release()  # between the other's open and its lock
            Path(path + ".lock").touch()
        calls.append(fd)
        real(fd, how)

    monkeypatch.setattr(endpoints.fcntl, "flock", flock)
    second = Claim.take(path)
    assert len(calls) == 2
    monkeypatch.undo()
    with pytest.raises(AddressInUse):
        Claim.take(path)
    second.release()


def test_a_stale_socket_without_a_lock_is_removed(path):
    """A socket on which nobody listens stands in nobody's way."""
    stale_socket(path)
    with endpoints.claimed(path):
        assert not os.path.exists(path)


def test_a_listener_without_a_claim_is_not_stolen_from(path, run_dir):
    """A socket that answers is alive, whoever made it; no lock file is left by the attempt."""
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(path)
        foreign.listen()
        with pytest.raises(AddressInUse, match="ipc://"):
            Claim.take(path)
        assert [entry.name for entry in run_dir.iterdir()] == ["w-1.sock"]


def test_a_file_in_the_way_is_not_deleted(path):
    """What is no socket is somebody's data."""
    Path(path).write_text("precious")
    with pytest.raises(BadEndpoint, match="ipc://"):
        Claim.take(path)
    assert Path(path).read_text() == "precious"
    assert not os.path.exists(path + ".lock")


def test_a_path_in_a_missing_directory_is_refused(run_dir):
    """The error names the path and the mend."""
    with pytest.raises(BadEndpoint, match=r"mesh\.run_dir"):
        Claim.take(run_dir / "absent" / "w-1.sock")


def test_a_symbolic_link_for_a_lock_is_refused(path, run_dir):
    """A planted link would let us write into another file."""
    (run_dir / "target").write_text("precious")
    os.symlink(run_dir / "target", path + ".lock")
    with pytest.raises(BadEndpoint):
        Claim.take(path)
    assert (run_dir / "target").read_text() == "precious"


def test_a_forked_child_does_not_release_its_parent_s_claim(path):
    """A child that inherits the claim and ends leaves socket and lock in place."""
    with endpoints.claimed(path) as claim:
        stale_socket(path)
        child = os.fork()
        if child == 0:
            claim.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.exists(path)
        with pytest.raises(AddressInUse):
            Claim.take(path)


def test_no_descriptor_is_leaked(path):
    """Taken, refused, released: as many open files as before."""
    before = len(os.listdir("/proc/self/fd"))
    with endpoints.claimed(path), pytest.raises(AddressInUse):
        Claim.take(path)
    Path(path).touch()
    with pytest.raises(BadEndpoint):
        Claim.take(path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- the sweep ---------------------------------------------------------------------------------------


def test_the_sweep_removes_what_the_dead_left(run_dir, owners):
    """Sockets and locks of dead owners go; those of the living, and those that mesh did not make, stay."""
    dead, alive, unbound = (str(run_dir / name) for name in ("dead.sock", "alive.sock", "unbound.sock"))
    owners += [Owner(dead), Owner(alive)]
    assert [owner.says() for owner in owners] == ["claimed", "claimed"]
    owners[0].kill()
    Path(unbound + ".lock").touch()  # killed between its claim and its bind
    stale_socket(run_dir / "supervisor.sock")
    (run_dir / "notes.txt").touch()
    assert endpoints.sweep(run_dir) == [Path(dead), Path(unbound)]
    assert sorted(entry.name for entry in run_dir.iterdir()) == [
        "alive.sock",
        "alive.sock.lock",
        "notes.txt",
        "supervisor.sock",
    ]
    assert endpoints.sweep(run_dir) == []


def test_the_sweep_of_a_missing_directory_finds_nothing(run_dir):
    """Before the first start there is nothing to clean."""
    assert endpoints.sweep(run_dir / "absent") == []


# --- keys ---------------------------------------------------------------------------------------------

KEY = "0123456789abcdef" * 4


def test_a_tcp_endpoint_may_say_whose_it_is():
    """The key stands behind it, and what libzmq is told is without."""
    found = parse(f"tcp://10.0.0.1:4000?key={KEY}", dialling=True)
    assert (found.address, found.port, found.key) == ("10.0.0.1", 4000, KEY)
    assert str(found) == f"tcp://10.0.0.1:4000?key={KEY}"
    assert found.where == "tcp://10.0.0.1:4000"
    assert parse(f"tcp://[::1]:4000?key={KEY}").where == "tcp://[::1]:4000"
    assert parse("tcp://10.0.0.1:4000").key == ""


@pytest.mark.parametrize("key", ["", "12", KEY.upper(), KEY[:-1], KEY + "0", KEY + "?key=" + KEY, "g" * 64])
def test_a_malformed_key_is_refused(key: str):
    """Without it the endpoint would be somebody else's."""
    with pytest.raises(BadEndpoint, match="64"):
        parse(f"tcp://10.0.0.1:4000?key={key}")


@pytest.mark.parametrize(
    ("text", "exposed"),
    [
        ("ipc:///run/x.sock", False),
        ("mem://x", False),
        ("tcp://127.0.0.1:1", False),
        ("tcp://127.9.9.9:*", False),
        ("tcp://[::1]:1", False),
        ("tcp://localhost:1", False),
        ("tcp://lo:*", False),
        ("tcp://0.0.0.0:1", True),
        ("tcp://*:1", True),
        ("tcp://[::]:1", True),
        ("tcp://192.168.1.1:1", True),
        ("tcp://eth0:1", True),
        ("tcp://host-1:1", True),
        ("tcp://localhost.example:1", True),
    ],
)
def test_what_other_hosts_may_reach(text: str, exposed: bool):
    """Whatever is not surely this host's own."""
    assert parse(text).exposed is exposed
