#!/usr/bin/python
"""Takes the lock of a host for one deployment. See DOCUMENTATION."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import LEASE_S, Alone

DOCUMENTATION = """
module: mesh_alone
short_description: Take the lock of a host for the rest of a playbook
description:
  - Deployments, and whatever else changes a mesh on a host, do so one after the other.
  - The action of the same name, on the control machine, asks again while another one has the lock, and lets go of it
    when ansible-playbook ends, however it ends. A lock of a control machine that is gone ends by itself after a minute.
options:
  prefix: {type: path, required: true, description: The directory that the host keeps the mesh in.}
  token: {type: str, required: true, description: The id of this deployment.}
  what: {type: str, required: true, description: The name of the playbook.}
  who: {type: str, default: "", description: The user who runs it; set by the action.}
  since: {type: str, default: "", description: When it began; set by the action.}
  deadline: {type: float, default: 0, description: "When to give up, in seconds of the control machine's clock."}
  make: {type: bool, default: false, description: Whether to lock a bare host, too.}
  leave: {type: bool, default: false, description: Release the lock.}
"""

RETURN = """
why: {description: Why the deployment cannot begin yet; empty when it can., returned: always, type: str}
path: {description: The lock; empty when there is no mesh on the host., returned: always, type: str}
lease_s: {description: How long it lasts without renewal by the control machine., returned: always, type: float}
"""

EXAMPLES = """
- name: Lock the host for this playbook
  mesh_alone: { prefix: /srv/mesh, token: 5f0c, what: deploy.yml, deadline: 1764490000, make: true }
"""


def main() -> None:
    module = AnsibleModule(
        {
            "prefix": {"type": "path", "required": True},
            "token": {"type": "str", "required": True, "no_log": False},
            "what": {"type": "str", "required": True},
            "who": {"type": "str", "default": ""},
            "since": {"type": "str", "default": ""},
            "deadline": {"type": "float", "default": 0},
            "make": {"type": "bool", "default": False},
            "leave": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    prefix, token = asked["prefix"], asked["token"]
    if not prefix.startswith("/"):
        module.fail_json(msg=f"mesh_prefix: {prefix} is not an absolute path")
    if module.check_mode or not (asked["make"] or os.path.isdir(prefix)):
        module.exit_json(changed=False, why="", path="", lease_s=LEASE_S)
    alone = Alone(prefix)
    try:
        if asked["leave"]:
            alone.leave(token)
            module.exit_json(changed=False, why="", path="", lease_s=LEASE_S)
        if not os.path.isdir(prefix):
            os.umask(0o022)
            os.makedirs(prefix)
        why = alone.take(token, {key: asked[key] for key in ("who", "what", "since")})
    except OSError as exc:
        module.fail_json(msg=f"{prefix} cannot be locked: {exc}")
    module.exit_json(changed=False, why=why, path=alone.path, lease_s=LEASE_S)


if __name__ == "__main__":
    main()
