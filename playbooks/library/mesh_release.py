#!/usr/bin/python
"""Makes a release on a host, from the files that were copied there. See DOCUMENTATION."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import tarfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import working
from ansible.module_utils.mesh_place import COMPLETE, SECRETS, TRIED, Place, Refused, do

DOCUMENTATION = """
module: mesh_release
short_description: Install a release from the copied files, without an index and without python3-venv
description:
  - A directory of its own below C(prefix)/releases, with a virtual environment, code and settings; marked as complete.
  - Where one of that name is complete already, nothing is done. What an interrupted run has left is made anew.
  - Its settings are checked by itself, as the user that its processes run as.
options:
  prefix: {type: path, required: true, description: The directory that the host keeps the mesh in.}
  name: {type: str, required: true, description: The name of the release.}
  code: {type: path, required: true, description: A tar file on the host: the code, its wheel and the wheel of pip.}
  wheels: {type: path, required: true, description: A tar file with the wheels that it needs; not read with C(base).}
  base: {type: str, default: "", description: A complete release that was made from the same wheels.}
  made_from: {type: str, required: true, description: The id of these wheels; it is recorded in the release.}
  wheel: {type: str, required: true, description: The wheel of the project itself.}
  pip: {type: str, required: true, description: The wheel of pip.}
  requirement: {type: str, required: true, description: The requirement to install from the wheels.}
  python: {type: path, required: true, description: The Python that the virtual environment is made with.}
  files: {type: dict, required: true, description: Text by name, for files beside the code.}
  secrets: {type: str, default: "", description: "The contents of its secrets.env, which its user alone can read."}
  preflight: {type: bool, default: true, description: Whether to import each service before it is complete.}
  owner: {type: str, required: true, description: The user that owns the files of the release.}
  user: {type: str, required: true, description: The user that its processes run as.}
  group: {type: str, required: true, description: The group of both.}
"""

RETURN = """
"""

EXAMPLES = """
- name: Install a release
  mesh_release:
    prefix: /srv/mesh
    name: 0.1.0-35665e3a-8f12
    code: /srv/mesh/releases/.code.tar
    wheels: /srv/mesh/releases/.wheels.tar
    made_from: 1b2c
    wheel: zeromesh-0.1.0-py3-none-any.whl
    pip: pip-25.0-py3-none-any.whl
    requirement: zeromesh
    python: /usr/bin/python3
    files: { mesh.toml: "", supervisord.conf: "" }
    owner: root
    user: mesh
    group: mesh
"""


class Making:
    """One release, from nothing to its mark."""

    def __init__(self, asked: dict[str, Any], place: Place) -> None:
        self._asked = asked
        self._place = place
        self._root = place.path(asked["name"]).rstrip("/")
        self._python = os.path.join(self._root, ".venv/bin/python")

    def make(self) -> None:
        """Raises:
        Refused: a step failed; the message says which.
        """
        asked, root = self._asked, self._root
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        self._unpack("code")
        for name, text in asked["files"].items():
            path = os.path.join(root, name)
            with open(path, "w", encoding="utf-8") as out:
                out.write(text)
            os.chmod(path, 0o640)
        if asked["base"]:
            self._link_environment(self._place.path(asked["base"]).rstrip("/"))
            self._install("--no-deps", "--force-reinstall", f"wheels/{asked['wheel']}")
        else:
            self._unpack("wheels")
            self._do("make its virtual environment", asked["python"], "-m", "venv", "--without-pip", ".venv")
            self._install("--find-links=wheels", asked["requirement"])
        shutil.rmtree(os.path.join(root, "wheels"))
        # Compile here instead of in pip, on all cores; the processes themselves cannot write the files. Old wheels may
        # contain files for other Python versions: files that do not compile are not needed.
        self._do("compile it", self._python, "-c", _COMPILE)
        self._own()
        if asked["secrets"]:
            self._write_secrets(os.path.join(root, SECRETS), asked["secrets"])
        become = []
        if os.geteuid() == 0 and asked["user"] != "root":
            become = ["setpriv", f"--reuid={asked['user']}", f"--regid={asked['group']}", "--init-groups"]
        command = os.path.join(root, ".venv/bin/mesh")
        self._do("check its settings", *become, command, "config")
        if asked["preflight"]:
            # Start as its workers will. A failure is detected before anything is replaced on any host.
            self._do("try its services", *become, command, "roll", "--check")
        with open(self._place.path(asked["name"], TRIED), "w", encoding="utf-8"):
            pass
        mark = self._place.path(asked["name"], COMPLETE)
        with open(mark, "w", encoding="utf-8") as out:
            out.write(f"{asked['made_from']}\n")
        os.chown(mark, *self._ids())

    def _unpack(self, what: str) -> None:
        with tarfile.open(self._asked[what]) as tar:
            # Its members are plain files: bundle.py writes no others.
            tar.extractall(self._root, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(self._root)

    def _link_environment(self, base: str) -> None:
        """Create hard links to the virtual environment of another release, which never changes either."""
        new = os.path.join(self._root, ".venv")
        shutil.copytree(os.path.join(base, ".venv"), new, symlinks=True, copy_function=os.link)
        # Files that contain the path of the environment's directory.
        commands = os.path.join(new, "bin")
        for path in (os.path.join(new, "pyvenv.cfg"), *(entry.path for entry in os.scandir(commands))):
            if os.path.islink(path):
                continue
            with open(path, "rb") as file:
                text = file.read()
            mode = os.stat(path).st_mode
            os.unlink(path)
            with open(path, "wb") as file:
                file.write(text.replace(base.encode(), self._root.encode()))
            os.chmod(path, mode)

    def _install(self, *words: str) -> None:
        pip = [f"wheels/{self._asked['pip']}/pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
        pip += ["--no-index", "--no-cache-dir", "--no-compile", "--no-warn-script-location"]
        self._do("install its wheels", self._python, *pip, *words)

    def _do(self, step: str, *words: str) -> None:
        try:
            do(words, self._root)
        except Refused as exc:
            raise Refused(f"{step}: {exc}") from exc
        except FileNotFoundError as exc:
            raise Refused(f"{step}: there is no {words[0]} on this host; mesh_python names its Python") from exc

    def _ids(self) -> tuple[int, int]:
        """The ids of user and group, given by names or numbers."""
        owner, group = self._asked["owner"], self._asked["group"]
        uid = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
        return uid, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid

    def _write_secrets(self, path: str, text: str) -> None:
        user = self._asked["user"]
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchown(handle, int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid, self._ids()[1])
            file.write(text)

    def _own(self) -> None:
        ids = self._ids()
        for directory, _, files in os.walk(self._root):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                os.lchown(path, *ids)
        os.chmod(self._root, 0o755)


_COMPILE = "import compileall; compileall.compile_dir('.', quiet=2, maxlevels=30, workers=0)"


def main() -> None:
    names = ("name", "made_from", "wheel", "pip", "requirement", "owner", "user", "group")
    spec: dict[str, dict[str, Any]] = {name: {"type": "str", "required": True} for name in names}
    spec |= {name: {"type": "path", "required": True} for name in ("prefix", "code", "wheels", "python")}
    spec |= {"files": {"type": "dict", "required": True}, "base": {"type": "str", "default": ""}}
    spec |= {"preflight": {"type": "bool", "default": True}}
    spec |= {"secrets": {"type": "str", "default": "", "no_log": True}}
    module = AnsibleModule(spec, supports_check_mode=True)
    asked = module.params
    # The mesh's user must be able to read the files, whatever the umask of the login user.
    os.umask(0o022)
    place = Place(asked["prefix"])
    if asked["name"] in place.complete():
        module.exit_json(changed=False)
    if not module.check_mode:
        try:
            with working(module, asked["prefix"]):
                Making(asked, place).make()
        except (Refused, OSError, KeyError, tarfile.TarError) as exc:
            module.fail_json(msg=f"{asked['name']} cannot be installed: {exc}")
        finally:
            for path in (asked["code"], asked["wheels"]):
                if os.path.exists(path):
                    os.unlink(path)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
