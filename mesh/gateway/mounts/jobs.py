"""/jobs: shows and cancels the jobs of tasks that were deferred.

Owns: waiting for a job, and a job as JSON.
Leaves to others: deferring (tasks), the jobs themselves (node.durable).

The address of a job works on every gateway, for as long as the job is kept.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs

from mesh.calls.answers import Answer
from mesh.errors import DeadlineExceeded, UnknownJob, UnknownRoute
from mesh.gateway.answers import json_of
from mesh.gateway.binding import unknown_argument
from mesh.gateway.edge.auth.ownership import may_see
from mesh.gateway.front import Front
from mesh.gateway.media import JSON_TYPE, MSGPACK_TYPE, wants_msgpack
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.openapi import Document
from mesh.gateway.query import read_single
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.protocol.messages import MSGPACK
from mesh.tasks.contract import OVER, JobInfo
from mesh.tasks.options import span

_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode
#: The maximum wait of a request in seconds: proxies give up soon after.
LONGEST_WAIT_S: Final = 60.0
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


def mount(front: Front) -> Mount:
    """/jobs."""
    return Mount(prefix="/jobs", handler=Jobs(front).answer, methods=("GET", "DELETE"), openapi=Document.add_jobs)


class Jobs:
    """Handles the requests for jobs."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._debug = front.settings.gateway.debug
        auth = front.settings.auth
        #: Whether jobs belong to callers, and the roles that reach all of them.
        self._owned = bool(auth.methods)
        self._roles = frozenset(auth.job_roles)

    async def answer(self, request: Request) -> Reply:
        """GET shows a job, with `?wait=30s` when it is finished or after that time; DELETE cancels it.

        Raises:
            UnknownRoute, UnknownJob, BadArguments.
        """
        path = request.path[6:]
        id = unquote(path)
        if not _ID.fullmatch(id) or "/" in id:
            raise UnknownRoute(f"/jobs/{path[:100]}: a job is at /jobs/ID")
        msgpack = wants_msgpack(request.headers.get(hdrs.ACCEPT))
        if request.method == "DELETE":
            durable = self._front.node.durable
            if self._owned:
                self._check_owner(request, await self._look(id, 0.0))
            return self._shown(await durable.jobs.cancel(id, timeout_s=durable.timeout_s), msgpack)
        told = read_single(request.query_string)
        wait_s = span("job", "wait", told.pop("wait"), zero=True) if "wait" in told else 0.0
        for name in told:
            raise unknown_argument(f"query.{name}", name, ("wait",))
        if self._owned and wait_s > 0:
            # Before the wait: how long that takes would tell that there is such a job.
            self._check_owner(request, await self._look(id, 0.0))
        info = await self._look(id, min(wait_s, LONGEST_WAIT_S))
        if self._owned:
            self._check_owner(request, info)
        return self._shown(info, msgpack)

    def _check_owner(self, request: Request, info: JobInfo) -> None:
        """Raises:
        UnknownJob: the job belongs to another caller. The error is that of a job which there is not.
        """
        if not may_see(request.identity, info.meta, self._roles):
            raise _unknown(info.id)

    def _shown(self, info: JobInfo, msgpack: bool) -> Reply:
        shown = show(info, debug=self._debug)
        result = info.result if info.status == "done" and info.result else None
        if msgpack:
            shown["result"] = msgspec.Raw(result) if result is not None else None
            return Reply(_encode_msgpack(shown), MSGPACK_TYPE)
        shown["result"] = msgspec.Raw(json_of(Answer(result, MSGPACK))) if result is not None else None
        return Reply(_encode_json(shown), JSON_TYPE)

    async def _look(self, id: str, wait_s: float) -> JobInfo:
        durable = self._front.node.durable
        jobs = durable.jobs
        if wait_s > 0:
            try:
                return await jobs.wait(id, timeout_s=wait_s)
            except DeadlineExceeded:
                pass  # show the job as it is
        found = await jobs.find(id, timeout_s=durable.timeout_s)
        if found is None:
            raise _unknown(id)
        return found


def _unknown(id: str) -> UnknownJob:
    return UnknownJob(f"no job has the id {id}, or it is no longer kept")


#: Public texts for the failure of a job; the text of the error itself is in the log, and in `mesh jobs show`.
_PUBLIC_REASONS: Final = {
    "failed": "the task failed",
    "undecodable": "its arguments cannot be read",
    "unknown": "no worker knows the task",
    "lost": "workers died while they ran it",
    "upstream": "an earlier step failed",
}


def show(info: JobInfo, *, debug: bool = False) -> dict[str, Any]:
    """A job as plain values, without its answer and its arguments.

    Args:
        debug: include the text of its error and the worker that runs it.
    """
    shown: dict[str, Any] = {
        "id": info.id,
        "task": info.queue,
        "status": info.status,
        "attempt": info.attempt,
        "priority": info.priority,
        "created_at": _time(info.created_at),
    }
    said = {"key": info.key, "order": info.order}
    if debug:
        said |= {"worker": info.worker, "topic": info.topic}
    shown |= {name: text for name, text in said.items() if text}
    if info.status not in OVER and info.due_at:
        shown["due_at"] = _time(info.due_at)
    if info.waits:
        shown["waits_for"] = info.waits
    if info.lost:
        shown["lost"] = info.lost
    if info.finished_at:
        shown["finished_at"] = _time(info.finished_at)
    if info.ends_at:
        shown["kept_until"] = _time(info.ends_at)
    if info.error or info.reason:
        message = info.error if debug else _PUBLIC_REASONS.get(info.reason, "the task failed")
        shown["error"] = {"reason": info.reason, "message": message}
    return shown


def _time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
