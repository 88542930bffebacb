"""The OpenAPI description of tasks and jobs: the schemas, the parameters of a defer, and the operations on a job.

Owns: these constants. Leaves to others: the arguments of each task (openapi), the implementation (jobs).
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

_TIME: Final[Schema] = {"type": "string", "format": "date-time"}

#: The body of a 202.
DEFERRED: Final[Schema] = {
    "type": "object",
    "title": "Deferred",
    "required": ["id", "task", "job"],
    "properties": {
        "id": {"type": "string"},
        "task": {"type": "string"},
        "job": {"type": "string", "description": "Its address, /jobs/{id}; also in Location."},
    },
}

#: A job, as /jobs/{id} shows it.
JOB: Final[Schema] = {
    "type": "object",
    "title": "Job",
    "required": ["id", "task", "status", "attempt", "priority", "created_at", "result"],
    "properties": {
        "id": {"type": "string"},
        "task": {"type": "string"},
        "status": {"enum": ["waiting", "delayed", "ready", "running", "done", "dead", "cancelled"]},
        "attempt": {"type": "integer"},
        "priority": {"type": "integer"},
        "created_at": _TIME,
        "due_at": _TIME,
        "finished_at": _TIME,
        "kept_until": _TIME,
        "key": {"type": "string"},
        "order": {"type": "string"},
        "waits_for": {"type": "integer", "description": "Earlier steps of its chain that are not done."},
        "lost": {"type": "integer", "description": "Workers that died while they ran it."},
        "error": {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "message": {"type": "string"}},
        },
        "result": {"description": "The answer of the task; null until it is done."},
    },
}


def _query(name: str, description: str, kind: str = "string") -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind}}


#: The parameters of a defer besides the arguments of the task.
DEFER_PARAMETERS: Final[list[Schema]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A request that is repeated with the same key is answered with the first job.",
        "schema": {"type": "string"},
    },
    _query("delay", "Not before this time has passed: 30s, 5m, 2d."),
    _query("at", "Not before this instant: 2030-01-31T12:00:00Z."),
    _query("priority", "0 to 9; the higher goes first.", "integer"),
    _query("order", "Jobs of one order run one after the other."),
    _query("keep", "How long the finished job is kept."),
    _query("timeout", "The time of one attempt."),
    _query("key", "As Idempotency-Key."),
]

_ID: Final[Schema] = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_FOUND: Final[Schema] = {
    "description": "The job.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}},
}


def job_operations(tag: str) -> Schema:
    """The path item of /jobs/{id}."""
    failures = {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in (400, 404, 503, 504)}
    wait = _query("wait", "Answer when the job is over, or after this time, 60s at most.")
    return {
        "get": {
            "operationId": "jobs.show",
            "tags": [tag],
            "summary": "Show a job.",
            "parameters": [_ID, wait],
            "responses": {"200": _FOUND, **failures},
        },
        "delete": {
            "operationId": "jobs.cancel",
            "tags": [tag],
            "summary": "Cancel a job.",
            "parameters": [_ID],
            "responses": {"200": _FOUND, **failures},
        },
    }
