"""HTML forms over HTTP: fields and files as parameters, parts as a stream, and what is refused."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import io
import os
import resource
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
import pytest

import mesh
from mesh import http
from mesh.gateway.calling import Calls
from mesh.testing import Mesh, no_leaks
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)

TYPE = "multipart/form-data; boundary=XX"


def spools() -> int:
    """The temporary files that this process has open."""
    links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    paths = [os.readlink(each) for each in links if os.path.lexists(each)]
    return sum(path.startswith(tempfile.gettempdir()) and path.endswith(" (deleted)") for path in paths)


class Size(enum.Enum):
    small = "small"
    large = "large"


class Seen(msgspec.Struct):
    name: str
    filename: str | None
    content_type: str
    headers: list[str]
    size: int


class Photos(mesh.Service):
    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = 0
        self.kept: list[http.File] = []
        self.chunks = 0

    @http.post("/albums/{album}")
    async def upload(
        self,
        album: str,
        title: Annotated[str, http.Form],
        photo: http.File,
        note: str = "",
        *,
        tags: Annotated[list[int], http.Form("tag")] = [],  # noqa: B006  # as a user writes it
        size: Annotated[Size, http.Form] = Size.small,
        more: list[http.File] = [],  # noqa: B006
        extra: http.File | None = None,
    ) -> dict[str, Any]:
        self.kept.append(photo)
        content = await photo.read()
        assert content == b"".join([chunk async for chunk in photo.chunks(1000)])
        return {
            "album": album,
            "title": title,
            "note": note,
            "tags": tags,
            "size": size,
            "photo": [photo.filename, photo.content_type, photo.size, hashlib.sha256(content).hexdigest()],
            "more": [[each.filename, (await each.read()).decode()] for each in more],
            "extra": extra is not None,
            "spools": spools(),
        }

    @http.post("/login", status=201)
    async def login(
        self, user: Annotated[str, http.Form], age: Annotated[int, http.Form], stay: Annotated[bool, http.Form] = False
    ) -> http.Response[list[Any]]:
        return http.Response([user, age, stay], headers={"X-Seen": "1"})

    @http.post("/parts", max_body="1GiB")
    async def parts(self, form: http.Multipart, skip: str = "") -> list[Seen]:
        found = []
        async for part in form:
            if part.name != skip:
                async for chunk in part:
                    assert len(chunk) <= 65536 + 80
                    self.chunks += 1
            found.append(Seen(part.name, part.filename, part.content_type, sorted(part.headers), part.size))
        return found

    @http.post("/first", max_body="1GiB")
    async def first(self, form: http.Multipart) -> str:
        async for part in form:
            return await part.text(10)
        return ""

    @http.post("/lines")
    async def lines(self, title: Annotated[str, http.Form], file: http.File) -> AsyncIterator[str]:
        yield title
        yield (await file.read()).decode()

    @http.post("/waits", max_body="64MiB")
    async def waits(self, file: http.File) -> int:
        try:
            self.kept.append(file)
            self.began.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        return 0

    @mesh.rpc
    async def alive(self) -> bool:
        return True


@pytest.fixture
async def mesh_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    # Others have temporary files, too; those in this folder are of forms.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = {"gateway": {"max_body": "16MiB"}, "log": {"level": "error"}}
    async with no_leaks(), Mesh(Photos, transport="ipc", settings=settings) as m:
        yield m


@pytest.fixture
async def web(mesh_: Mesh) -> AsyncIterator[Served]:
    async with served(mesh_) as web:
        await until(lambda: web.gateway.catalog.offers)
        yield web


def form(*fields: tuple[str, Any] | tuple[str, Any, str]) -> aiohttp.FormData:
    found = aiohttp.FormData(default_to_multipart=True, quote_fields=False)
    for name, value, *filename in fields:
        if filename:
            found.add_field(name, io.BytesIO(value), filename=filename[0], content_type="image/png")
        else:
            found.add_field(name, value)
    return found


async def post(web: Served, path: str, body: Any, content_type: str = TYPE) -> tuple[int, dict[str, Any]]:
    async with web.http.post(path, data=body, headers={"Content-Type": content_type}) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 5_000_000])
async def test_fields_and_files_are_parameters(web: Served, mesh_: Mesh, size: int):
    photo = os.urandom(size)
    body = form(("title", "Ä"), ("photo", photo, "a.png"), ("tag", "1"), ("tag", "2"), ("size", "large"))
    async with web.http.post("/albums/x?note=n", data=body) as answer:
        found = await answer.json()
    assert (answer.status, found) == (
        200,
        {
            "album": "x",
            "title": "Ä",
            "note": "n",
            "tags": [1, 2],
            "size": "large",
            "photo": ["a.png", "image/png", size, hashlib.sha256(photo).hexdigest()],
            "more": [],
            "extra": False,
            "spools": int(size > 2**20),
        },
    )
    assert spools() == 0
    (photos,) = mesh_.instances(Photos)
    if size > 2**20:
        with pytest.raises(ValueError, match="removed"):
            await photos.kept[0].read()


async def test_many_files_share_the_memory_of_one(web: Served):
    """12 files of 300 kB: the first three are in memory, the others in one temporary file."""
    files = [("more", bytes([65 + n]) * 300_000, f"{n}.txt") for n in range(12)]
    async with web.http.post("/albums/x", data=form(("title", "t"), ("photo", b"p", "p"), *files)) as answer:
        found = await answer.json()
    assert [(name, len(text), text[0]) for name, text in found["more"]] == [
        (f"{n}.txt", 300_000, chr(65 + n)) for n in range(12)
    ]
    assert found["spools"] == 1


async def test_an_input_without_a_chosen_file_is_missing(web: Served):
    for extra in (("extra", b"", ""), ("extra", "")):
        async with web.http.post("/albums/x", data=form(("title", "t"), ("photo", b"x", "p"), extra)) as answer:
            assert (await answer.json())["extra"] is False
    async with web.http.post("/albums/x", data=form(("title", "t"), ("photo", b"", ""))) as answer:
        problem = await answer.json()
    assert (answer.status, problem["code"], problem["details"]["path"]) == (400, "bad_arguments", "form.photo")


@pytest.mark.parametrize("multipart", [False, True])
async def test_text_fields_arrive_in_both_encodings(web: Served, multipart: bool):
    fields = {"user": "ü & =", "age": "7", "stay": "on"}
    body: Any = form(*fields.items()) if multipart else fields
    async with web.http.post("/login", data=body) as answer:
        assert (answer.status, answer.headers["X-Seen"]) == (201, "1")
        assert await answer.json() == ["ü & =", 7, True]


async def test_a_body_that_the_gateway_has_read_reaches_the_handler(web: Served, monkeypatch: pytest.MonkeyPatch):
    """As it is when the token of a login session is looked for in its field csrf_token, which is the gateway's."""
    bind = Calls._bind

    async def early(self: Any, request: Any, *args: Any) -> Any:
        request.early_body = await self._front.bodies.read(request, 5.0)
        return await bind(self, request, *args)

    monkeypatch.setattr(Calls, "_bind", early)
    fields = {"user": "u", "age": "7", "csrf_token": "x"}
    for body in (fields, form(*fields.items())):
        async with web.http.post("/login?x=1", data=body) as answer:
            assert await answer.json() == ["u", 7, False]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("age=1", "form.user"),
        ("user=a&age=x", "form.age"),
        ("user=a&age=", "form.age"),
        ("user=a&age=1&age=2", "form.age"),
        ("user=a&age=1&admin=1", "form.admin"),
        ("user=a&age=1&stay=maybe", "form.stay"),
    ],
)
async def test_a_wrong_field_is_named(web: Served, body: str, path: str):
    status, problem = await post(web, "/login", body, "application/x-www-form-urlencoded")
    assert (status, problem["code"], problem["details"]["path"]) == (400, "bad_arguments", path)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ([("photo", b"", "p")], "form.title"),
        ([("title", "t")], "form.photo"),
        ([("title", "t"), ("photo", "text")], "form.photo"),
        ([("title", b"t", "t.txt"), ("photo", b"", "p")], "form.title"),
        ([("title", "t"), ("photo", b"", "p"), ("photo", b"", "p")], "form.photo"),
        ([("title", "t"), ("title", "u"), ("photo", b"", "p")], "form.title"),
        ([("title", "t"), ("photo", b"", "p"), ("tag", "1"), ("tag", "x")], "form.tag"),
        ([("title", "t"), ("photo", b"", "p"), ("size", "huge")], "form.size"),
        ([("album", "t"), ("title", "t"), ("photo", b"", "p")], "form.album"),
    ],
)
async def test_a_wrong_part_is_named(web: Served, fields: list[Any], path: str):
    async with web.http.post("/albums/x", data=form(*fields)) as answer:
        problem = await answer.json()
    assert (answer.status, problem["code"], problem["details"]["path"]) == (400, "bad_arguments", path)


async def test_parts_are_a_stream(web: Served, mesh_: Mesh):
    body = form(("a", "text"), ("b", bytes(1_000_000), "../../etc/passwd"), ("c", bytes(200_000), "C:\\x\\y.png"))
    async with web.http.post("/parts?skip=b", data=body) as answer:
        found = await answer.json()
    assert [(each["name"], each["filename"], each["size"]) for each in found] == [
        ("a", None, 4),
        ("b", "passwd", 0),
        ("c", "y.png", 200_000),
    ]
    assert found[2]["content_type"] == "image/png"
    assert found[2]["headers"] == ["content-disposition", "content-type"]


async def test_no_part_is_in_memory(web: Served):
    """200 MB: gateway, worker and client are this process."""

    async def body(size: int) -> AsyncIterator[bytes]:
        yield b'--XX\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
        for _ in range(size):
            yield bytes(2**20)
        yield b"\r\n--XX--\r\n"

    assert (await post(web, "/parts", body(20)))[0] == 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, found = await post(web, "/parts", body(200))
    assert found[0]["size"] == 200 * 2**20  # type: ignore[index]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_a_stream_takes_a_form(web: Served):
    body = form(("title", "t"), ("file", b"content", "f"))
    async with web.http.post("/lines", data=body, headers={"Accept": "application/x-ndjson"}) as answer:
        assert (await answer.text()).split() == ['"t"', '"content"']


async def test_interceptors_run_before_the_form_is_read():
    seen: list[Any] = []

    class Watch(mesh.Interceptor):
        async def incoming(self, call: Any, proceed: Any) -> Any:
            seen.append(call.args[:-1])
            return await proceed(call)

    class Sums(mesh.Service):
        interceptors = [Watch()]

        @http.post("/sums/{k}")
        async def add(self, k: int, a: Annotated[int, http.Form], f: http.File) -> int:
            return k + a + f.size

    async with no_leaks(), Mesh(Sums, transport="ipc") as m, served(m) as web:
        await until(lambda: web.gateway.catalog.offers)
        async with web.http.post("/sums/10", data=form(("a", "2"), ("f", b"abc", "f"))) as answer:
            assert await answer.json() == 15
    assert seen == [(10,)]


async def test_a_client_that_disappears_leaves_no_file(web: Served, mesh_: Mesh):
    (photos,) = mesh_.instances(Photos)
    host, port = web.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + bytes(3_000_000)
    body += b"\r\n--XX--\r\n"
    head = f"POST /waits HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await photos.began.wait()
    assert len(await photos.kept[0].read()) == 3_000_000
    assert spools() == 1
    writer.close()
    await until(lambda: photos.cancelled == 1)
    await until(lambda: spools() == 0)
    with pytest.raises(ValueError, match="removed"):
        await photos.kept[0].read()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/login", "application/json"),
        ("/login", "text/plain"),
        ("/login", ""),
        ("/albums/x", "application/x-www-form-urlencoded"),
        ("/parts", "application/x-www-form-urlencoded"),
        ("/parts", "multipart/mixed; boundary=XX"),
    ],
)
async def test_another_type_of_body_is_refused(web: Served, path: str, kind: str):
    status, problem = await post(web, path, b"a=b", kind)
    assert (status, problem["code"]) == (415, "unsupported_media")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_page_of_another_site_cannot_send_a_form(web: Served, headers: dict[str, str]):
    async with web.http.post("/login", data={"user": "a", "age": "1"}, headers=headers) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "cross_site")
    async with web.http.post("/login", data={"user": "a", "age": "1"}, headers={"Origin": web.url}) as answer:
        assert answer.status == 201


async def test_openapi_describes_forms(web: Served):
    async with web.http.get("/openapi.json") as answer:
        document = await answer.json()
    upload = document["paths"]["/albums/{album}"]["post"]
    assert [each["name"] for each in upload["parameters"]][:2] == ["album", "note"]
    (media,) = upload["requestBody"]["content"].items()
    schema = media[1]["schema"]
    assert media[0] == "multipart/form-data"
    assert schema["required"] == ["title", "photo"]
    assert schema["properties"]["photo"] == {"type": "string", "format": "binary"}
    assert schema["properties"]["more"] == {"type": "array", "items": {"type": "string", "format": "binary"}}
    assert schema["properties"]["tag"]["items"] == {"type": "integer"}
    assert schema["properties"]["size"]["$ref"] == "#/components/schemas/Size"
    login = document["paths"]["/login"]["post"]["requestBody"]
    assert list(login["content"]) == ["application/x-www-form-urlencoded", "multipart/form-data"]
    assert login["required"] is True
    assert list(document["paths"]["/parts"]["post"]["requestBody"]["content"]) == ["multipart/form-data"]
