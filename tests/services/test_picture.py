"""services.thumbnails.picture: one image, in every form in which it may come, whole or not."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.thumbnails import BadImage, ImageTooLarge, NotAnImage, picture

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def image_file(
    format: str = "PNG", size: tuple[int, int] = (200, 100), mode: str = "RGB", orientation: int = 1
) -> bytes:
    """The file of an image whose left half is red, and right half blue, where its mode has colours."""
    image = Image.new(mode, size)
    if mode == "RGB":
        image.paste("red", (0, 0, size[0] // 2, size[1]))
        image.paste("blue", (size[0] // 2, 0, size[0], size[1]))
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, format, exif=exif)
    return file.getvalue()


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("wanted", ["jpeg", "png", "webp"])
def test_every_format_comes_out_in_every_other(format: str, wanted: picture.Format) -> None:
    """The shape is kept, and the file is what was asked for."""
    small = read(picture.shrink(image_file(format), 50, 50, wanted, 80))
    assert (small.format, small.size) == (wanted.upper(), (50, 25))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("wanted", ["jpeg", "png", "webp"])
def test_every_kind_of_pixel_becomes_a_thumbnail(mode: str, wanted: picture.Format) -> None:
    """Bits, palettes, transparency, sixteen bits of grey, printing colours."""
    small = read(picture.shrink(image_file("TIFF", mode=mode), 64, 64, wanted, 80))
    assert small.size == (64, 32)


def test_sixteen_bits_of_grey_keep_their_brightness() -> None:
    """A medium grey stays one, instead of becoming white."""
    file = io.BytesIO()
    Image.new("I;16", (20, 20), 0x8000).save(file, "PNG")
    assert read(picture.shrink(file.getvalue(), 10, 10, "png", 80)).getpixel((5, 5)) == 0x80


def test_transparency_becomes_white_where_the_format_has_none() -> None:
    """A logo on nothing is shown on white, not on black."""
    file = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(file, "PNG")
    assert read(picture.shrink(file.getvalue(), 10, 10, "jpeg", 90)).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "left_is_on"), [(1, "left"), (6, "top"), (8, "bottom"), (5, "top")])
def test_a_photograph_taken_sideways_comes_out_upright(format: str, orientation: int, left_is_on: str) -> None:
    """The box is that of the upright image; info tells the same size; no tag remains to turn it again."""
    data = image_file(format, orientation=orientation)
    small = read(picture.shrink(data, 60, 40, "png", 80))
    info = picture.describe(data)
    upright = left_is_on == "left"
    assert small.size == ((60, 30) if upright else (20, 40))
    assert (info.width, info.height) == ((200, 100) if upright else (100, 200))
    where = {"left": (1, 15), "top": (10, 1), "bottom": (10, 38)}[left_is_on]
    red, _, blue = small.convert("RGB").getpixel(where)
    assert red > 200 > 50 > blue
    assert 0x0112 not in small.getexif()


def test_a_small_image_is_not_enlarged() -> None:
    """Width and height are bounds, not a wish."""
    assert read(picture.shrink(image_file(size=(20, 10)), 100, 100, "png", 80)).size == (20, 10)


def test_an_animation_tells_its_frames_and_gives_its_first() -> None:
    """info counts them; the thumbnail is one picture."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (40, 20), colour) for colour in ("red", "green", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert picture.describe(file.getvalue()).frames == 3
    assert read(picture.shrink(file.getvalue(), 10, 10, "png", 80)).getpixel((1, 1))[:3] == (255, 0, 0)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n"])
def test_what_is_no_image_is_told_so(data: bytes) -> None:
    """415: the sender should send something else."""
    for use in (picture.describe, lambda body: picture.shrink(body, 10, 10, "jpeg", 80)):
        with pytest.raises(NotAnImage) as caught:
            use(data)
        assert (caught.value.status, caught.value.code) == (415, "not_an_image")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_an_image_that_is_cut_off_is_told_so(format: str) -> None:
    """422: it begins well."""
    data = image_file(format)
    with pytest.raises(BadImage) as caught:
        picture.shrink(data[: len(data) * 2 // 3], 10, 10, "jpeg", 80)
    assert (caught.value.status, caught.value.code) == (422, "bad_image")


@pytest.mark.parametrize("size", [(9_000, 8_000), (15_000, 15_000)])
def test_an_image_that_would_fill_the_memory_is_refused_by_its_head(size: tuple[int, int]) -> None:
    """413, between our bound and Pillow's, and past both: a few kilobytes that claim hundreds of megabytes."""
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    for use in (picture.describe, lambda body: picture.shrink(body, 10, 10, "jpeg", 80)):
        with pytest.raises(ImageTooLarge) as caught:
            use(file.getvalue())
        assert (caught.value.status, caught.value.code) == (413, "image_too_large")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_image_gives_a_thumbnail_or_an_error_of_ours(data: st.DataObject) -> None:
    """Whatever bytes are changed: never an exception that nobody declared."""
    body = bytearray(image_file(data.draw(st.sampled_from(FORMATS)), size=(24, 12)))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert picture.shrink(bytes(body), 8, 8, "jpeg", 80)
    except picture.ImageError:
        pass
