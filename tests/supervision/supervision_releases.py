"""A project with releases side by side, as a host has them that the playbooks deploy to."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import tomllib
from pathlib import Path
from typing import Any

from supervision_project import ROOT, Project

from mesh.config import load, usable
from mesh.deploy.error_gate import Limits
from mesh.deploy.roll import roll
from mesh.deploy.up import Up, bring_up
from mesh.doctor.doctor import examine
from mesh.doctor.finding import Finding
from mesh.supervisord import layout as layouts

spec = importlib.util.spec_from_file_location("mesh_filters", ROOT / "playbooks/filter_plugins/mesh_filters.py")
assert spec is not None
assert spec.loader is not None
filters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)

BROKEN = 'print("Traceback: the service is broken", flush=True)\nraise SystemExit(1)\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Releases:
    """Releases side by side, as a deployed host has them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.root = project.root

    def make(self, name: str, more: dict[str, dict[str, Any]], *, code: str = "") -> None:
        """A release with these settings, which is the current one from now on.

        Args:
            code: in the place of the module with the services.
        """
        release = self.root / "releases" / name
        release.mkdir(parents=True)
        shutil.copy(self.root / "svc.py", release)
        if code:
            (release / "svc.py").write_text(code)
        settings = tomllib.loads((self.root / "mesh.toml").read_text())
        places = {
            "mesh": {"run_dir": f"{self.root}/run", "log_dir": f"{self.root}/logs"},
            "store": {"dir": f"{self.root}/data"},
        }
        for tree in (places, more):
            for table, keys in tree.items():
                settings.setdefault(table, {}).update(keys)
        (release / "mesh.toml").write_text(filters.to_toml(settings))
        conf = filters.host_conf((self.root / "supervisord.conf").read_text(), str(self.root), ["hub", "store"])
        (release / "supervisord.conf").write_text(conf)
        self.lead(name)

    def lead(self, name: str) -> None:
        """Make a release the current one."""
        link = self.root / "current"
        link.unlink(missing_ok=True)
        link.symlink_to(f"releases/{name}")
        os.chdir(link)

    @property
    def hubs(self) -> list[str]:
        """As the current release names them."""
        return list(load(self.root / "current/mesh.toml").mesh.hubs)

    @property
    def layout(self) -> layouts.Layout:
        return layouts.read(self.root / "current/supervisord.conf")

    def up(self) -> Up:
        return asyncio.run(bring_up(self.layout, load(self.root / "current/mesh.toml")))

    def roll(self, gate: Limits | None = None) -> None:
        settings = load(self.root / "current/mesh.toml")
        asyncio.run(roll(self.layout, settings, patience_s=30.0, settle_s=0.1, gate=gate))

    def examined(self) -> list[Finding]:
        async def findings() -> list[Finding]:
            conf, found = self.root / "current/supervisord.conf", usable(self.root / "current/mesh.toml")
            return [each async for each in examine(conf, found)]

        return asyncio.run(findings())

    @property
    def places(self) -> set[str]:
        """The releases that processes run from."""
        return {Path(os.readlink(f"/proc/{each.pid}/cwd")).name for each in self.project.members()}
