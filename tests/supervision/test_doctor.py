"""The doctor names what is wrong and the mend, for each of the troubles that people get into."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket

import pytest
from supervision_project import until

from mesh.config import usable
from mesh.doctor.doctor import examine
from mesh.doctor.finding import BAD, GOOD, ODD, Finding
from mesh.telemetry import crashes, heartbeats


def told(project) -> list[Finding]:
    """All that is found, in order."""

    async def look() -> list[Finding]:
        found = usable(project.root / "mesh.toml")
        return [each async for each in examine(project.root / "supervisord.conf", found)]

    return asyncio.run(look())


def examined(project) -> dict[str, Finding]:
    """The last finding about each thing; those that are good only when nothing else is said. No line numbers."""
    found = [each._replace(about=re.sub(r"^mesh\.toml:\d+: ", "", each.about)) for each in told(project)]
    return {each.about: each for each in sorted(found, key=lambda each: (GOOD, ODD, BAD).index(each.grade))}


def test_before_the_first_start_nothing_is_wrong(project):
    """It does not run, which is worth knowing; all else is as it should be."""
    found = examined(project)
    assert found["supervisord"].mend == "`mesh up` starts everything"
    assert {each.about for each in found.values() if each.grade != GOOD} == {"supervisord"}
    # It only looks.
    assert not project.run.exists()


def test_the_mounts_of_gateways_are_tried(project):
    """As the gateway would load them, in a process of their own."""
    file = project.root / "mesh.toml"
    file.write_text(file.read_text().replace("[gateway]", '[gateway]\nmounts = ["mounted:mount"]'))
    found = examined(project)["gateway.mounts"]
    assert (found.grade, "mounted" in found.told) == (BAD, True)
    (project.root / "mounted.py").write_text(
        "from mesh.gateway.mounts import Mount, Reply\n"
        "async def answer(request): return Reply()\n"
        'mount = Mount(prefix="/mine", handler=answer)\n'
    )
    assert examined(project)["gateway.mounts"].grade == GOOD
    done = project.command("mesh", "gateway", "--check", "--json")
    assert json.loads(done.stdout) == {"mounts": ["/mine"]}
    (project.root / "mounted.py").write_text(
        (project.root / "mounted.py").read_text().replace('"/mine"', '"/rpc/mine"')
    )
    found = examined(project)["gateway.mounts"]
    assert (found.grade, "/rpc/mine" in found.told) == (BAD, True)


def test_a_set_that_runs_is_well(project):
    """Everything was looked at, and everything answers."""
    project.up()
    found = examined(project)
    assert {each.grade for each in found.values()} == {GOOD}, found
    assert found["registry"].told == "all 4 processes that should be there answer"
    assert found["HTTP"].told == f"{project.url}/readyz answers 200"


def test_what_keeps_a_set_from_starting_is_found_beforehand(project):
    """A class that is not there, a taken port, an open run directory, a missing environment file."""
    project.write(more='env_file = "secrets.env"\n[services.second]\nclass = "svc:Third"')
    project.run.mkdir(mode=0o755)
    os.chmod(project.run, 0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", project.port))
        taken.listen()
        found = examined(project)
    assert found["run directory"].mend == f"chmod 700 {project.run}"
    missing = f"{project.root}/secrets.env: the environment file cannot be read: No such file or directory"
    assert found["services.greeting.env_file"].told == missing
    third = found["services.second.class"]
    assert third.told == "svc:Third: svc has no service 'Third'; it has Greeting, Second"
    assert third.mend == "name one that is there"
    assert found["HTTP"].mend == "stop the process that listens there, or change gateway.port"


def test_keys_are_looked_for_by_the_names_that_processes_have(project):
    """A set that has all of them is well; the store's is that of its service."""
    project.write(more='[keys]\ndir = "keys"')
    names = ["client", "hub", "gateway", "mesh-store", "greeting"]
    project.command("mesh", "keys", "make", *names)
    assert examined(project)["keys"].grade == GOOD
    (project.root / "keys/mesh-store.secret").unlink()
    (bad,) = [each for about, each in examined(project).items() if about.endswith("keys.dir")]
    assert (bad.grade, "'mesh-store'" in bad.told) == (BAD, True)


def test_each_key_that_leads_nowhere_is_found(project):
    """One does not hide another: the key, its line, what is wrong, and what to do."""
    more = """
        user = "nosuchuser"
        env_file = "secrets.env"
        files = 1000000000
        memory = "40MiB"
        [services.greeting.config]
        password = { secret = "env:MESH_TEST_NOPE" }
        [services.broken]
        class = "broken"
        [keys]
        dir = "keys"
    """
    project.write(more=more)
    (project.root / "broken.py").write_text("import os\nraise ValueError('not today')\n")
    bad = {each.about.partition(": ")[2]: each for each in told(project) if each.about.startswith("mesh.toml:")}
    assert {key: (each.told, each.mend) for key, each in bad.items()} == {
        "services.greeting.user": ("there is no user nosuchuser", "make that user, or leave the key out"),
        "services.greeting.env_file": (
            f"{project.root}/secrets.env: the environment file cannot be read: No such file or directory",
            "mend that file, or leave the key out",
        ),
        "services.greeting.files": (
            "--limit files=1000000000: the operating system refuses: not allowed to raise maximum limit",
            "ask for fewer, raise LimitNOFILE or `ulimit -Hn`, or leave the key out",
        ),
        "services.greeting.memory": (
            "the 40 MiB of [services.greeting] memory in mesh.toml are too little: "
            "a worker needs 32 MiB beside its own code",
            "give them more, or leave the key out",
        ),
        "services.greeting.config.password": (
            "the environment has no MESH_TEST_NOPE",
            "set it in [services.greeting] env_file, or where supervisord is started",
        ),
        "services.broken.class": (
            "broken.py:2: ValueError: not today",
            "`mesh run --check --as broken broken` shows all of it",
        ),
        "keys.dir": (
            f"{project.root}/keys: No such file or directory: "
            "make keys there with `mesh keys make`, or correct keys.dir",
            "`mesh keys list` shows what is there",
        ),
    }
    lines = (project.root / "mesh.toml").read_text().splitlines()
    for key, each in bad.items():
        line = int(each.about.partition(": ")[0].removeprefix("mesh.toml:"))
        assert lines[line - 1].split()[0] == key.rpartition(".")[2]


def test_a_secret_of_the_environment_file_is_there(project):
    """Workers have it, though nobody else does."""
    (project.root / "secrets.env").write_text("MESH_TEST_NOPE=x\n")
    secret = '[services.greeting.config]\npassword = { secret = "env:MESH_TEST_NOPE" }'
    project.write(more=f'env_file = "secrets.env"\n{secret}')
    assert [each.about for each in told(project) if each.grade != GOOD] == ["supervisord"]


def test_a_mesh_toml_in_which_something_is_wrong_is_a_finding(project):
    """With its line; what does not hang on it is looked at all the same."""
    text = (project.root / "mesh.toml").read_text()
    (project.root / "mesh.toml").write_text(text.replace("replicas = 1", 'replicas = "one"'))
    found = examined(project)
    assert found["mesh.toml:3"].told == 'gateway.replicas: "one" is not a whole number (0–1024)'
    assert found["[services.greeting]"].told == "svc:Greeting, 2 workers"
    assert found["HTTP"].grade == GOOD
    (project.root / "mesh.toml").write_text("[gateway")
    assert "not valid TOML" in examined(project)["mesh.toml:1"].told


def test_a_supervisord_conf_that_is_not_there_yet_is_no_fault(project):
    """`mesh up` writes it, and what it would say is looked at."""
    conf = project.root / "supervisord.conf"
    conf.unlink()
    found = examined(project)
    assert found["supervisord.conf"] == Finding(GOOD, "supervisord.conf", f"{conf}: not there yet; `mesh up` writes it")
    assert (found["HTTP"].grade, found["supervisord"].grade) == (GOOD, ODD)
    assert not conf.exists()


def test_a_crash_loop_is_told_once(project, monkeypatch: pytest.MonkeyPatch):
    """By the name of the process, which is in the line once."""
    project.up()
    project.command("supervisorctl", "stop", "watch")
    crash = crashes.Crash("greeting:greeting_0", 5, short=5, looping=True, since=1.0, last_at=4.0, words="oh no")
    monkeypatch.setattr(crashes, "read", lambda run_dir: [crash])
    project.command("supervisorctl", "stop", "greeting:greeting_0")
    found = [each for each in told(project) if each.about == "greeting:greeting_0"]
    assert [each.told for each in found] == ["ends again and again: 5 times in 3 s; it last said: oh no"]


def test_a_supervisord_conf_that_lacks_something_is_told(project):
    """In its own words."""
    conf = project.root / "supervisord.conf"
    conf.write_text(conf.read_text().replace("[include]\nfiles=run/programs/*.conf\n", ""))
    found = examined(project)
    assert found["supervisord.conf"].grade == BAD
    assert "[include] is missing" in found["supervisord.conf"].told


def test_what_is_wrong_with_a_set_that_runs_is_found(project):
    """Stopped by hand, out of the registry, out of line with mesh.toml, and a hub that is gone: each by its name."""
    project.up()
    project.trouble("never", "greeting_0")
    project.command("supervisorctl", "restart", "greeting:greeting_0")
    project.command("supervisorctl", "stop", "greeting:greeting_1", "watch")
    project.write(more='environment = { COLOUR = "red" }\n[services.second]\nclass = "svc:Second"')
    found = examined(project)
    assert "and is not in the registry" in found["greeting:greeting_0"].told
    assert found["greeting:greeting_1"] == Finding(
        ODD,
        "greeting:greeting_1",
        "is stopped",
        "`supervisorctl start greeting:greeting_1`, or `mesh up`",
    )
    assert found["greeting"].mend == "`mesh roll greeting`"
    assert found["second"].told == "1 are wanted, 0 have files, supervisord knows 0"

    project.command("supervisorctl", "stop", "hub")
    assert examined(project)["hub"].mend == "`mesh logs hub`"


def test_what_a_killed_supervisord_left_is_found(project):
    """Its children hold the port: said as what they are."""
    project.up()
    project.kill(project.supervisord())
    found = examined(project)["supervisord"]
    assert (found.grade, found.mend) == (BAD, "they are not restarted when they end: `mesh down && mesh up`")


def test_the_command_line_exits_with_what_it_found(project):
    """0 when nothing has to be mended, 1 otherwise, each thing with its mend on the next line."""
    assert project.command("mesh", "doctor").returncode == 0
    project.write(more='class = "nowhere:Nobody"'.replace("class", "env_file"))
    done = project.command("mesh", "doctor", check=False)
    assert done.returncode == 1
    assert "✗ mesh.toml:9: services.greeting.env_file: " in done.stdout
    assert "\n    → mend that file, or leave the key out" in done.stdout


def test_a_worker_that_is_stopped_is_told_once(project):
    """It cannot renew its lease, so that it is missing in the registry as well, which is no second trouble."""
    project.up()
    pid = project.pids()["greeting:greeting_0"]
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: any(each.pid == pid and each.trouble() for each in heartbeats.read(project.run)))
        found = [each.grade for each in told(project) if each.about == "greeting:greeting_0"]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found == [BAD]


def test_a_directory_that_supervisor_cannot_run_in_is_told_with_its_remedy(project):
    """Before the first `mesh up`, which would refuse it; no example of a file is named."""
    odd = project.root / "100%25"
    odd.mkdir()
    for name in ("mesh.toml", "svc.py"):
        (odd / name).write_text((project.root / name).read_text())

    async def look() -> list[Finding]:
        return [each async for each in examine(odd / "supervisord.conf", usable(odd / "mesh.toml"))]

    found = [each for each in asyncio.run(look()) if each.about == "supervisord.conf"]
    assert [each.grade for each in found] == [BAD]
    assert "README" not in found[0].mend
