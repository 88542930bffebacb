#!/usr/bin/python
"""Reports the mesh on a host. Changes nothing."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import Alone, tell
from ansible.module_utils.mesh_place import Place

DOCUMENTATION = """
module: mesh_host
short_description: The state of mesh on a host
description:
  - Looks at releases, at the one that is current, and whether supervisord runs. It changes nothing.
options:
  prefix:
    description: The directory that the host keeps the mesh in.
    type: path
    required: true
  store:
    description: The directory that a store would have here.
    type: path
    default: ""
"""

RETURN = """
current:
  description: The release that runs, or would; empty on a bare host.
  returned: always
  type: str
complete:
  description: Releases that were installed completely.
  returned: always
  type: list
made_from:
  description: For each of them, what its virtual environment was made from.
  returned: always
  type: dict
good:
  description: Releases that have passed their gates, the latest first.
  returned: always
  type: list
store:
  description: Whether a store has its data here.
  returned: always
  type: bool
stores:
  description: The hosts that a store was deployed to, as this one remembers.
  returned: always
  type: list
unfinished:
  description: The release before an interrupted deployment; null when there is none.
  returned: always
  type: str
history:
  description: The last deployments of this host, the latest last.
  returned: always
  type: list
deployment:
  description: The deployment in progress, as text; empty when there is none.
  returned: always
  type: str
runs:
  description: Whether supervisord runs.
  returned: always
  type: bool
keys:
  description: Whether it has any public key.
  returned: always
  type: bool
systemd:
  description: Whether systemd started this host; that it is installed is not enough.
  returned: always
  type: bool
"""

EXAMPLES = """
- name: Read the state of mesh
  mesh_host:
    prefix: /srv/mesh
  register: host_found
"""


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def main() -> None:
    module = AnsibleModule(
        {"prefix": {"type": "path", "required": True}, "store": {"type": "path", "default": ""}},
        supports_check_mode=True,
    )
    place = Place(module.params["prefix"])
    module.exit_json(
        changed=False,
        current=place.current,
        complete=place.complete(),
        made_from=place.made_from(),
        good=place.good(),
        store=bool(module.params["store"]) and os.path.exists(os.path.join(module.params["store"], "mesh.db")),
        stores=place.stores(),
        unfinished=place.unfinished,
        history=place.history(10),
        deployment=tell(holder) if (holder := Alone(place.prefix).holder()) else "",
        runs=place.runs,
        keys=any(name.endswith(".public") for name in _names(os.path.join(place.prefix, "keys"))),
        # As sd_booted(3) says. ansible_facts["service_mgr"] goes by what is installed where it cannot tell.
        systemd=os.path.isdir("/run/systemd/system"),
    )


if __name__ == "__main__":
    main()
