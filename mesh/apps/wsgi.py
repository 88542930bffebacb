"""A WSGI application as an ASGI application: each request runs in a thread.

Owns: wrapping it. Leaves to others: the threads (a2wsgi), everything else (asgi).
"""

from __future__ import annotations

from typing import Any, cast

from mesh.apps.asgi import Application
from mesh.errors import SetupError

#: Requests of one worker that run at once; further ones wait.
THREADS = 10


def wrapped(application: Any) -> Application:
    """The ASGI application around a WSGI application.

    Raises:
        SetupError: the package a2wsgi is not installed.
    """
    try:
        from a2wsgi import WSGIMiddleware
    except ImportError as exc:
        raise SetupError("WSGI applications need the extra wsgi: pip install 'zeromesh[wsgi]'") from exc

    def terminated(environ: dict[str, Any], start_response: Any) -> Any:
        # The input ends where the body ends, so that a body without Content-Length can be read, too.
        environ["wsgi.input_terminated"] = True
        return application(environ, start_response)

    return cast(Application, WSGIMiddleware(cast(Any, terminated), workers=THREADS))
