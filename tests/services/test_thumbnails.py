"""services.thumbnails: over HTTP and by call, in child processes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

import mesh
from services.thumbnails import ImageInfo, Thumbnails

Start = Callable[..., Any]


def photograph(width: int = 800, height: int = 600) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 40).convert("RGB").save(file, "JPEG")
    return file.getvalue()


async def test_an_image_goes_in_over_http_and_a_thumbnail_comes_out(start: Start) -> None:
    """The body is the file itself, both ways; size and format stand in the query; a wrong one is refused by name."""
    http = (await start(Thumbnails, 1)).http
    async with http.post("/thumbnails?width=80&height=80", data=photograph()) as told:
        assert told.status == 200, await told.text()
        image = Image.open(io.BytesIO(await told.read()))
        assert (image.format, image.size) == ("JPEG", (80, 60))
    async with http.post("/thumbnails", params={"width": 40, "format": "webp"}, data=photograph()) as told:
        assert Image.open(io.BytesIO(await told.read())).format == "WEBP"
    async with http.post("/thumbnails/info", data=photograph(320, 200)) as told:
        info = await told.json()
        assert (told.status, info["format"], info["width"], info["height"]) == (200, "jpeg", 320, 200)

    for query, status, code, said in (
        ({"width": 0}, 400, "bad_arguments", "width"),
        ({"height": 4097}, 400, "bad_arguments", "height"),
        ({"format": "gif"}, 400, "bad_arguments", "format"),
    ):
        async with http.post("/thumbnails", params=query, data=photograph(20, 20)) as told:
            problem = await told.json()
            assert (told.status, problem["code"]) == (status, code), problem
            assert said in problem["detail"]


async def test_a_bad_image_is_a_problem_with_its_own_status_and_code(start: Start) -> None:
    """415, 422 and 413: the errors that a child process raised arrive as they were."""
    http = (await start(Thumbnails, 1)).http
    bomb = io.BytesIO()
    Image.new("1", (9000, 8000)).save(bomb, "PNG")
    for body, status, code in (
        (b"just text", 415, "not_an_image"),
        (photograph()[:2000], 422, "bad_image"),
        (bomb.getvalue(), 413, "image_too_large"),
    ):
        async with http.post("/thumbnails", data=body) as told:
            assert told.content_type == "application/problem+json"
            assert (told.status, (await told.json())["code"]) == (status, code)


async def test_by_call_it_is_typed_and_its_error_is_a_remote_one(start: Start) -> None:
    """bytes travel as they are; ImageInfo comes back as itself."""
    node = (await start(Thumbnails, 1)).node
    small = await node.rpc[Thumbnails].thumbnail(photograph(), width=64, height=64, format="png")
    assert Image.open(io.BytesIO(small)).size == (64, 48)
    info = await node.rpc[Thumbnails].info(small)
    assert info == ImageInfo("png", 64, 48, "RGB", 1, len(small))
    with pytest.raises(mesh.RemoteError) as caught:
        await node.rpc[Thumbnails].info(b"no")
    assert (caught.value.code, caught.value.type_name) == ("not_an_image", "NotAnImage")


async def test_the_openapi_document_tells_of_the_body_and_of_the_limits(start: Start) -> None:
    """Who reads it knows that the image is the body, and how large a thumbnail may be."""
    http = (await start(Thumbnails, 1)).http
    async with http.get("/openapi.json") as told:
        told_of = (await told.json())["paths"]["/thumbnails"]["post"]
    assert "application/json" not in told_of["requestBody"]["content"]
    width = next(parameter for parameter in told_of["parameters"] if parameter["name"] == "width")
    assert (width["in"], width["schema"]["minimum"], width["schema"]["maximum"]) == ("query", 1, 4096)
