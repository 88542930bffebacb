"""Parts of the OpenAPI document that are the same in every mesh.

Owns: the schemas of a problem and of an event, the parameter X-Request-Timeout, and the responses of problems.
Leaves to others: operations (openapi), tasks and jobs (openapi_tasks).
"""

from __future__ import annotations

from typing import Any, Final

from mesh.gateway.media import PROBLEM_TYPE
from mesh.gateway.reply import phrase

Schema = dict[str, Any]

PROBLEM: Final[Schema] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. `code` is stable and safe to compare with; `retryable` tells whether the same request "
    "may succeed later or elsewhere.",
    "required": ["type", "title", "status", "detail", "code", "retryable"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
        "exception": {"type": "string", "description": "The type of a handler's own exception."},
        "trace_id": {"type": "string"},
        "details": {
            "type": "object",
            "description": "For a wrong argument, `path` names its place, such as `query.width`.",
            "additionalProperties": True,
        },
    },
}

TIMEOUT_PARAMETER: Final[Schema] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "How long to wait: seconds, or with a unit, such as 250ms or 2s.",
    # The form that `gateway.headers.read_timeout` accepts, up to a day, so that generated clients send valid values.
    "schema": {
        "type": "string",
        "pattern": r"^(?=.*[1-9])([0-9]{1,4}(\.[0-9]{1,9})?(ms|s)?|[0-9]{1,3}(\.[0-9]{1,9})?m)$",
        "examples": ["2", "0.5", "250ms", "1m"],
    },
}

#: The schema of one event of a stream, in the form of OpenAPI 3.2.
SSE_EVENT: Final[Schema] = {
    "type": "object",
    "description": "One event per item; the last is the event named end, or error with a Problem as data.",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "The item as JSON."},
        "id": {"type": "string"},
        "retry": {"type": "integer"},
    },
}


def problem_response(status: int) -> Schema:
    response: Schema = {
        "description": phrase(status),
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    if status == 429:
        response["headers"] |= {
            "RateLimit-Policy": {"description": "The limits: q requests in w seconds.", "schema": {"type": "string"}},
            "RateLimit": {
                "description": "What is left of them: r requests, and more in t seconds.",
                "schema": {"type": "string"},
            },
        }
    if status == 401:
        response["headers"] = {
            "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}
        }
    return response
