#!/usr/bin/python
"""Marks the running release as good, and removes old releases. See DOCUMENTATION."""

from __future__ import annotations

import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import working
from ansible.module_utils.mesh_place import GOOD, Place

DOCUMENTATION = """
module: mesh_keep
short_description: Mark the current release as good, and remove old ones
description:
  - A release is good once its host has passed the gates; when that was, is the time of a file in it.
  - The newest good ones stay, the current one, and what a process still works in. Failed and unfinished ones go.
options:
  prefix: {type: path, required: true, description: The directory that the host keeps the mesh in.}
  keep: {type: int, required: true, description: How many good releases to keep.}
  renew: {type: bool, required: true, description: "Whether the current one became good now; else its mark stays."}
"""

RETURN = """
removed: {description: The removed releases., returned: always, type: list}
"""

EXAMPLES = """
- name: Remove old releases
  mesh_keep: { prefix: /srv/mesh, keep: 5, renew: true }
"""


def main() -> None:
    module = AnsibleModule(
        {
            "prefix": {"type": "path", "required": True},
            "keep": {"type": "int", "required": True},
            "renew": {"type": "bool", "required": True},
        },
        supports_check_mode=True,
    )
    with working(module, module.params["prefix"]):
        keep(module, Place(module.params["prefix"]))


def keep(module: AnsibleModule, place: Place) -> None:
    current = place.current
    marks = bool(current) and (module.params["renew"] or current not in place.good())
    if marks and not module.check_mode:
        with open(place.path(current, GOOD), "w", encoding="utf-8"):
            os.utime(place.path(current, GOOD))
    if not module.check_mode:
        place.link_secrets()
    stay = {current, *place.in_use(), *place.good()[: max(1, module.params["keep"])]}
    # A check run has not marked the release, and has installed nothing.
    removed = [] if module.check_mode else [name for name in place.all() if name not in stay]
    for name in removed:
        shutil.rmtree(place.path(name))
    module.exit_json(changed=marks or bool(removed), removed=removed)


if __name__ == "__main__":
    main()
