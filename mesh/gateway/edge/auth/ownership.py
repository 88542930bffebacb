"""Which jobs are a caller's own: to see, to cancel, and to find by an Idempotency-Key.

Owns: these rules. Leaves to others: who calls (concern), jobs over HTTP (mounts.jobs).

A job belongs to the caller on whose behalf it was deferred: the principal, in its tenant, that its metadata carries.
Its owner may see and cancel it, and so may callers with one of the roles of `auth.job_roles`. To everyone else it does
not exist. A job without a principal, such as one of a timer, has no owner: only those roles reach it, and callers
without a credential where `auth.mounts` lets them in at /jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import sha256

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


def own_key(identity: Identity | None, key: str) -> str:
    """The key of a job for an Idempotency-Key. Two callers may choose the same one without getting each other's job."""
    if identity is None:
        return key
    # A hash, so that no choice of names and keys gives the key of another caller.
    caller = sha256(f"{len(identity.tenant)}:{identity.tenant}{identity.principal}".encode()).hexdigest()[:16]
    return f"{caller}:{key}"
