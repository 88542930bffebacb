"""Forms that are broken, too large, or made to harm: each is refused with a 4xx, and the worker goes on."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest

import mesh
from mesh import http
from mesh.testing import Mesh, no_leaks
from tests.gateway.gateway_served import Served, served
from tests.patience import until

pytestmark = pytest.mark.timeout(60)

TYPE = "multipart/form-data; boundary=XX"
URLENCODED = "application/x-www-form-urlencoded"


class Forms(mesh.Service):
    @http.post("/parts")
    async def parts(self, form: http.Multipart) -> list[list[str | None]]:
        found = []
        async for part in form:
            text = await part.text()
            found.append([part.name, part.filename, text])
        return found

    @http.post("/skipped")
    async def skipped(self, form: http.Multipart) -> int:
        return len([part.name async for part in form])

    @http.post("/fields")
    async def fields(self, a: Annotated[list[str], http.Form] = [], f: http.File | None = None) -> int:  # noqa: B006
        return len(a)

    @http.post("/texts")
    async def texts(self, a: Annotated[list[str], http.Form]) -> int:
        return len(a)


@pytest.fixture
async def web() -> AsyncIterator[Served]:
    settings = {"gateway": {"max_body": "16MiB"}, "log": {"level": "error"}}
    async with (
        no_leaks(),
        Mesh(Forms, transport="ipc", settings=settings) as m,
        served(m) as web,
    ):
        await until(lambda: web.gateway.catalog.offers)
        yield web


def part(head: str | bytes, content: bytes = b"x") -> bytes:
    return b"--XX\r\n" + (head if isinstance(head, bytes) else head.encode()) + b"\r\n\r\n" + content + b"\r\n"


def field(name: str = "a", content: bytes = b"x", more: str = "") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"{more}', content)


END = b"--XX--\r\n"


async def post(web: Served, path: str, body: Any, content_type: str = TYPE) -> tuple[int, Any]:
    if isinstance(body, bytes):
        body = io.BytesIO(body)
    async with web.http.post(path, data=body, headers={"Content-Type": content_type}) as answer:
        return answer.status, await answer.json()


async def lives(web: Served) -> None:
    assert await post(web, "/parts", field() + END) == (200, [["a", None, "x"]])


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=" + "x" * 4000,
        'multipart/form-data; boundary="a\\"b"',
        'multipart/form-data; boundary="trailing "',
        "multipart/form-data; boundary=a{b}",
        "multipart/form-data; charset=utf-8; bound=XX",
        "multipart/form-data; boundary=YY",
    ],
)
async def test_a_boundary_that_is_missing_or_invalid(web: Served, content_type: str):
    for path in ("/parts", "/fields"):
        status, problem = await post(web, path, field() + END, content_type)
        assert (status, problem["code"]) == (400, "bad_form")
    await lives(web)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a form", id="text"),
        pytest.param(b"--XX", id="cut in the boundary"),
        pytest.param(b"--XX\r\n", id="cut before the headers"),
        pytest.param(b"--XX\r\nContent-Disp", id="cut in a header"),
        pytest.param(field()[:-2], id="cut in the content"),
        pytest.param(field(), id="no end"),
        pytest.param(field() + b"--XX-", id="cut in the end"),
        pytest.param(b"\r\n" * 1000, id="line breaks"),
        pytest.param(bytes(100_000), id="zeros"),
        pytest.param(part("") + END, id="no headers"),
        pytest.param(part("Content-Type: text/plain") + END, id="no disposition"),
        pytest.param(part('Content-Disposition: attachment; name="a"') + END, id="attachment"),
        pytest.param(part("Content-Disposition: form-data") + END, id="no name"),
        pytest.param(part("Content-Disposition: form-data; filename=x") + END, id="only a file name"),
        pytest.param(part("Content-Disposition") + END, id="header without colon"),
        pytest.param(part(": form-data") + END, id="header without name"),
        pytest.param(part('Content Disposition: form-data; name="a"') + END, id="header with a space"),
        pytest.param(part('Content-Disposition: form-data; name="a"\nX: y') + END, id="bare line feed"),
        pytest.param(part('Content-Disposition: form-data; name="a\0b"') + END, id="zero in a name"),
        pytest.param(part(b'Content-Disposition: form-data; name="\xe4"') + END, id="latin-1 name"),
        pytest.param(part(b'Content-Disposition: form-data; name="a"; filename="\xff"') + END, id="latin-1 file name"),
        pytest.param(
            part('Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="b"') + END,
            id="two dispositions",
        ),
        pytest.param(field(content=b"\xe4\xf6") + END, id="latin-1 text"),
        pytest.param(field(more="\r\nContent-Type: text/plain; charset=utf-16") + END, id="charset utf-16"),
        pytest.param(field(more="\r\nContent-Type: text/plain; charset=nonsense") + END, id="charset nonsense"),
        pytest.param(field(more="\r\nContent-Transfer-Encoding: base64") + END, id="base64"),
        pytest.param(field(more="\r\nContent-Transfer-Encoding: quoted-printable") + END, id="quoted-printable"),
        pytest.param(
            field(content=b"--YY\r\n\r\n--YY--", more="\r\nContent-Type: multipart/mixed; boundary=YY") + END,
            id="nested",
        ),
    ],
)
async def test_a_malformed_body(web: Served, body: bytes):
    for path in ("/parts", "/fields"):
        status, problem = await post(web, path, body)
        assert (status, problem["code"]) == (400, "bad_form")
    await lives(web)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(part('Content-Disposition: form-data; name="' + "a" * 9000 + '"') + END, id="long name"),
        pytest.param(part(b"X: " + bytes([97]) * 4_000_000) + END, id="header of 4 MB"),
        pytest.param(part(b"X" * 4_000_000 + b": 1") + END, id="header name of 4 MB"),
        pytest.param(part(b"X:" + b" " * 4_000_000 + b"1") + END, id="4 MB of spaces"),
        pytest.param(part("\r\n".join(f"X-{n}: 1" for n in range(100_000))) + END, id="100,000 headers"),
        pytest.param(b"".join([field("a", b"")] * 100_000) + END, id="100,000 parts"),
        pytest.param(field(content=bytes(2**20 + 1)) + END, id="text of more than 1 MiB"),
    ],
)
async def test_a_form_that_is_too_large(web: Served, body: bytes):
    for path in ("/parts", "/fields"):
        status, problem = await post(web, path, body)
        assert (status, problem["code"]) == (413, "form_too_large")
    await lives(web)


async def test_all_text_together_is_limited(web: Served):
    status, problem = await post(web, "/fields", field(content=bytes(600_000)) * 2 + END)
    assert (status, problem["code"]) == (413, "form_too_large")
    assert await post(web, "/fields", field(content=bytes(500_000)) * 2 + END) == (200, 2)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"a=" + b"x" * (2**20), 413, "form_too_large"),
        (b"a=1&" * 1000, 413, "form_too_large"),
        (b"&" * 1000, 413, "form_too_large"),
        (b"a=%ff", 400, "bad_form"),
        (b"a=\xff", 400, "bad_form"),
        (b"", 400, "bad_arguments"),
        (b"=", 400, "bad_arguments"),
        (b"a[b]=1", 400, "bad_arguments"),
    ],
)
async def test_a_hostile_urlencoded_form(web: Served, body: bytes, status: int, code: str):
    found, problem = await post(web, "/texts", body, URLENCODED)
    assert (found, problem["code"]) == (status, code)
    assert await post(web, "/texts", b"a=1&a=%zz", URLENCODED) == (200, 2)


@pytest.mark.parametrize(
    ("sent", "filename"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\\\Users\\\\me\\\\a.png", "a.png"),
        ("C:a.png", "a.png"),
        ("..\\\\..\\\\a.png", "a.png"),
        ("..", ""),
        ("a/", ""),
        (".htaccess", ".htaccess"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("x" * 300 + ".png", "x" * 251 + ".png"),
        ("a;b, c='d'.png", "a;b, c='d'.png"),
        ('say \\"hi\\".png', 'say "hi".png'),
        ("%22.png", "%22.png"),
    ],
)
async def test_a_file_name_is_a_base_name(web: Served, sent: str, filename: str):
    assert await post(web, "/parts", field(more=f'; filename="{sent}"') + END) == (200, [["a", filename, "x"]])


async def test_what_is_valid_although_odd(web: Served):
    """Line breaks before the first boundary, an epilogue, padding, content that resembles a boundary, an empty form."""
    odd = b"\r\n" + field(content=b"\r\n--X\r\n--XY\r\n--XX.\r\n--") + END + b"epilogue\r\n--XX\r\n"
    assert await post(web, "/parts", odd) == (200, [["a", None, "\r\n--X\r\n--XY\r\n--XX.\r\n--"]])
    assert await post(web, "/parts", END) == (200, [])
    assert await post(web, "/fields", field(more="\r\nContent-Type: text/plain; charset=UTF-8") + END) == (200, 1)
    quoted = "multipart/form-data; boundary='a(b)_c,d./:=? e'"
    body = field().replace(b"XX", b"'a(b)_c,d./:=? e'") + END.replace(b"XX", b"'a(b)_c,d./:=? e'")
    assert await post(web, "/parts", body, quoted.replace("'a", "\"'a") + '"') == (200, [["a", None, "x"]])


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_chunks_may_end_anywhere(web: Served, size: int):
    whole = (field(content=b"1\r\n") + field("b", b"2", '; filename="f"')) * 3 + END

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(whole), size):
            yield whole[at : at + size]
            await asyncio.sleep(0)

    assert await post(web, "/parts", chunks()) == (200, [["a", None, "1\r\n"], ["b", "f", "2"]] * 3)


async def test_a_body_that_is_slow_to_parse_does_not_block_the_worker(web: Served):
    """The loop of the worker, which is that of this test, is never blocked for long."""
    worst = 0.0
    done = False

    async def watch() -> None:
        nonlocal worst
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    almost = b"\r\n--XX." * (2 * 2**20 // 7)
    assert await post(web, "/skipped", part('Content-Disposition: form-data; name="a"', almost) + END) == (200, 1)
    done = True
    await watching
    assert worst < 0.5
