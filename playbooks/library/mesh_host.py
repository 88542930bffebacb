#!/usr/bin/python
"""What mesh there is on a host. Changes nothing."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_place import Place

DOCUMENTATION = """
module: mesh_host
short_description: What mesh there is on a host
description:
  - Looks at releases, at the one that is current, and whether supervisord runs. It changes nothing.
options:
  prefix:
    description: The directory that the host keeps the mesh in.
    type: path
    required: true
"""

RETURN = """
current:
  description: The release that runs, or would; empty on a bare host.
  returned: always
  type: str
complete:
  description: Releases that were installed whole.
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
runs:
  description: Whether supervisord runs.
  returned: always
  type: bool
keys:
  description: Whether it has any public key.
  returned: always
  type: bool
systemd:
  description: Whether systemd is what started this host; not only whether it is installed.
  returned: always
  type: bool
"""

EXAMPLES = """
- name: Look what is there
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
    module = AnsibleModule({"prefix": {"type": "path", "required": True}}, supports_check_mode=True)
    place = Place(module.params["prefix"])
    module.exit_json(
        changed=False,
        current=place.current,
        complete=place.complete(),
        made_from=place.made_from(),
        good=place.good(),
        runs=place.runs,
        keys=any(name.endswith(".public") for name in _names(os.path.join(place.prefix, "keys"))),
        # As sd_booted(3) says. ansible_facts["service_mgr"] goes by what is installed where it cannot tell.
        systemd=os.path.isdir("/run/systemd/system"),
    )


if __name__ == "__main__":
    main()
