"""HTTP: the decorators of routes, where parameters come from, and answers with a status, headers and cookies.

    from mesh import http

    class Shop(mesh.Service):
        @http.post("/orders", status=201)
        async def order(
            self, order: Order, tenant: Annotated[str, http.Header("X-Tenant")]
        ) -> http.Response[Receipt]:
            receipt = ...
            return http.Response(receipt, headers={"Location": f"/orders/{receipt.id}"})

Owns: the public names; re-exports only. docs/http.md describes them.
"""

from mesh.calls.forms.declared import Form
from mesh.calls.forms.files import File
from mesh.calls.forms.multipart import Multipart, Part
from mesh.calls.http_response import Response, SetCookie, delete_cookie, redirect
from mesh.calls.http_session import login, logout
from mesh.calls.push import join, leave
from mesh.calls.server_event import ServerSentEvent
from mesh.service.edge_options import EdgeOptions, roles, scopes
from mesh.service.http_routes import delete, get, live, patch, post, put, websocket
from mesh.service.http_sources import Body, Cookie, Field, Header, Query

__all__ = [
    "Body",
    "Cookie",
    "EdgeOptions",
    "Field",
    "File",
    "Form",
    "Header",
    "Multipart",
    "Part",
    "Query",
    "Response",
    "ServerSentEvent",
    "SetCookie",
    "delete",
    "delete_cookie",
    "get",
    "join",
    "leave",
    "live",
    "login",
    "logout",
    "patch",
    "post",
    "put",
    "redirect",
    "roles",
    "scopes",
    "websocket",
]
