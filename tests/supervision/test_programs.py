"""Programs under a real supervisord: started, scaled, rolled, replaced when they die, and shown by every command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from typing import Any

import pytest
from supervision_project import Project, until

from mesh.discovery.http_address import META
from mesh.node.connect import connect
from mesh.observe.sampling import Sampler
from mesh.supervisord import process_tree
from tests.patience import until as eventually

#: Its answer is its colour: a release. It forks a child that has left its session and its environment mark.
APP = """\
import http.server, os, subprocess, sys

open(f"child.{os.getpid()}", "w").write(str(subprocess.Popen(["sleep", "600"], start_new_session=True).pid))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        body = f"{os.environ['COLOUR']} {os.getpid()} {self.path}".encode()
        self.send_response(500 if os.path.exists("sick") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


print("program", os.environ["COLOUR"], "listens", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

#: Before APP: one thread that never rests.
BURN = """\
import threading


def burn():
    while True:
        pass


threading.Thread(target=burn, daemon=True).start()
"""

PROGRAM = """
[services.shop]
command = ["{python}", "app.py", "{{port}}"]
health = "/healthz"
health_every = "200ms"
environment = {{ COLOUR = "{colour}" }}
replicas = {replicas}
{more}
"""


@pytest.fixture
def shop(project: Project) -> Project:
    (project.root / "app.py").write_text(APP)
    configure(project)
    project.up()
    return project


def configure(project: Project, colour: str = "blue", replicas: int = 1, more: str = "") -> None:
    text = PROGRAM.format(python=sys.executable, colour=colour, replicas=replicas, more=more)
    project.write(text, greetings=0, gateways=1)


def shown(project: Project) -> list[dict[str, Any]]:
    """The instances of the program, as `mesh ps` shows them."""
    rows = json.loads(project.command("mesh", "ps", "--json").stdout)["instances"]
    return [row for row in rows if row["service"] == "shop"]


def answer(project: Project) -> str:
    with urllib.request.urlopen(f"{shown(project)[0]['meta'][META]}/x", timeout=10) as reply:
        return str(reply.read().decode())


def program_of(project: Project, process: str = "shop:shop_0") -> int:
    """The pid of the program that a supervised process runs."""
    wrapper = project.pids()[process]
    return next(pid for pid in process_tree.pids() if process_tree.parent(pid) == wrapper)


def test_kill_9_of_the_program_and_of_its_process(shop: Project):
    """Both are back in seconds, and of the old ones nothing is left, not even a child that hides."""
    for victim in (lambda: shop.pids()["shop:shop_0"], lambda: program_of(shop)):
        old, program = shop.pids()["shop:shop_0"], program_of(shop)
        child = int((shop.root / f"child.{program}").read_text())
        assert process_tree.alive(child)
        os.kill(victim(), signal.SIGKILL)
        until(lambda program=program, child=child: not any(map(process_tree.alive, (program, child))))
        until(lambda old=old: shop.pids()["shop:shop_0"] not in (0, old))
        until(lambda: [each["pid"] for each in shown(shop)] == [shop.pids()["shop:shop_0"]])


def test_scaling_and_rolling(shop: Project):
    """`mesh scale` waits until new copies are healthy; a roll changes the command; a bad release does not get in."""
    shop.command("mesh", "scale", "shop=3")
    assert len(shown(shop)) == 3
    shop.command("mesh", "scale", "shop=1")
    assert len(shown(shop)) == 1

    configure(shop, "green")
    shop.command("mesh", "roll", "shop")
    assert len(shown(shop)) == 1
    assert answer(shop).startswith("green")

    # The new release never becomes healthy: the old one stays.
    configure(shop, "red", more='[worker]\nstart_timeout = "2s"')
    old = program_of(shop)
    (shop.root / "app.py").write_text("import time; time.sleep(600)")
    done = shop.command("mesh", "roll", "shop", "--timeout", "8", check=False)
    assert done.returncode == 1
    assert program_of(shop) == old
    assert answer(shop).startswith("green")


def test_commands_know_programs(shop: Project):
    """ps, logs, doctor, config and supervisorctl show it; down leaves nothing."""
    (row,) = shown(shop)
    assert row["pid"] == shop.pids()["shop:shop_0"]
    assert "program blue listens" in shop.command("mesh", "logs", "shop").stdout
    doctor = json.loads(shop.command("mesh", "doctor", "--json", check=False).stdout)
    found = [each for each in doctor if "shop" in each["about"]]
    assert found
    assert all(each["grade"] == "good" for each in found), found
    assert "app.py" in shop.command("mesh", "config").stdout
    program = program_of(shop)
    shop.command("mesh", "down")
    assert not process_tree.alive(program)
    assert not shop.members()


def test_the_doctor_finds_a_missing_program(project: Project):
    """Its finding names the key."""
    project.write('[services.shop]\ncommand = "no-such-program-anywhere"', greetings=0)
    doctor = json.loads(project.command("mesh", "doctor", "--json", check=False).stdout)
    bad = [each["about"] for each in doctor if each["grade"] == "bad"]
    assert any(about.endswith("services.shop.command") for about in bad), doctor


async def test_the_autoscaler_measures_the_program(shop: Project):
    """The processor time of the program counts as that of its process, which itself does nothing."""
    (shop.root / "app.py").write_text(BURN + APP)
    wrapper, program = shop.pids()["shop:shop_0"], program_of(shop)
    os.kill(program, signal.SIGKILL)
    await eventually(
        lambda: (
            shop.pids()["shop:shop_0"] not in (0, wrapper)
            and [each["pid"] for each in shown(shop)] == [shop.pids()["shop:shop_0"]]
        ),
        "it runs again",
    )
    pid = shop.pids()["shop:shop_0"]
    async with connect(shop.settings, role="operator") as node:
        sampler = Sampler(node)
        await sampler.look([pid])
        await asyncio.sleep(0.5)
        sample = (await sampler.look([pid]))[pid]
    assert sample.services == ("shop",)
    assert sample.answered
    assert sample.demand > 0.3
