"""A project runs in a directory of any name, or the command says why it cannot."""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from pathlib import Path

import pytest
from supervision_project import ROOT, Made

from mesh.errors import ConfigError
from mesh.supervisord import layout


@pytest.mark.parametrize("name", ["my shop[old]", "größe*?;#'"])
def test_a_set_runs_in_a_directory_with_special_characters(monkeypatch: pytest.MonkeyPatch, name: str):
    """All that mesh.toml names runs, answers, and is stopped; supervisorctl works, too."""
    with Made(monkeypatch, prefix=name) as project:
        project.write(greetings=1)
        project.up()
        with urllib.request.urlopen(f"{project.url}/hello/x", timeout=10) as answer:
            assert (answer.status, answer.read()) == (200, b'"Hello, x!"')
        assert set(project.states().values()) == {"RUNNING"}
        assert "greeting:greeting_0" in project.states()
        # Nothing has changed: a pattern that no longer finds the program files would remove every group here.
        project.command("supervisorctl", "update")
        assert "greeting:greeting_0" in project.states()
        project.command("mesh", "scale", "greeting=2")
        assert project.states()["greeting:greeting_1"] == "RUNNING"
        assert project.command("mesh", "down").returncode == 0
        assert project.members() == []


@pytest.mark.parametrize("name", ["a%sb", "100%"])
def test_a_percent_sign_in_the_path_is_refused_with_the_path(name: str):
    """supervisor formats values with it: the message would otherwise show the whole environment."""
    root = Path(tempfile.mkdtemp(prefix="mesh-")).resolve()
    try:
        project = root / name
        project.mkdir()
        shutil.copy(ROOT / "supervisord.conf", project)
        with pytest.raises(ConfigError) as caught:
            layout.read(project / "supervisord.conf")
        assert caught.value.details["path"] == str(project)
    finally:
        shutil.rmtree(root)
