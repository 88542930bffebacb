"""The playbooks on this machine, without root; what they do over SSH is told in tests/hosts/test_deploy_fleet.py.

The tests are one story, in the order of the file.
"""

from __future__ import annotations

import json
import stat

import pytest

from .deploy_project import NOT_AT_THE_TRY, Deployment, recap

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(480)]


def test_it_deploys_without_root_and_a_second_run_changes_nothing(deployment: Deployment) -> None:
    """Into a directory of one's own; nothing becomes another user, and no unit is written."""
    first = deployment.play("deploy")
    assert first.returncode == 0, first.stdout + first.stderr
    assert deployment.get("/hello/ujun") == "Hello, ujun!"
    second = deployment.play("deploy")
    assert recap(second)["changed"] == 0, second.stdout
    assert recap(second)["failed"] == 0


@pytest.mark.long
def test_secrets_go_live_and_back_with_their_release(deployment: Deployment) -> None:
    """A changed one is another release; going back brings back the earlier one. Their values are shown nowhere."""
    deployment.answers_token()
    for word in ("first-word", "second-word"):
        # What comes once before the release has its secrets, too.
        done = deployment.play(
            "deploy", "--diff", **deployment.secret(word), mesh_before_release='echo "$TOKEN" >> "$HOME/before"'
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert deployment.get("/token") == word
        assert word not in done.stdout + done.stderr
    assert (deployment.prefix / "before").read_text().split() == ["first-word", "second-word"]
    done = deployment.play("rollback")
    assert done.returncode == 0, done.stdout + done.stderr
    assert deployment.get("/token") == "first-word"
    for release in (deployment.prefix / "releases").iterdir():
        secrets = release / "secrets.env"
        assert not secrets.exists() or stat.S_IMODE(secrets.stat().st_mode) == 0o600
    history = [json.loads(line) for line in (deployment.prefix / "history.jsonl").read_text().splitlines()]
    assert [(each["result"], each["playbook"]) for each in history[-2:]] == [
        ("live", "deploy.yml"),
        ("live", "rollback.yml"),
    ]
    assert history[-1]["release"] == deployment.current
    shown = json.loads(deployment.mesh("releases", "--json"))
    assert shown["turns"] == history[::-1]
    assert [each["name"] for each in shown["releases"] if each["current"]] == [deployment.current]
    assert shown["unfinished"] is None


def test_what_comes_before_a_release_stops_it(deployment: Deployment) -> None:
    """Its output is told, and nothing has gone over; what cannot be imported has not even been installed."""
    good = deployment.current
    deployment.project.says("Unmigrated")
    done = deployment.play("deploy", **deployment.secret("x1y2"), mesh_before_release="echo no such table; exit 3")
    assert done.returncode == 2
    assert "ended with 3" in done.stdout
    assert "no such table" in done.stdout
    assert deployment.current == good
    deployment.project.fails("raise RuntimeError('it is broken')")
    done = deployment.play("deploy", **deployment.secret("x1y2"))
    assert done.returncode == 2
    assert "it is broken" in done.stdout
    assert deployment.current == good
    # Without secrets from here on.
    deployment.project.settings("")


@pytest.mark.long
def test_a_release_that_ends_at_once_goes_back_by_itself(deployment: Deployment) -> None:
    """No request fails, the earlier release runs on, and the reason stands in the last lines."""
    good = deployment.current
    deployment.project.fails(*NOT_AT_THE_TRY, "    raise RuntimeError('it is broken')")
    with deployment.asked() as failed:
        done = deployment.play("deploy")
    assert done.returncode != 0
    last = "\n".join(done.stdout.splitlines()[-20:])
    assert "greeting:greeting_1 does not become ready" in last, done.stdout
    assert "it is broken" in last
    assert f"{good} runs on here" in last
    assert deployment.current == good
    assert not failed


@pytest.mark.long
def test_a_gate_that_stays_shut_takes_the_release_back(deployment: Deployment) -> None:
    """What was asked for and what it answered stand in the last lines."""
    good = deployment.current
    deployment.project.says("Welcome")
    with deployment.asked() as failed:
        done = deployment.play("deploy", mesh_gates=["/readyz", "/nowhere"], mesh_gate_tries=2)
    assert done.returncode != 0
    last = "\n".join(done.stdout.splitlines()[-20:])
    assert f"wait for the gates:\n        GET http://127.0.0.1:{deployment.port}/nowhere: 404" in last, done.stdout
    assert f"{good} runs on here" in last
    assert deployment.current == good
    assert deployment.get("/hello/ujun") == "Hello, ujun!"
    assert not failed


def test_what_is_asked_wrongly_is_told_in_words_and_changes_nothing(deployment: Deployment) -> None:
    """A service that there is not; a variable that nobody reads, since it was misspelt."""
    done = deployment.play("scale", mesh_scale="greting=2")
    assert done.returncode != 0
    assert 'did you mean "greeting"?' in done.stdout
    assert "from_json failed" not in done.stdout, done.stdout
    assert recap(done)["changed"] == 0
    done = deployment.play("scale", mesh_scale="greeting=2", mesh_setings={})
    assert done.returncode != 0
    assert "did you mean mesh_settings?" in done.stdout


def test_stop_leaves_nothing_running(deployment: Deployment) -> None:
    """Neither a process nor a socket."""
    done = deployment.play("stop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert deployment.processes == []
    assert not [path for path in (deployment.prefix / "run").iterdir() if path.is_socket()]


def test_a_store_whose_data_is_gone_does_not_begin_with_none(deployment: Deployment) -> None:
    """Unless it is asked for."""
    (deployment.prefix / "data/mesh.db").unlink()
    done = deployment.play("deploy", mesh_store_new=False)
    assert done.returncode == 2
    assert "a store was deployed to here before" in done.stdout
    assert deployment.processes == []
