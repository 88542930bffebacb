"""[auth]: how gateways find out who calls, and what they require.

Owns: the keys, their defaults, and the syntax of a requirement.
Leaves to others: combinations of keys (config.edge_auth_checks), using them (gateway.edge.auth). See
docs/authentication.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from msgspec import Struct

from mesh.config.values import TEXTS, Kind

_NAME: Final = re.compile(r"[!-~]{1,128}")


class Requirement(Struct, frozen=True):
    """What a caller must be: `"none"`, `"user"`, or names such as `"role:operator scope:metrics:read"`.

    Attributes:
        user: an authenticated caller is required.
        scopes: the caller must have all of them.
        roles: the caller must have one of them.
    """

    user: bool = True
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


NONE: Final = Requirement(user=False)
USER: Final = Requirement()


def read_requirement(value: Any) -> Requirement:
    """Read `"none"`, `"user"` or a list of `role:NAME` and `scope:NAME`, separated by spaces.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str):
        raise ValueError
    if value.strip() in ("none", "user"):
        return NONE if value.strip() == "none" else USER
    found: dict[str, list[str]] = {"role": [], "scope": []}
    for word in value.split():
        kind, _, name = word.partition(":")
        if kind not in found or _NAME.fullmatch(name) is None:
            raise ValueError
        found[kind].append(name)
    if not value.split():
        raise ValueError
    return Requirement(scopes=tuple(found["scope"]), roles=tuple(found["role"]))


def show_requirement(required: Requirement) -> str:
    """The text that `read_requirement` reads."""
    names = [*(f"role:{name}" for name in required.roles), *(f"scope:{name}" for name in required.scopes)]
    return " ".join(names) or ("user" if required.user else "none")


def _read_mounts(value: Any) -> dict[str, Requirement]:
    if isinstance(value, str):  # in the environment: /docs=none,/metrics=role:operator
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {prefix.strip(): text for prefix, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(each, str) and each.startswith("/") for each in value):
        raise ValueError
    return {prefix: read_requirement(text) for prefix, text in value.items()}


REQUIREMENT: Final = Kind(
    '"none", "user", or names like "role:operator scope:read"', read_requirement, show_requirement
)
REQUIREMENTS: Final = Kind(
    'a table of requirements like { "/metrics" = "role:operator" }',
    _read_mounts,
    lambda mounts: {prefix: show_requirement(required) for prefix, required in mounts.items()},
)


class AuthSettings(Struct, frozen=True, kw_only=True):
    """[auth]: who may send requests to the gateways. See docs/authentication.md."""

    default: Annotated[
        Requirement, REQUIREMENT, "what is required where neither a decorator nor `mounts` says anything else"
    ] = USER
    mounts: Annotated[
        dict[str, Requirement],
        REQUIREMENTS,
        'what mounts require where a decorator says nothing, such as { "/docs" = "none" }; '
        "/livez and /readyz require nothing unless they are listed",
    ] = {}
    job_roles: Annotated[
        list[str], TEXTS, "roles that may see and cancel the jobs of all callers; others only their own"
    ] = []
