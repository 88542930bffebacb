"""Hosts that are network namespaces: each with its own address, processes, root directory and sshd, on one switch.

Owns: making them, entering them, pulling their cables, ending them; nothing of them is left behind.
Leaves to others: what runs on them.

A host is more than a namespace for its network, because Ansible makes users and directories, and because what is
killed must be dead: processes of a host have a process tree of their own, which ends as one, and see a root directory
in which this machine's /usr can only be read and everything else is theirs. What is on their disks stays there when
they are killed and started again.

The switch is a namespace with a bridge; so is the control host, but that sees this machine's files. No interface of
any of them reaches further than the bridge: what they send cannot leave this machine.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

NEEDED: Final = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "sshd": "openssh-server",
    "ps": "procps",
}

#: Addresses for tests of networks (RFC 2544): nobody else's, wherever this runs.
SUBNET: Final = "198.18.0"
CONTROL_ADDRESS: Final = f"{SUBNET}.254"

_SERIAL = itertools.count()
_WAIT_S = 10.0


def missing() -> str:
    """What this machine lacks for hosts, in words; "" when nothing."""
    if os.geteuid() != 0:
        return "hosts as network namespaces need root"
    lacking = sorted({package for program, package in NEEDED.items() if _which(program) is None})
    if lacking:
        return f"missing: apt install {' '.join(lacking)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _do(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Network:
    """A switch, a control host, and any number of hosts on them.

    Args:
        share: directories of this machine that hosts can read, as the project and the Python that runs it; none for
            hosts that must be bare.
    """

    def __init__(self, share: Iterable[Path] = ()) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mesh-"))
        self.root.chmod(0o755)  # users of the hosts pass through here
        self.share = sorted({path.resolve() for path in share})
        self.hosts: dict[str, Host] = {}
        self._tag = f"m{os.getpid()}-{next(_SERIAL)}"
        self._switch = f"{self._tag}-switch"
        self._control = f"{self._tag}-control"
        try:
            for space in (self._switch, self._control):
                _do("ip", "netns", "add", space)
                _do("ip", "-n", space, "link", "set", "lo", "up")
            _do("ip", "-n", self._switch, "link", "add", "name", "hub0", "type", "bridge")
            _do("ip", "-n", self._switch, "link", "set", "hub0", "up")
            self._plug(self._control, "control", CONTROL_ADDRESS)
            self.key = self.root / "id"
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
            (self.root / "known_hosts").touch()
        except BaseException:
            self.close()
            raise

    def host(self, name: str, kind: type[Host] | None = None) -> Host:
        """Make one more host, and start it.

        Args:
            kind: what is its first process; without one, nothing but sshd is started.
        """
        made = (kind or Host)(self, name, f"{SUBNET}.{len(self.hosts) + 1}", f"{self._tag}-{name}")
        self.hosts[name] = made
        _do("ip", "netns", "add", made.space)
        _do("ip", "-n", made.space, "link", "set", "lo", "up")
        self._plug(made.space, name, made.address)
        with (self.root / "known_hosts").open("a") as known:
            known.write(f"{made.address} {made.public_key}\n")
        made.start()
        return made

    def _plug(self, space: str, port: str, address: str) -> None:
        _do(
            "ip",
            "-n",
            self._switch,
            "link",
            "add",
            "name",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            space,
        )
        _do("ip", "-n", self._switch, "link", "set", "dev", port, "master", "hub0", "up")
        _do("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        _do("ip", "-n", space, "link", "set", "eth0", "up")

    def unplug(self, name: str) -> None:
        """Pull a host's cable: nothing arrives any more, nobody is told, and its own addresses stay."""
        _do("ip", "-n", self._switch, "link", "set", "dev", name, "down")

    def plug(self, name: str) -> None:
        """Put it in again."""
        _do("ip", "-n", self._switch, "link", "set", "dev", name, "up")

    @property
    def inside(self) -> list[str]:
        """What to write before a command so that it runs on the control host, which sees this machine's files."""
        return ["nsenter", f"--net=/run/netns/{self._control}"]

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on the control host; nobody else ends it."""
        return subprocess.Popen([*self.inside, *words], text=True, stdin=subprocess.DEVNULL, **options)

    def run(self, words: Sequence[str], timeout_s: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the control host; it may fail."""
        return subprocess.run(
            [*self.inside, *words],
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            **options,
        )

    def close(self) -> None:
        """End every host and remove what was made."""
        for host in self.hosts.values():
            host.kill()
        for space in (*(host.space for host in self.hosts.values()), self._control, self._switch):
            _do("ip", "netns", "delete", space, check=False)
        shutil.rmtree(self.root, ignore_errors=True)


# What a host's root directory is made of. The mounts are in the host's own namespace, and go with it.
_BOOT = """\
set -eu
root=$1 name=$2; shift 2
mount --make-rprivate /
hostname "$name"
mount --rbind "$root" "$root"
cd "$root"
mount --rbind /usr usr && mount -o remount,bind,ro usr
for path in "$@"; do mount --rbind "$path" ".$path" && mount -o remount,bind,ro ".$path"; done
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys 2>/dev/null || true
mount -t tmpfs -o mode=755 run run
%(devices)s
pivot_root . old
cd /
umount -l old
%(first)s
"""

_DEVICES = """\
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 shm dev/shm 2>/dev/null || true
"""

_FIRST = """\
mkdir -p run/sshd
/usr/sbin/sshd -D -e &
echo up
# The first process of a tree takes in those that lost their parents; bash does.
wait $!
"""

_SSHD = """\
HostKey /etc/ssh/host_key
ListenAddress {address}
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
Subsystem sftp internal-sftp
"""


class Host:
    """A machine, as far as anything on it can tell.

    Attributes:
        address: its only address beside the loopback one.
        root: its root directory as this machine sees it. What lies in /run, /proc and /usr is not there.
        space: the name of its network namespace.
    """

    #: Shell lines of its start: what is mounted beside the disks, and what its first process becomes.
    devices: ClassVar[str] = _DEVICES
    first: ClassVar[str] = _FIRST

    def __init__(self, network: Network, name: str, address: str, space: str) -> None:
        self.name = name
        self.address = address
        self.root = network.root / name
        self.space = space
        self._network = network
        self._process: subprocess.Popen[str] | None = None
        self.make_root()

    def make_root(self) -> None:
        """Lay out its disk, which is empty yet."""
        root = self.root
        for name in (
            "usr",
            "dev",
            "proc",
            "sys",
            "run",
            "old",
            "home",
            "srv",
            "opt",
            "mnt",
            "var/log",
            "var/lib",
            "etc/ssh",
        ):
            (root / name).mkdir(parents=True)
        for name, mode in {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "root/.ssh": 0o700}.items():
            (root / name).mkdir()
            (root / name).chmod(mode)
        (root / "var/run").symlink_to("../run")
        for path in self._network.share:
            (root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        etc = (
            "ld.so.cache",
            "login.defs",
            "nsswitch.conf",
            "os-release",
            "debian_version",
            "localtime",
            "shells",
            "profile",
        )
        for name in (*etc, "ld.so.conf", "ld.so.conf.d", "alternatives", "python3.11", "python3", "ssl", "security"):
            _do("cp", "-a", f"/etc/{name}", str(root / "etc"), check=False)
        own = {
            "passwd": "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            "group": "root:x:0:\nnogroup:x:65534:\n",
            "shadow": "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\nnobody:*:19000:0:99999:7:::\n",
            "gshadow": "root:*::\nnogroup:*::\n",
            "hostname": f"{self.name}\n",
            "hosts": f"127.0.0.1 localhost {self.name}\n",
            "ssh/sshd_config": _SSHD.format(address=self.address),
        }
        for name, text in own.items():
            (root / "etc" / name).write_text(text)
        (root / "etc/shadow").chmod(0o600)
        (root / "root/.ssh/authorized_keys").write_text(self._network.key.with_suffix(".pub").read_text())
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "etc/ssh/host_key"))

    @property
    def wrapped(self) -> list[str]:
        """A command that its first process is before it is anything else, and that becomes what follows it."""
        return []

    @property
    def public_key(self) -> str:
        """What sshd proves itself with."""
        return (self.root / "etc/ssh/host_key.pub").read_text().strip()

    def start(self) -> None:
        """Switch it on: sshd runs when this returns."""
        words = ["nsenter", f"--net=/run/netns/{self.space}"]
        words += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", *self.wrapped]
        boot = _BOOT % {"devices": self.devices, "first": self.first}
        words += ["bash", "-c", boot, "boot", str(self.root), self.name, *map(str, self._network.share)]
        log = (self.root.parent / f"{self.name}.log").open("a")
        with log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "up\n":
            raise RuntimeError(f"{self.name}: {Path(log.name).read_text()}")
        self._init = int(_do("ps", "-o", "pid=", "--ppid", str(self._process.pid)).split()[0])
        until = time.monotonic() + _WAIT_S
        while subprocess.run(self.words("bash", "-c", f"</dev/tcp/{self.address}/22"), capture_output=True).returncode:
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name}: no sshd after {_WAIT_S:g} s: {Path(log.name).read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Switch it off at once: every process is gone, nothing was told to anybody, its disk stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait(_WAIT_S)
        assert process.stdout is not None
        process.stdout.close()
        # unshare's child is killed with it; it is over when nothing holds the disk any more.
        until = time.monotonic() + _WAIT_S
        while Path(f"/proc/{self._init}").exists() and time.monotonic() < until:
            time.sleep(0.01)

    def words(
        self, *words: str, user: str = "root", where: str = "/", env: Mapping[str, str] | None = None
    ) -> list[str]:
        """A command as this machine has to write it so that it runs on the host, without SSH."""
        given = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **(env or {}),
        }
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        inner = f"cd {shlex.quote(where)} && exec {shlex.join([*become, *words])}"
        clean = ["env", "-i", *(f"{key}={value}" for key, value in given.items())]
        return ["nsenter", "-t", str(self._init), "-m", "-p", "-n", "-u", "-i", "-r", "-w", *clean, "bash", "-c", inner]

    def run(self, *words: str, timeout_s: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the host; it may fail. Options as of `words`."""
        return subprocess.run(
            self.words(*words, **options), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )

    def popen(self, *words: str, stdout: Any = None, stderr: Any = None, **options: Any) -> subprocess.Popen[str]:
        """Start a command on the host; it ends with the host at the latest. Options as of `words`."""
        return subprocess.Popen(
            self.words(*words, **options), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True
        )
