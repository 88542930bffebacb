"""The same small shop in Litestar and in Django: pages, forms, files, streams, sockets, sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse
from django.views.decorators.csrf import csrf_exempt, ensure_csrf_cookie
from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.params import Body, FromPath, FromQuery
from litestar.response import Redirect, Stream

import mesh

EVENTS: list[str] = []


# --- Litestar -------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    EVENTS.append("startup")
    yield
    EVENTS.append("shutdown")


@get("/items/{id:int}", name="item")
async def item(id: FromPath[int], q: FromQuery[str] = "") -> dict[str, Any]:
    context = mesh.current()
    return {"id": id, "q": q, "target": context.target if context else ""}


@get("/link")
async def link(request: Request[Any, Any, Any]) -> str:
    return str(request.url_for("item", id=7))


@get("/elsewhere")
async def elsewhere() -> Redirect:
    return Redirect("/star/items/1")


@post("/upload")
async def upload(
    data: Annotated[UploadFile, Body(media_type=RequestEncodingType.MULTI_PART)],
) -> dict[str, Any]:
    try:
        return {"name": data.filename, "size": len(await data.read())}
    finally:
        await data.close()


@get("/stream/{n:int}")
async def stream(n: FromPath[int]) -> Stream:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(n):
            yield b"%d\n" % number

    return Stream(parts(), media_type="text/plain")


@get("/fails")
async def fails() -> None:
    raise ZeroDivisionError


@get("/call")
async def call(request: Request[Any, Any, Any]) -> Any:
    return await request.scope["state"]["mesh"].call("greeter.hello", "you")


@websocket("/ws")
async def socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    async for text in socket.iter_data():
        await socket.send_text(text.upper())


litestar = Litestar(
    [item, link, elsewhere, upload, stream, fails, call, socket], lifespan=[lifespan], logging_config=None
)


# --- Django ---------------------------------------------------------------------------------------------


def show(request: HttpRequest, id: int) -> JsonResponse:
    context = mesh.current()
    return JsonResponse({"id": id, "q": request.GET.get("q", ""), "target": context.target if context else ""})


async def show_async(request: HttpRequest, id: int) -> JsonResponse:
    return show(request, id)


def where(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.build_absolute_uri(reverse('show', args=[7]))} {request.META['REMOTE_ADDR']}")


def move(request: HttpRequest) -> HttpResponseRedirect:
    return HttpResponseRedirect(reverse("show", args=[1]))


@csrf_exempt
def receive(request: HttpRequest) -> JsonResponse:
    file = request.FILES["file"]
    return JsonResponse({"name": file.name, "size": len(file.read()), "title": request.POST["title"]})


def lines(request: HttpRequest, n: int) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        for number in range(n):
            yield b"%d\n" % number

    async def async_parts() -> AsyncIterator[bytes]:
        for part in parts():
            yield part

    return StreamingHttpResponse(async_parts() if hasattr(request, "scope") else parts(), content_type="text/plain")


@ensure_csrf_cookie
def form(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        request.session["name"] = request.POST["name"]
    return HttpResponse(request.session.get("name", "a guest"))


def broken(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


urlpatterns = [
    path("items/<int:id>", show, name="show"),
    path("async/<int:id>", show_async),
    path("where", where),
    path("elsewhere", move),
    path("upload", receive),
    path("stream/<int:n>", lines),
    path("form", form),
    path("fails", broken),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="0123456789abcdef0123456789abcdef",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    LOGGING_CONFIG=None,
)
django.setup()
django_asgi = get_asgi_application()
django_wsgi = get_wsgi_application()
