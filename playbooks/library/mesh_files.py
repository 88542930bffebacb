#!/usr/bin/python
"""Directories and small files of a host, all in one step. See DOCUMENTATION."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import working

DOCUMENTATION = """
module: mesh_files
short_description: Directories and small files of a host, in one step
description:
  - What C(file) and C(copy) do in a loop, with one round trip for all instead of several for each.
  - A file is replaced whole, and has its owner and mode before it has its name.
  - Below a directory that a check run did not make, nothing is looked at.
options:
  prefix:
    description: The directory that the host keeps the mesh in, which this deployment has the lock of.
    type: path
    required: true
  directories:
    description: Each with C(path), C(owner), C(group), C(mode).
    type: list
    elements: dict
    default: []
  files:
    description: Each with C(path), C(content), C(owner), C(group), C(mode).
    type: list
    elements: dict
    default: []
  secrets:
    description: Files whose contents are never shown, neither in results nor as a difference.
    type: list
    elements: dict
    default: []
"""

RETURN = """
paths:
  description: What was changed, or would be.
  returned: always
  type: list
"""

EXAMPLES = """
- name: Write two files
  mesh_files:
    prefix: /srv/mesh
    directories:
      - { path: /srv/mesh/keys, owner: mesh, group: mesh, mode: "0700" }
    files:
      - { path: /srv/mesh/keys/hub.public, content: "…", owner: mesh, group: mesh, mode: "0600" }
"""

_ABOUT = {name: {"type": "str", "required": True} for name in ("owner", "group", "mode")}
_DIRECTORY = {"path": {"type": "path", "required": True}, **_ABOUT}
_FILE = {**_DIRECTORY, "content": {"type": "str", "required": True}}
_SECRET = {**_DIRECTORY, "content": {"type": "str", "required": True, "no_log": True}}


class Files:
    """The requested files, and the changes that were made."""

    def __init__(self, pretend: bool) -> None:
        self._pretend = pretend
        self.paths: list[str] = []
        self.differences: list[dict[str, str]] = []

    def directory(self, wanted: dict[str, Any]) -> None:
        path = wanted["path"]
        if not os.path.isdir(path):
            self._note(path, {"before": "", "after": f"a directory, {wanted['owner']} {wanted['mode']}\n"})
            if self._pretend:
                return
            os.makedirs(path, mode=0o700)
        self._own(path, wanted)

    def file(self, wanted: dict[str, Any], *, shown: bool) -> None:
        path, content = wanted["path"], wanted["content"].encode()
        try:
            with open(path, "rb") as file:
                before: bytes | None = file.read()
        except FileNotFoundError:
            before = None
        if before == content:
            self._own(path, wanted)
            return
        difference = {"before": (before or b"").decode("utf-8", "replace"), "after": wanted["content"]}
        self._note(path, difference if shown else {"before": "", "after": "other contents, which are not shown\n"})
        if not self._pretend:
            _replace(path, content, wanted)

    def _own(self, path: str, wanted: dict[str, Any]) -> None:
        there, mode = os.stat(path), int(wanted["mode"], 8)
        try:
            ids = _ids(wanted)
        except KeyError:
            if not self._pretend:
                raise
            ids = (-1, -1)  # in a check run, the user has not been created
        if ids == (there.st_uid, there.st_gid) and mode == stat.S_IMODE(there.st_mode):
            return
        before = f"{_user(there.st_uid)} {_group(there.st_gid)} {stat.S_IMODE(there.st_mode):04o}\n"
        self._note(path, {"before": before, "after": f"{wanted['owner']} {wanted['group']} {mode:04o}\n"})
        if not self._pretend:
            # Set the mode last: a change of owner clears bits.
            os.chown(path, *ids)
            os.chmod(path, mode)

    def _note(self, path: str, difference: dict[str, str]) -> None:
        self.paths.append(path)
        self.differences.append({"before_header": path, "after_header": path, **difference})


def _replace(path: str, content: bytes, wanted: dict[str, Any]) -> None:
    # mkstemp's file is readable for its owner alone.
    handle, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), *_ids(wanted))
            os.fchmod(file.fileno(), int(wanted["mode"], 8))
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def _ids(wanted: dict[str, Any]) -> tuple[int, int]:
    """The ids of user and group, given by names or numbers."""
    owner, group = wanted["owner"], wanted["group"]
    uid = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
    return uid, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def main() -> None:
    module = AnsibleModule(
        {
            "prefix": {"type": "path", "required": True},
            "directories": {"type": "list", "elements": "dict", "default": [], "options": _DIRECTORY},
            "files": {"type": "list", "elements": "dict", "default": [], "options": _FILE},
            "secrets": {"type": "list", "elements": "dict", "default": [], "options": _SECRET, "no_log": False},
        },
        supports_check_mode=True,
    )
    # The mesh's user must be able to pass through the parent directories, whatever the umask of the login user.
    os.umask(0o022)
    files = Files(pretend=module.check_mode)
    path = ""
    try:
        with working(module, module.params["prefix"]):
            for each in module.params["directories"]:
                path = each["path"]
                files.directory(each)
            for name in ("files", "secrets"):
                for each in module.params[name]:
                    path = each["path"]
                    files.file(each, shown=name == "files")
    except KeyError as exc:
        module.fail_json(
            msg=f"{path}: {exc.args[0]}; set mesh_become to create it, or name another one with mesh_user, mesh_group"
        )
    except OSError as exc:
        module.fail_json(msg=f"{path}: {exc.strerror}")
    module.exit_json(changed=bool(files.paths), paths=files.paths, diff=files.differences)


if __name__ == "__main__":
    main()
