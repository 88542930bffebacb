"""Which jobs a caller may see and cancel.

Owns: this rule. Leaves to others: who calls (concern), jobs over HTTP (mounts.jobs).

A job belongs to the caller on whose behalf it was deferred: the principal, in its tenant, that its metadata carries.
Its owner may see and cancel it, and so may callers with one of the roles of `auth.job_roles`. To everyone else it does
not exist. A job without a principal, such as one of a timer, belongs to nobody: only those roles reach it, and callers
without a credential where `auth.mounts` lets them in at /jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mesh.calls.propagation import PRINCIPAL, TENANT
from mesh.gateway.edge.identity import Identity


def may_see(identity: Identity | None, meta: Mapping[str, str], roles: Collection[str]) -> bool:
    """Whether a caller may see and cancel a job.

    Args:
        identity: None for a caller without a credential.
        meta: the metadata of the job.
        roles: those that may see all jobs.
    """
    owner = meta.get(PRINCIPAL, ""), meta.get(TENANT, "")
    if identity is None:
        return not owner[0]
    return owner == (identity.principal, identity.tenant) or not identity.roles.isdisjoint(roles)
