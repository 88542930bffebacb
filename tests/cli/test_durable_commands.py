"""`mesh defer`, `tasks`, `jobs`, `events` and `state`, against a hub, a store and a worker of their own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_project import command, environment

SHOP = '''
import mesh
from mesh import on, task


class Shop(mesh.Service):
    """Sells things."""

    name = "shop"

    @task(retries=0)
    async def charge(self, order: str, amount: int = 1) -> dict[str, int]:
        if order == "bad":
            raise ValueError("no such order")
        await self.state("ledger").set(order, {"amount": amount})
        await self.emit("order.charged", {"order": order}, key=order, durable=True)
        return {"amount": amount}

    @on("order.*", durable=True)
    async def audit(self, event: mesh.Event) -> None:
        await self.state("audit").add(event.topic)
'''

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shop() -> Iterator[Path]:
    """A project's directory in which hub, store and one worker run."""
    root = Path(tempfile.mkdtemp(prefix="mesh-cli-"))
    (root / "mesh.toml").write_text("")
    (root / "shop.py").write_text(textwrap.dedent(SHOP))
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words in (("hub",), ("store",), ("run", "shop:Shop")):
            with (root / f"{words[0]}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        command(*words), cwd=root, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
                    )
                )
        end = time.monotonic() + 20
        while not all(b'"worker.ready"' in (root / f"{name}.log").read_bytes() for name in ("store", "run")):
            assert time.monotonic() < end, [log.read_text() for log in root.glob("*.log")]
            time.sleep(0.05)
        yield root
        for child in reversed(started):
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
    finally:
        for child in started:
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(root)


@pytest.fixture
def run(shop: Path) -> Run:
    def one(*words: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*words), cwd=shop, env=environment(), input=stdin, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return one


def test_a_task_is_deferred_waited_for_and_shown(run: Run) -> None:
    """The id on stdout, for scripts; --wait shows the answer; jobs show tells the same later."""
    done = run("defer", "shop.charge", "order=o1", "amount=3", "--wait", "10s")
    assert "done" in done.stdout
    assert '{"amount":3}' in done.stdout
    id = run("defer", "shop.charge", "o2", "--key", "o2").stdout.strip()
    assert run("defer", "shop.charge", "o2", "--key", "o2").stdout.strip() == id
    shown = json.loads(run("jobs", "show", id, "--wait", "10s", "--json").stdout)
    assert (shown["status"], shown["result"], shown["arguments"]) == ("done", {"amount": 1}, ["o2"])


def test_a_delayed_job_is_cancelled(run: Run) -> None:
    """It never runs; an id that nobody knows is refused by name."""
    id = run("defer", "shop.charge", "o3", "--delay", "1h").stdout.strip()
    assert json.loads(run("jobs", "cancel", id, "--json").stdout) == {"id": id, "status": "cancelled"}
    assert "cancelled" in run("jobs", "show", id, code=1).stdout
    assert "nope" in run("jobs", "show", "nope", code=4).stderr


def test_a_wait_that_is_over_names_its_own_option(run: Run) -> None:
    """`mesh defer` and `mesh jobs show` have --wait, and no --timeout."""
    told = run("defer", "shop.charge", "o4", "--delay", "1h", "--wait", "10ms", code=3).stderr
    assert "--wait" in told
    assert "--timeout" not in told
    id = run("defer", "shop.charge", "o5", "--delay", "1h").stdout.strip()
    assert "--wait" in run("jobs", "show", id, "--wait", "10ms", code=3).stderr


def test_dead_letters_are_listed_shown_requeued_and_dropped(run: Run) -> None:
    """With the reason and the traceback; --all asks before it forgets."""
    id = run("defer", "shop.charge", "bad", "--wait", "10s", "--json", code=1).stdout
    id = json.loads(id)["id"]
    listed = run("tasks", "dead", "list").stdout
    assert id in listed
    assert "no such order" in listed
    assert "Traceback" in run("tasks", "dead", "show", id).stdout
    queues = {queue["name"]: queue for queue in json.loads(run("tasks", "--json").stdout)}
    assert queues["shop.charge"]["dead"] == 1
    assert run("tasks", "dead", "requeue", "shop.charge", id).stderr.startswith("shop.charge: 1 ")
    assert run("jobs", "show", id, "--wait", "10s", code=1).stdout.count("dead") >= 1
    assert "--all" in run("tasks", "dead", "drop", "shop.charge", code=2).stderr
    assert "shop.charge" in run("tasks", "dead", "drop", "shop.charge", "--all", code=-2, stdin="n\n").stderr
    assert run("tasks", "dead", "list").stdout
    assert run("tasks", "dead", "drop", "shop.charge", "--all", "--yes").stderr.startswith("shop.charge: 1 ")
    assert run("tasks", "dead", "list").stdout == ""


def test_events_are_read_and_delivered_again(run: Run) -> None:
    """The log, and a replay that the handler hears."""
    run("defer", "shop.charge", "o9", "--wait", "10s")
    events = [json.loads(line) for line in run("events", "read", "order.*", "--json").stdout.splitlines()]
    last = events[-1]
    assert (last["topic"], last["data"], last["key"]) == ("order.charged", {"order": "o9"}, "o9")
    assert "order.charged [o9]" in run("events", "read").stdout

    def heard() -> int:
        return int(run("state", "get", "audit", "order.charged").stdout)

    end = time.monotonic() + 20
    while heard() < len(events):
        assert time.monotonic() < end
    assert run("events", "replay", "shop.audit", "--since", "1h").stderr.startswith(f"shop.audit: {len(events)} ")
    while heard() < 2 * len(events):
        assert time.monotonic() < end
    assert "--offset" in run("events", "replay", "shop.audit", code=2).stderr
    assert "shop.nobody" in run("events", "replay", "shop.nobody", "--offset", "0", code=4).stderr


def test_subscriptions_are_listed_and_not_ended_under_a_worker(run: Run) -> None:
    """What would be dropped is said before it is asked; a handler that somebody runs is not gone."""
    [audit] = json.loads(run("events", "subscriptions", "--json").stdout)
    assert (audit["name"], audit["patterns"], audit["workers"]) == ("shop.audit", ["order.*"], 1)
    assert "shop.audit" in run("events", "subscriptions").stdout
    assert "shop.audit" in run("events", "abandon", "shop.audit", code=-2, stdin="n\n").stderr
    assert "shop.audit" in run("events", "abandon", "shop.audit", "--yes", code=4).stderr
    assert "shop.audit" in run("events", "abandon", "shop.nobody", "--yes", code=4).stderr


def test_state_is_written_read_and_listed(run: Run) -> None:
    """Values are JSON or text; an etag that does not fit is a conflict; absent is exit code 1."""
    etag = json.loads(run("state", "set", "carts", "u1", '{"items": 2}', "--etag", "", "--json").stdout)["etag"]
    assert json.loads(run("state", "get", "carts", "u1", "--json").stdout) == {"value": {"items": 2}, "etag": etag}
    assert "carts" in run("state", "set", "carts", "u1", "x", "--etag", "", code=4).stderr
    run("state", "set", "carts", "u2", "text", "--ttl", "1h")
    assert run("state", "get", "carts", "u2").stdout == "text\n"
    assert run("state", "keys", "carts", "u").stdout.split() == ["u1", "u2"]
    assert run("state", "keys", "carts", "--limit", "1", "--values").stdout == '{"key":"u1","value":{"items":2}}\n'
    assert json.loads(run("state", "--json").stdout)["carts"] == 2
    run("state", "delete", "carts", "u1")
    assert "u1" in run("state", "get", "carts", "u1", code=1).stderr


def test_wrong_words_are_told(run: Run) -> None:
    """Before anything is connected where that is possible."""
    assert "SERVICE.TASK" in run("defer", "charge", code=2).stderr
    assert "priority" in run("defer", "shop.charge", "o", "--priority", "11", code=2).stderr
