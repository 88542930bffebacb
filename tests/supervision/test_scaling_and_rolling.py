"""Workers come and go under a real supervisord: nobody else is touched, and what is said is so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from supervision_project import until

from mesh.config import usable
from mesh.deploy import scale as scaling
from mesh.deploy.processes import Interrupted, StartFailed
from mesh.deploy.roll import RollFailed, roll
from mesh.deploy.scale import NoSuchRole, scale
from mesh.doctor.doctor import examine
from mesh.errors import LockTaken, SetupError
from mesh.supervisord import control as controls
from mesh.supervisord.control import Control, Silent
from mesh.supervisord.roster import Roster

GREETINGS = ["greeting:greeting_0", "greeting:greeting_1"]


@pytest.fixture
def project(running) -> Iterator:
    """The running set; each test leaves two greetings and one gateway, and good code."""
    yield running
    for path in running.root.glob("trouble*"):
        path.unlink()
    running.write()
    if running.up().earlier:
        scaled(running, greeting=0, gateway=0)
    scaled(running, greeting=2, gateway=1)
    assert running.states() == dict.fromkeys(["watch", "hub", "store", *GREETINGS, "gateway:gateway_0"], "RUNNING")


def scaled(project, patience_s: float = 30.0, **wanted: int):
    return asyncio.run(scale(project.layout, project.settings, wanted, patience_s=patience_s))


def rolled(project, *names: str, patience_s: float = 30.0, settle_s: float = 0.0):
    return asyncio.run(roll(project.layout, project.settings, names, patience_s=patience_s, settle_s=settle_s))


def get(project, path: str) -> str:
    with urllib.request.urlopen(project.url + path, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def asking(project, path: str) -> Iterator[list[object]]:
    """Ask for a path without a pause from two threads; what was answered, errors included."""
    answers: list[object] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(get(project, path))
            except OSError as exc:
                answers.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def interrupt(project, seen: str, act: Coroutine[Any, Any, object]) -> str:
    """Cancel what is done as soon as the process `seen` has another pid than before, or none; what it said then."""
    before = project.pids().get(seen)

    async def both() -> None:
        acting = asyncio.create_task(act)
        while project.pids().get(seen) == before:
            assert not acting.done(), acting
            await asyncio.sleep(0.01)
        acting.cancel()
        await acting

    with pytest.raises(Interrupted) as caught:
        asyncio.run(both())
    return str(caught.value)


# --- scale ----------------------------------------------------------------------------------------------


def test_scaling_up_and_down_touches_nobody_else(project):
    """New ones answer when it is said; those that stay keep their pids; the others are gone, files and all."""
    before = project.pids()
    done = scaled(project, greeting=4, gateway=2)
    assert [tuple(each) for each in done] == [("greeting", 2, 4, 2, True), ("gateway", 1, 2, 1, True)]
    after = project.pids()
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["gateway:gateway_1", "greeting:greeting_2", "greeting:greeting_3"]
    services = {each["name"]: each["instances"] for each in get(project, "/mesh")["services"]}
    assert {each["pid"] for each in services["greeting"]} == {after[f"greeting:greeting_{n}"] for n in range(4)}

    scaled(project, greeting=2, gateway=1)
    assert project.pids() == before
    assert not (project.run / "programs/greeting_2.conf").exists()


def test_who_leaves_finishes_first(project):
    """A call of the worker that is taken away is answered."""
    scaled(project, greeting=3)
    third = project.pids()["greeting:greeting_2"]
    answers: list[int] = []
    threads: list[threading.Thread] = []

    def it_has_a_call() -> bool:
        # The gateway may not have a link to it yet: the first calls then go to the other two.
        threads.append(threading.Thread(target=lambda: answers.append(int(get(project, "/slow/1")))))
        threads[-1].start()
        return (project.root / f"slow.{third}").exists()

    until(it_has_a_call)
    scaled(project, greeting=2)
    for thread in threads:
        thread.join()
    assert len(answers) == len(threads)
    assert third in answers


def test_a_new_one_that_does_not_become_ready_is_taken_back(project):
    """The number is what it was, and the reason is told with the end of the log."""
    before = project.pids()
    project.trouble("broken")
    with pytest.raises(StartFailed) as caught:
        scaled(project, greeting=4)
    assert caught.value.details["process"] in ("greeting:greeting_2", "greeting:greeting_3")
    assert caught.value.details["tail"][-1] == "Traceback: the service is broken"
    assert project.pids() == before
    project.trouble("never")
    with pytest.raises(StartFailed, match=r"2 s$") as caught:
        scaled(project, greeting=3, patience_s=2.0)
    assert caught.value.details["process"] == "greeting:greeting_2"
    assert project.pids() == before
    assert Roster(project.layout, project.settings).count("greeting") == 2


def test_one_that_was_stopped_by_hand_is_started_by_scale(project):
    """N means that N run, whatever supervisorctl did before."""
    project.command("supervisorctl", "stop", "greeting:greeting_0")
    scaled(project, greeting=1)
    assert [name for name in project.pids() if name.startswith("greeting")] == ["greeting:greeting_0"]
    assert project.states()["greeting:greeting_0"] == "RUNNING"


def test_a_name_that_is_not_run_is_told_with_the_nearest(project):
    """A slip of the finger changes nothing."""
    with pytest.raises(NoSuchRole, match='"greeting"'):
        scaled(project, greting=3)


def test_the_number_survives_down_and_up_and_a_restart_of_supervisord(project):
    """mesh down, then mesh up; supervisorctl reload, which starts supervisord anew: three as before."""
    scaled(project, greeting=3)
    project.command("mesh", "down")
    project.up()
    assert "greeting:greeting_2" in project.pids()
    project.command("supervisorctl", "reload")
    project.up()
    assert "greeting:greeting_2" in project.pids()
    scaled(project, greeting=2)


# --- roll -----------------------------------------------------------------------------------------------


def test_a_roll_replaces_all_and_every_request_is_answered(project):
    """New settings are there, new pids, the same names; of what stands in supervisord.conf, too."""
    before = project.pids()
    project.write(more='environment = { COLOUR = "green" }')
    assert get(project, "/environment/COLOUR") == ""
    with asking(project, "/hello/you") as answers:
        done = rolled(project)
    counts = {each.name: each.replaced for each in done}
    assert counts == {"hub": 1, "store": 1, "greeting": 2, "gateway": 1, "watch": 1}
    after = project.pids()
    assert sorted(after) == sorted(before)
    assert not [name for name in before if before[name] == after[name]]
    assert get(project, "/environment/COLOUR") == "green"
    assert len(answers) > 20
    assert set(answers) == {"Hello, you!"}


@pytest.mark.parametrize("word", ["broken", "never"])
def test_a_bad_release_goes_back_before_anybody_has_left(project, word: str):
    """The spare one does not become ready: every worker that ran runs on."""
    before = project.pids()
    project.trouble(word)
    with asking(project, "/hello/you") as answers, pytest.raises(RollFailed) as caught:
        rolled(project, "greeting", patience_s=2.0)
    lines = str(caught.value).splitlines()
    assert caught.value.details["process"] == "greeting:greeting_2"
    assert caught.value.details["undone"] is True
    assert lines[1].endswith("; greeting runs as before")
    assert project.pids() == before
    assert set(answers) == {"Hello, you!"}


def test_a_release_that_dies_later_goes_back_too(project):
    """The first is replaced and good, the second is ready and dies: both get their earlier settings again."""
    project.write(more='environment = { COLOUR = "blue" }')
    project.trouble("dies blue", "greeting_1")
    with asking(project, "/hello/you") as answers, pytest.raises(RollFailed) as caught:
        rolled(project, "greeting", settle_s=2.0)
    assert caught.value.details["process"] == "greeting:greeting_1"
    assert caught.value.details["undone"] is True
    assert set(answers) == {"Hello, you!"}
    assert {get(project, "/environment/COLOUR") for _ in range(10)} == {""}
    assert "greeting:greeting_2" not in project.pids()


def test_what_a_bad_release_said_is_told_and_not_what_its_forerunner_had_said(project):
    """The log has both; the end of it that is shown begins where the release was started."""
    project.trouble("broken", "greeting_1")
    with pytest.raises(RollFailed):
        rolled(project, "greeting")
    project.trouble("never", "greeting_1")
    with pytest.raises(StartFailed) as caught:
        scaled(project, patience_s=1.0, greeting=2)
    assert not [line for line in caught.value.details["tail"] if "the service is broken" in line]
    assert "the service is broken" in (project.root / "logs/greeting_1.log").read_text()


@pytest.mark.parametrize(
    ("name", "seen", "colour"),
    [
        ("greeting", "greeting:greeting_2", ""),
        ("greeting", "greeting:greeting_0", "blue"),
        ("gateway", "gateway:gateway_0", ""),
    ],
)
def test_a_roll_that_is_interrupted_goes_back(project, name: str, seen: str, colour: str):
    """With the spare one just there, or one that was told to leave: as many as before, of the earlier release."""
    if colour:
        project.write(more=f'environment = {{ COLOUR = "{colour}" }}')
    before = project.states()
    with asking(project, "/hello/you") as answers:
        told = interrupt(project, seen, roll(project.layout, project.settings, [name]))
    assert told.startswith("interrupted; ")
    assert project.states() == before
    assert set(answers) == {"Hello, you!"}
    assert get(project, "/environment/COLOUR") == ""


@pytest.mark.parametrize("seen", ["hub", "store"])
def test_a_roll_that_is_interrupted_at_what_others_stand_on_goes_back(project, seen: str):
    """Both run afterwards, and no spare one is left."""
    before = project.states()
    told = interrupt(project, seen, roll(project.layout, project.settings, [seen]))
    assert seen in told
    until(lambda: project.states() == before)
    assert get(project, "/hello/you") == "Hello, you!"


def test_scaling_that_fails_stops_nobody_who_is_in_a_crash_loop(project):
    """It goes on trying, as before: whoever mends it finds it trying."""
    project.trouble("broken", "greeting_0")
    project.kill(project.pids()["greeting:greeting_0"])
    until(lambda: project.states()["greeting:greeting_0"] == "BACKOFF")
    with pytest.raises(StartFailed) as caught:
        scaled(project, greeting=3)
    assert caught.value.details["process"] == "greeting:greeting_0"
    assert project.states()["greeting:greeting_0"] in ("BACKOFF", "STARTING")
    assert "greeting:greeting_2" not in project.states()
    project.trouble("", "greeting_0")
    until(lambda: project.states()["greeting:greeting_0"] == "RUNNING")


def test_many_new_ones_come_in_waves(project, monkeypatch: pytest.MonkeyPatch):
    """No wave starts before the one before it is ready; one that is in a crash loop meanwhile keeps its place."""
    monkeypatch.setattr(scaling, "_waves", lambda numbers: [[one] for one in numbers])
    project.trouble("broken", "greeting_1")
    project.kill(project.pids()["greeting:greeting_1"])
    until(lambda: project.states()["greeting:greeting_1"] == "BACKOFF")
    project.command("supervisorctl", "stop", "greeting:greeting_0", check=False)
    with pytest.raises(StartFailed) as caught:
        scaled(project, greeting=3)
    assert caught.value.details["process"] == "greeting:greeting_1"
    # The third was never begun.
    assert "greeting:greeting_2" not in project.states()
    project.trouble("", "greeting_1")
    until(lambda: project.states()["greeting:greeting_1"] == "RUNNING")
    scaled(project, greeting=3)
    assert "greeting:greeting_2" in project.pids()


def test_more_than_memory_holds_is_refused(project, monkeypatch: pytest.MonkeyPatch):
    """One digit too many starts nothing, and is not kept."""
    before = project.pids()
    monkeypatch.setattr(scaling, "_free_bytes", lambda: 3 * scaling.WORKER_BYTES)
    with pytest.raises(SetupError, match=r"greeting=20: 18 .* 450 MB .* 75 MB"):
        scaled(project, greeting=20)
    assert project.pids() == before
    assert Roster(project.layout, project.settings).count("greeting") == 2


def test_a_supervisord_that_is_silent_is_not_taken_for_none(project, monkeypatch: pytest.MonkeyPatch):
    """It was stopped by a signal: nothing is written down as done, and the doctor knows what to do."""
    monkeypatch.setattr(controls, "ANSWER_S", 0.5)
    supervisord = project.supervisord()
    os.kill(supervisord, signal.SIGSTOP)
    try:
        with pytest.raises(Silent):
            scaled(project, greeting=4)
        found = asyncio.run(_findings(project))
    finally:
        os.kill(supervisord, signal.SIGCONT)
    assert [each.grade for each in found if each.about == "supervisord"] == ["bad"]
    (mend,) = (each.mend for each in found if each.about == "supervisord")
    assert f"`kill -CONT {supervisord}`" in mend
    assert Roster(project.layout, project.settings).count("greeting") == 2


async def _findings(project):
    found = usable(project.root / "mesh.toml")
    return [each async for each in examine(project.root / "supervisord.conf", found)]


def test_scaling_that_is_interrupted_goes_back(project):
    """The number, the processes, and what is kept for the next start."""
    project.trouble("never", "greeting_3")
    before = project.pids()
    told = interrupt(project, "greeting:greeting_3", scale(project.layout, project.settings, {"greeting": 4}))
    assert "greeting has 2 " in told
    assert project.pids() == before
    assert Roster(project.layout, project.settings).count("greeting") == 2


def test_where_the_code_was_changed_in_place_the_others_run_on(project):
    """There is no earlier code to go back to: the spare one stays for the one that failed, and `mesh up` mends it."""
    before = project.pids()
    project.trouble("broken", "greeting_1")
    with asking(project, "/hello/you") as answers, pytest.raises(RollFailed) as caught:
        rolled(project, "greeting")
    assert caught.value.details["process"] == "greeting:greeting_1"
    assert set(answers) == {"Hello, you!"}
    states = project.states()
    assert [states[f"greeting:greeting_{n}"] for n in range(3)] == ["RUNNING", "STOPPED", "RUNNING"]
    project.trouble("", "greeting_1")
    project.up()
    assert sorted(project.pids()) == sorted(before)


def test_where_the_code_that_was_changed_in_place_does_not_last_nobody_stands_in(project):
    """The spare one dies, too: what was not replaced yet runs on, the other tries again, and nothing is left over."""
    before = project.pids()
    project.trouble("late")
    with asking(project, "/hello/you") as answers, pytest.raises(RollFailed) as caught:
        rolled(project, "greeting", settle_s=0.1)
    assert "greeting:greeting_0" in str(caught.value)
    assert project.pids()["greeting:greeting_1"] == before["greeting:greeting_1"]
    assert "greeting:greeting_2" not in project.states()
    assert project.states()["greeting:greeting_0"] not in ("STOPPED", "FATAL")
    assert "Hello, you!" in answers
    project.trouble("")
    project.command("supervisorctl", "restart", "greeting:greeting_0", check=False)
    project.up()
    assert sorted(project.pids()) == sorted(before)


def test_a_role_that_was_rolled_before_the_bad_one_goes_back_too(project):
    """A release is all or nothing: the gateways' trouble takes the workers back."""
    second = '[services.second]\nclass = "svc:Second"'
    project.write(more=second)
    project.up()
    project.write(more='environment = { COLOUR = "blue" }\n' + second.replace("svc", "nowhere"))
    with asking(project, "/hello/you") as answers, pytest.raises(RollFailed) as caught:
        rolled(project, "greeting", "second")
    assert caught.value.details["undone"] is True
    assert set(answers) == {"Hello, you!"}
    assert {get(project, "/environment/COLOUR") for _ in range(10)} == {""}
    assert isinstance(get(project, "/second"), int)


def test_a_release_may_bring_a_service_and_change_a_number(project):
    """Both are waited for like any replacement; where one is bad, neither is there afterwards."""
    second = 'environment = { COLOUR = "blue" }\n[services.second]\nclass = "svc:Second"'
    project.write(more=second, greetings=3)
    project.trouble("broken", "second_0")
    with pytest.raises(RollFailed) as caught:
        rolled(project, "greeting", "second")
    assert caught.value.details["undone"] is True
    assert [name for name in project.pids() if name.startswith(("greeting", "second"))] == GREETINGS
    project.trouble("", "second_0")
    rolled(project, "greeting", "second")
    assert [name for name in project.pids() if name.startswith(("greeting", "second"))] == [
        *GREETINGS,
        "greeting:greeting_2",
        "second:second_0",
    ]
    # And back to fewer.
    project.write(greetings=2)
    rolled(project, "greeting")
    assert [name for name in project.pids() if name.startswith("greeting")] == GREETINGS


def test_what_was_stopped_by_hand_stays_so_through_a_roll(project):
    """Whoever stopped it had a reason."""
    project.command("supervisorctl", "stop", "greeting:greeting_1")
    rolled(project, "greeting")
    assert project.states()["greeting:greeting_1"] == "STOPPED"
    assert project.states()["greeting:greeting_0"] == "RUNNING"


def test_a_release_mends_what_is_in_a_crash_loop(project):
    """What could not start under the earlier one is replaced like what runs, and waited for."""
    project.trouble("broken")
    for name in GREETINGS:
        project.kill(project.pids()[name])
    # Each tries again and again, at its own pace: they need not wait at the same moment.
    seen: set[str] = set()

    def both_waited() -> bool:
        seen.update(name for name, state in project.states().items() if state == "BACKOFF")
        return seen == set(GREETINGS)

    until(both_waited)
    project.trouble("")
    (done,) = rolled(project, "greeting")
    assert done.replaced == 2
    assert {project.states()[name] for name in GREETINGS} == {"RUNNING"}


def test_gateways_cannot_move_to_another_port_by_a_roll(project):
    """It would need a second socket under the same name; what to do instead is told, and they run on."""
    text = (project.root / "mesh.toml").read_text()
    (project.root / "mesh.toml").write_text(text.replace(f"port = {project.port}", "port = 1"))
    with pytest.raises(SetupError, match="`mesh down && mesh up`"):
        rolled(project, "gateway")
    assert get(project, "/hello/you") == "Hello, you!"


# --- together with supervisorctl ------------------------------------------------------------------------


def test_supervisorctl_sees_nothing_to_change_after_mesh(project):
    """`reread` and `update` after scale, roll and up find the files and the processes alike."""
    for change in (lambda: scaled(project, greeting=3), lambda: rolled(project, "gateway"), project.up):
        change()
        assert "No config updates" in project.command("supervisorctl", "reread").stdout
        before = project.pids()
        assert project.command("supervisorctl", "update").stdout == ""
        assert project.pids() == before
    scaled(project, greeting=2)


def test_groups_restart_by_their_names(project):
    """`supervisorctl restart greeting:*` means them all, those that scale has added too."""
    scaled(project, greeting=3)
    said = project.command("supervisorctl", "restart", "greeting:*").stdout
    assert said.count("started") == 3
    assert project.command("supervisorctl", "status", "greeting:*").stdout.count("RUNNING") == 3


def test_a_group_that_supervisorctl_removed_is_back_after_up(project):
    """stop, remove: `mesh up` brings it back; `mesh scale` too."""
    for back in (project.up, lambda: scaled(project, greeting=2)):
        project.command("supervisorctl", "stop", "greeting:*")
        project.command("supervisorctl", "remove", "greeting")
        assert not any(name.startswith("greeting") for name in project.pids())
        back()
        assert [name for name in project.pids() if name.startswith("greeting")] == GREETINGS


def test_a_worker_killed_by_hand_while_another_command_works(project):
    """The lock is for mesh's commands alone: a crash is mended, and a second command is told to wait."""
    with Roster(project.layout, project.settings).lock():
        project.kill(project.pids()["greeting:greeting_0"])
        with pytest.raises(LockTaken):
            scaled(project, greeting=3)
        with pytest.raises(LockTaken):
            rolled(project)
    control = Control(project.layout.socket)
    control.check_plugin()
    control.close()
    project.up()


def test_changed_settings_are_told_by_up_and_brought_by_restart_or_roll(project):
    """`mesh up` touches nobody who runs, and says what is not yet so."""
    before = project.pids()
    project.write(more='environment = { COLOUR = "white" }')
    up = project.up()
    assert up.earlier == ["greeting"]
    assert project.pids() == before
    rolled(project, "greeting")
    assert project.up().earlier == []


def test_a_service_that_mesh_toml_no_longer_names_leaves_at_up(project):
    """And one that is new in it comes."""
    project.write(more='[services.second]\nclass = "svc:Second"')
    assert "second:second_0" in {process.name for process in project.up().processes}
    assert isinstance(get(project, "/second"), int)
    project.write()
    assert "second:second_0" not in {process.name for process in project.up().processes}
    assert not list((project.run / "programs").glob("second*"))
