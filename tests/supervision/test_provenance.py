"""Going back to a release by its own settings, and mending what runs by another mesh.toml than the present one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from supervision_project import Project
from supervision_releases import BROKEN, Releases, free_port

from mesh.deploy.roll import RollFailed
from mesh.doctor.finding import BAD, GOOD

#: What a failed release may change beside its hubs.
CHANGES = [
    pytest.param({}, id="hubs alone"),
    pytest.param({"mesh": {"run_dir": "{root}/other"}, "store": {"dir": "{root}/elsewhere"}}, id="directories"),
    pytest.param({"mesh": {"bind": "tcp://127.0.0.1:*"}}, id="bind", marks=pytest.mark.long),
    pytest.param({"discovery": {"lease": "9s", "renew": "2s"}}, id="leases", marks=pytest.mark.long),
    pytest.param({"gateway": {"port": "{port}"}}, id="gateway", marks=pytest.mark.long),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_failed_release_with_other_hubs_goes_back(releases: Releases, change: dict[str, dict[str, str]]) -> None:
    """What goes back is looked for where it registers; all of it runs as before, and nothing is left to fix."""
    own = {"hubs": [f"tcp://127.0.0.1:{free_port()}"]}
    more: dict[str, dict[str, Any]] = {
        table: {key: _value(value, releases.root) for key, value in keys.items()} for table, keys in change.items()
    }
    more["mesh"] = {**own, **more.get("mesh", {})}
    releases.make("2", more, code=BROKEN)
    with pytest.raises(RollFailed) as caught:
        releases.roll()
    assert caught.value.details["undone"], caught.value
    releases.lead("1")
    before = releases.project.pids()
    assert releases.up().earlier == []
    assert releases.project.pids() == before
    assert releases.places == {"1"}
    assert {each.grade for each in releases.examined()} == {GOOD}


def test_what_runs_by_another_mesh_toml_is_named_and_mended(releases: Releases) -> None:
    """As after a deployment that was cut off: nothing answers at the hubs that the current release names."""
    releases.make("2", {"mesh": {"hubs": [f"tcp://127.0.0.1:{free_port()}"]}})
    releases.roll()
    assert releases.places == {"2"}
    releases.lead("1")
    bad = {each.about: each.told for each in releases.examined() if each.grade == BAD}
    assert f"{releases.root}/releases/2/mesh.toml" in bad["hub"], bad
    assert not releases.up().already
    bad = {each.about: each.told for each in releases.examined() if each.grade == BAD}
    assert bad == {}


def test_hubs_that_were_changed_in_their_place_are_mended(project: Project) -> None:
    """The running hub was started before mesh.toml named another one."""
    project.write(greetings=1)
    project.up()
    project.write(greetings=1, more=f'[mesh]\nhubs = ["tcp://127.0.0.1:{free_port()}"]')
    before = project.pids()
    project.up()
    assert project.pids()["hub"] != before["hub"]
    assert project.up().already


def _value(text: str, root: Path) -> str | int:
    return free_port() if text == "{port}" else text.format(root=root)
