"""A service that waits for another one that is not there says which; a process that is hung up leaves in good order."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request

import pytest
from supervision_project import SERVICE, Project, until

from mesh.config import usable
from mesh.doctor.doctor import examine
from mesh.doctor.finding import BAD
from mesh.errors import Unavailable


def test_a_missing_need_is_named(project: Project) -> None:
    """By `mesh up` and by doctor."""
    project.write(greetings=1)
    project.up()
    (project.root / "svc.py").write_text(
        SERVICE.replace("class Greeting(mesh.Service):\n", 'class Greeting(mesh.Service):\n    needs = ["users"]\n\n')
    )
    project.command("supervisorctl", "restart", "greeting:greeting_0")
    with pytest.raises(Unavailable) as caught:
        project.up(patience_s=2.0)
    assert "users" in caught.value.details["missing"][0]

    async def findings():
        found = usable(project.root / "mesh.toml")
        return {each.about: each async for each in examine(project.root / "supervisord.conf", found)}

    told = asyncio.run(findings())["greeting:greeting_0"]
    assert (told.grade, "users" in told.told) == (BAD, True)


def test_a_process_that_is_hung_up_finishes_what_it_has(project: Project) -> None:
    """And comes back as another one: workers, gateways, hub and store."""
    project.write(greetings=1)
    project.up()
    before = project.pids()
    answers: list[int] = []

    def ask() -> None:
        with urllib.request.urlopen(f"{project.url}/slow/2", timeout=20) as answer:
            answers.append(json.load(answer))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: list(project.root.glob("slow.*")))
    project.command("supervisorctl", "signal", "HUP", "greeting:greeting_0")
    asking.join()
    assert answers == [before["greeting:greeting_0"]]
    for name in ("hub", "store", "gateway:gateway_0"):
        project.command("supervisorctl", "signal", "HUP", name)
    until(lambda: not set(project.pids().values()) & {before[name] for name in before if name != "watch"})
    project.up()
    control = project.command("supervisorctl", "status").stdout
    assert "BACKOFF" not in control
