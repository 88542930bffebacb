"""Hooks of Schemathesis (SCHEMATHESIS_HOOKS): what the document cannot say.

JSON Schema calls 40.0 an integer; mesh refuses it for an `int`, as msgspec does, rather than guess. Any request may
have header fields that no operation declares.
"""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return _whole(body)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    return not any(name.lower().startswith("x-schemathesis-unknown") for name in case.headers or {})


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return value
