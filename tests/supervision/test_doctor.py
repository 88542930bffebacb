"""The doctor names what is wrong and the mend, for each of the troubles that people get into."""

from __future__ import annotations

import asyncio
import os
import socket

from mesh.supervision.doctor import BAD, GOOD, ODD, Finding, examine


def examined(project) -> dict[str, Finding]:
    """The last finding about each thing; those that are good only when nothing else is said."""

    async def look() -> list[Finding]:
        return [each async for each in examine(project.root / "supervisord.conf", project.settings)]

    found = asyncio.run(look())
    return {each.about: each for each in sorted(found, key=lambda each: (GOOD, ODD, BAD).index(each.grade))}


def test_before_the_first_start_nothing_is_wrong(project):
    """It does not run, which is worth knowing; all else is as it should be."""
    found = examined(project)
    assert found["supervisord"].mend == "`mesh up` starts everything"
    assert {each.about for each in found.values() if each.grade != GOOD} == {"supervisord"}
    # It only looks.
    assert not project.run.exists()


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
    assert found["[services.greeting]"].told == "env_file: there is no secrets.env"
    assert "svc has no service 'Third'; it has Greeting, Second" in found["[services.second]"].told
    assert found["HTTP"].mend == "stop whoever listens there, or change gateway.port"


def test_a_supervisord_conf_that_lacks_something_is_told(project):
    """And nothing else is asked then."""
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
        "was stopped by hand",
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
    assert (found.grade, found.mend) == (BAD, "nobody starts them again: `mesh down && mesh up`")


def test_the_command_line_exits_with_what_it_found(project):
    """0 when nothing has to be mended, 1 otherwise, each thing with its mend on the next line."""
    assert project.command("mesh", "doctor").returncode == 0
    project.write(more='class = "nowhere:Nobody"'.replace("class", "env_file"))
    done = project.command("mesh", "doctor", check=False)
    assert done.returncode == 1
    assert (
        "✗ [services.greeting]: env_file: there is no nowhere:Nobody\n    → make it, or leave the key out"
        in done.stdout
    )
