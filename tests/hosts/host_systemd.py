"""Hosts whose first process is Debian's systemd.

Owns: what systemd wants to find when it starts, its control groups, and which of Debian's units it starts: sshd, the
journal, and what a test enables.
Leaves to others: everything else about a host (host_network).

systemd keeps each unit in a control group. A host sees one group of this machine's as the root of all of them; it is
made before the host starts, and goes when it is dead. Only cgroup2 will do: at /sys/fs/cgroup, or, beside the older
hierarchies, at /sys/fs/cgroup/unified.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import ClassVar, Final

from .host_network import Host

SYSTEMD: Final = Path("/usr/lib/systemd/systemd")
_UNITS: Final = Path("/usr/lib/systemd/system")
_GENERATORS: Final = Path("/usr/lib/systemd/system-generators")

#: What is started beside ssh.service, of all that Debian's packages on this machine would have started.
_WANTED: Final = {"systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"}

# Devices of its own: systemd writes to /dev/console, and that is this machine's. Nor does it get at this machine's
# kernel: /proc/sys, which it would adjust, can only be read.
_DEVICES = """\
mount -t tmpfs -o mode=755,nosuid dev dev
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in stdin:0 stdout:1 stderr:2; do ln -s "fd/${name#*:}" "dev/${name%:*}"; done
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
"""

_FIRST = f"""\
echo up
exec env -i container=mesh LANG=C.UTF-8 {SYSTEMD} --system
"""


def systemd_missing() -> str:
    """What this machine lacks for such hosts, in words; "" when nothing."""
    if not SYSTEMD.exists():
        return "missing: apt install systemd"
    if not (_UNITS / "ssh.service").exists():
        return "missing: apt install openssh-server"
    root = _cgroup2()
    if root is None:
        return "systemd needs cgroup2, and it is mounted nowhere"
    probe = root / f"mesh-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as exc:
        return f"systemd needs a control group of its own: {root}: {exc.strerror}"
    return ""


def _cgroup2() -> Path | None:
    """Where this machine's control groups of the second version are."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


class SystemdHost(Host):
    """A host that starts what its units say, and again when it is started again."""

    devices: ClassVar[str] = _DEVICES
    first: ClassVar[str] = _FIRST

    def make_root(self) -> None:
        super().make_root()
        units = self.root / "etc/systemd/system"
        wants = units / "multi-user.target.wants"
        wants.mkdir(parents=True)
        # /usr is this machine's, so any package may have left its own there, which is nothing for a host of a test.
        for path in _UNITS.glob("*.wants/*"):
            if path.name not in _WANTED and not (units / path.name).is_symlink():
                (units / path.name).symlink_to("/dev/null")
        (units / "default.target").symlink_to(_UNITS / "multi-user.target")
        (wants / "ssh.service").symlink_to(_UNITS / "ssh.service")
        generators = self.root / "etc/systemd/system-generators"
        generators.mkdir()
        for path in _GENERATORS.glob("*"):
            (generators / path.name).symlink_to("/dev/null")
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")

    @property
    def group(self) -> Path:
        """Its control group, as this machine sees it."""
        root = _cgroup2()
        assert root is not None
        return root / self.space

    @property
    def wrapped(self) -> list[str]:
        # It joins the group before the group becomes the root of what it sees.
        join = f"echo 0 >{self.group}/cgroup.procs"
        return ["bash", "-c", f'{join} && exec unshare --cgroup "$@"', "join"]

    def start(self) -> None:
        self.group.mkdir(exist_ok=True)
        super().start()

    def kill(self) -> None:
        super().kill()
        until = time.monotonic() + 10
        # The kernel counts the dead for a moment.
        while not self._empty() and time.monotonic() < until:
            time.sleep(0.02)

    def _empty(self) -> bool:
        """Remove its control groups, the inner ones first; whether none is left."""
        for inner, _, _ in os.walk(self.group, topdown=False):
            try:
                os.rmdir(inner)
            except OSError:
                return False
        return True

    def systemctl(self, *words: str) -> str:
        """What systemctl prints; it may fail, as `is-active` does by its exit code."""
        return self.run("systemctl", *words).stdout.strip()
