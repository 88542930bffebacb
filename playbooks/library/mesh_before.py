#!/usr/bin/python
"""Runs a command of a release before it goes live. See DOCUMENTATION."""

from __future__ import annotations

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import working
from ansible.module_utils.mesh_place import SECRETS, TOLD_CHARACTERS, Place

DOCUMENTATION = """
module: mesh_before
short_description: Run a command of a release before any host switches to it
description:
  - As the mesh's user, in the directory of the release, with its virtual environment and its secrets.
  - What it prints is shown when it fails.
options:
  prefix: {type: path, required: true, description: The directory that the host keeps the mesh in.}
  release: {type: str, required: true, description: The release.}
  command: {type: str, required: true, description: A line for the shell.}
  user: {type: str, required: true, description: The user that its processes run as.}
  group: {type: str, required: true, description: The group of that user.}
"""

RETURN = """
output: {description: The end of the output of the command., returned: always, type: str}
"""

EXAMPLES = """
- name: Migrate
  mesh_before:
    prefix: /srv/mesh
    release: 0.1.0-35665e3a-8f12
    command: python -m shop.migrate
    user: mesh
    group: mesh
"""


def main() -> None:
    names = ("release", "command", "user", "group")
    module = AnsibleModule(
        {"prefix": {"type": "path", "required": True}, **{name: {"type": "str", "required": True} for name in names}}
    )
    asked = module.params
    with working(module, asked["prefix"]):
        root = Place(asked["prefix"]).path(asked["release"]).rstrip("/")
        words = ["/bin/sh", "-c", asked["command"]]
        if os.geteuid() == 0 and asked["user"] != "root":
            words = ["setpriv", f"--reuid={asked['user']}", f"--regid={asked['group']}", "--init-groups", *words]
        done = subprocess.run(
            words,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env={
                "HOME": asked["prefix"],
                "PATH": f"{root}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "PYTHONPATH": root,
                **_secrets(os.path.join(root, SECRETS)),
            },
        )
    output = done.stdout.strip()[-TOLD_CHARACTERS:]
    if done.returncode:
        why = f"{asked['command']} ended with {done.returncode}, and no host switches to {asked['release']}:"
        module.fail_json(msg=f"{why}\n{output or '(it printed nothing)'}", output=output)
    module.exit_json(changed=True, output=output)


def _secrets(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n").partition("=") for line in file if "=" in line]
    except OSError:
        return {}
    return {name: value for name, _, value in lines}


if __name__ == "__main__":
    main()
