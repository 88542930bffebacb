"""A user of a host who is not root, and may become root by sudo: as most hosts are logged in to.

Owns: that user, and what sudo wants to find.
Leaves to others: everything else about a host (host_network).
"""

from __future__ import annotations

import os
import shutil
from typing import Final

from .host_network import Host

_UID: Final = 1000


def sudo_missing() -> str:
    """What this machine lacks for such a user, in words; "" when nothing."""
    return "" if shutil.which("sudo") else "missing: apt install sudo"


# Debian's own, and what an administrator adds to it.
_SUDOERS: Final = """\
Defaults env_reset
Defaults mail_badpass
Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Defaults use_pty
root ALL=(ALL:ALL) ALL
{name} ALL=(root) NOPASSWD: ALL
"""

#: sudo asks PAM also when it asks nobody for a password. What else this machine has for PAM is nothing for its hosts.
_PAM: Final = "".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session"))


def admit(host: Host, name: str) -> None:
    """Give a host this user, who comes in by root's key; root itself comes in no more.

    What the user makes is for nobody else to read, as hardened hosts have it.
    """
    etc, home = host.root / "etc", host.root / "home" / name
    for file, line in {
        "passwd": f"{name}:x:{_UID}:{_UID}::/home/{name}:/bin/bash",
        "group": f"{name}:x:{_UID}:",
        "shadow": f"{name}:*:19000:0:99999:7:::",
    }.items():
        with (etc / file).open("a") as known:
            known.write(f"{line}\n")
    home.mkdir()
    (home / ".bashrc").write_text("umask 077\n")
    (host.root / "root/.ssh").rename(home / ".ssh")
    for path in (home, *home.rglob("*")):
        os.chown(path, _UID, _UID)
    (etc / "pam.d").mkdir()
    (etc / "pam.d/sudo").write_text(_PAM)
    (etc / "sudoers").write_text(_SUDOERS.format(name=name))
    (etc / "sudoers").chmod(0o440)
