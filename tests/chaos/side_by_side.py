"""Releases beside each other with a link that leads to the current one, as a deployment has them, under supervisord."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .conftest import BIN, ROOT, Set, environment, free_port

HERE = Path(__file__).parent

SETTINGS = """\
[mesh]
run_dir = "{root}/run"
log_dir = "{root}/logs"
[store]
dir = "{root}/data"
[gateway]
port = {port}
replicas = 2
[services.shop]
class = "shop:Shop"
replicas = 2
[services.ledger]
class = "durable_work:Ledger"
"""

SHOP = """\
import mesh
from mesh import http, rpc


class Shop(mesh.Service):
    @http.get("/release")
    @rpc(idempotent=True)
    async def release(self) -> str:
        return "{name}"
"""


class Releases(Set):
    """A prefix with releases; commands work in the current one."""

    def make(self, name: str, *, shop: str = SHOP, conf: tuple[str, str] = ("", "")) -> None:
        """A release.

        Args:
            shop: its code.
            conf: what to replace in supervisord.conf, and by what.
        """
        release = self.root / "releases" / name
        release.mkdir(parents=True)
        for shared in ("run", "logs", "data"):
            (self.root / shared).mkdir(mode=0o700, exist_ok=True)
            (release / shared).symlink_to(self.root / shared)
        text = (ROOT / "supervisord.conf").read_text()
        assert conf[0] in text
        (release / "supervisord.conf").write_text(text.replace(*conf) if conf[0] else text)
        (release / "mesh.toml").write_text(SETTINGS.format(root=self.root, port=self.port))
        (release / "shop.py").write_text(shop.replace("{name}", name))
        shutil.copy(HERE / "durable_work.py", release)

    def lead(self, name: str) -> None:
        """Make it the current one."""
        new = self.root / "current.new"
        new.symlink_to(self.root / "releases" / name)
        os.replace(new, self.root / "current")

    def run(self, *words: str, check: bool = True, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command of the current release, as its bin/mesh and bin/supervisorctl run it."""
        conf = str(self.root / "current/supervisord.conf")
        own = [words[0], "-c", conf] if words[0] == "supervisorctl" else [words[0]]
        more = ["--conf", conf] if words[:2] == ("mesh", "up") else []
        done = subprocess.run(
            [str(BIN / own[0]), *own[1:], *words[1:], *more],
            cwd=self.root / "current",
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(f"{words} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def releases(self) -> dict[str, str]:
        """The release that each process truly runs from."""
        return {name: Path(os.readlink(f"/proc/{pid}/cwd")).name for name, pid in self.pids().items()}


@contextmanager
def side_by_side() -> Iterator[Releases]:
    """The first release, "one", which runs: two shops, a ledger, two gateways, hub and store."""
    root = Path(tempfile.mkdtemp(prefix="mesh-")).resolve()
    made = Releases(root, free_port())
    made.make("one")
    made.lead("one")
    try:
        made.run("mesh", "up")
        yield made
    finally:
        down = made.run("mesh", "down", check=False)
        pid_file = root / "run/supervisord.pid"
        if pid_file.exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        shutil.rmtree(root)
        assert down.returncode == 0, down.stdout + down.stderr
