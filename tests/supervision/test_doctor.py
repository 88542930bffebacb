"""The doctor names what is wrong and the remedy, for each of the troubles that people get into."""

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
    assert "`mesh up`" in found["supervisord"].mend
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


def test_authentication_that_no_gateway_could_start_with_is_found(project):
    """As the gateway would make it: files are read, keys are checked."""
    file = project.root / "mesh.toml"
    file.write_text(file.read_text() + '\n[auth.apikeys]\nfile = "apikeys.json"\n')
    found = examined(project)["auth.apikeys.file"]
    assert (found.grade, "mesh apikeys create" in found.told) == (BAD, True)
    project.command("mesh", "apikeys", "create", "billing")
    assert examined(project)["[auth]"].grade == GOOD
    (project.root / "apikeys.json").chmod(0o644)
    assert examined(project)["auth.apikeys.file"].grade == BAD


def test_a_set_that_runs_is_well(project):
    """Everything was looked at, and everything answers."""
    project.up()
    found = examined(project)
    assert {each.grade for each in found.values()} == {GOOD}, found
    assert "4" in found["registry"].told
    assert f"{project.url}/readyz" in found["HTTP"].told
    assert "200" in found["HTTP"].told


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
    assert found["services.greeting.env_file"].told.startswith(f"{project.root}/secrets.env: ")
    third = found["services.second.class"]
    assert third.grade == BAD
    assert third.told.startswith("svc:Third: ")
    assert third.told.endswith("Greeting, Second")
    assert found["HTTP"].grade == BAD
    assert "gateway.port" in found["HTTP"].mend


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
    names = {
        "services.greeting.user": ("nosuchuser", ""),
        "services.greeting.env_file": (f"{project.root}/secrets.env: ", ""),
        "services.greeting.files": ("--limit files=1000000000: ", "LimitNOFILE"),
        "services.greeting.memory": ("40 MiB", ""),
        "services.greeting.config.password": ("MESH_TEST_NOPE", "[services.greeting] env_file"),
        "services.broken.class": ("broken.py:2: ValueError: not today", "`mesh run --check --as broken broken`"),
        "keys.dir": (f"{project.root}/keys: ", "`mesh keys list`"),
    }
    assert bad.keys() == names.keys()
    for key, (wrong, remedy) in names.items():
        assert bad[key].grade == BAD
        assert wrong in bad[key].told
        assert bad[key].mend
        assert remedy in bad[key].mend
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
    assert found["mesh.toml:3"].told.startswith('gateway.replicas: "one" ')
    assert found["[services.greeting]"].told.startswith("svc:Greeting, 2 ")
    assert found["HTTP"].grade == GOOD
    (project.root / "mesh.toml").write_text("[gateway")
    assert examined(project)["mesh.toml:1"].grade == BAD


def test_a_supervisord_conf_that_is_not_there_yet_is_no_fault(project):
    """`mesh up` writes it, and what it would say is looked at."""
    conf = project.root / "supervisord.conf"
    conf.unlink()
    found = examined(project)
    assert found["supervisord.conf"].grade == GOOD
    assert found["supervisord.conf"].told.startswith(f"{conf}: ")
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
    assert len(found) == 1
    assert "5 times in 3 s" in found[0].told
    assert found[0].told.endswith("oh no")
    assert "greeting_0" not in found[0].told


def test_a_supervisord_conf_that_lacks_something_is_told(project):
    """In its own words."""
    conf = project.root / "supervisord.conf"
    conf.write_text(conf.read_text().replace("[include]\nfiles=run/programs/*.conf\n", ""))
    found = examined(project)
    assert found["supervisord.conf"].grade == BAD
    assert "[include]" in found["supervisord.conf"].told


def test_what_is_wrong_with_a_set_that_runs_is_found(project):
    """Stopped by hand, out of the registry, out of line with mesh.toml, and a hub that is gone: each by its name."""
    project.up()
    project.trouble("never", "greeting_0")
    project.command("supervisorctl", "restart", "greeting:greeting_0")
    project.command("supervisorctl", "stop", "greeting:greeting_1", "watch")
    project.write(more='environment = { COLOUR = "red" }\n[services.second]\nclass = "svc:Second"')
    found = examined(project)
    assert found["greeting:greeting_0"].grade == BAD
    assert "`mesh up`" in found["greeting:greeting_0"].mend
    assert found["greeting:greeting_1"].grade == ODD
    assert "`supervisorctl start greeting:greeting_1`" in found["greeting:greeting_1"].mend
    assert "`mesh roll greeting`" in found["greeting"].mend
    assert re.findall(r"\d+", found["second"].told) == ["1", "0", "0"]

    project.command("supervisorctl", "stop", "hub")
    assert "`mesh logs hub`" in examined(project)["hub"].mend


def test_what_a_killed_supervisord_left_is_found(project):
    """Its children hold the port: said as what they are."""
    project.up()
    project.kill(project.supervisord())
    found = examined(project)["supervisord"]
    assert (found.grade, "`mesh down && mesh up`" in found.mend) == (BAD, True)


def test_the_command_line_exits_with_what_it_found(project):
    """0 when nothing has to be fixed, 1 otherwise, each thing with its remedy on the next line."""
    assert project.command("mesh", "doctor").returncode == 0
    project.write(more='class = "nowhere:Nobody"'.replace("class", "env_file"))
    done = project.command("mesh", "doctor", check=False)
    assert done.returncode == 1
    assert re.search(r"^✗ mesh\.toml:9: services\.greeting\.env_file: .*\n    → .", done.stdout, re.MULTILINE)


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
