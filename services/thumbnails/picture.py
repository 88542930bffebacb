"""One image: told of, and made small.

Owns: what Pillow is asked to do, in which order, and how its failures are told.
Leaves to others: where this runs and how many at once (service).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import msgspec
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

import mesh

Format = Literal["jpeg", "png", "webp"]

#: What is read. Pillow knows some forty formats; one that nobody sends is only one more decoder to attack.
READ: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: Width × height of what is decoded: some 256 MB of memory at four bytes each. A few kilobytes of PNG can claim more.
MOST_PIXELS: Final = 64_000_000

#: EXIF orientations that lay the image on its side (JEITA CP-3451, "Orientation"): its width is seen as its height.
_ON_ITS_SIDE: Final = (5, 6, 7, 8)
#: One bit, a palette, printing colours: what cannot be scaled smoothly as it is, and what it becomes first.
_SCALABLE: Final = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
}
_WITH_ALPHA: Final = ("RGBA", "LA")


class ImageError(mesh.ServiceError):
    """The image that came cannot be used."""

    code = "image_error"
    status = 422


class NotAnImage(ImageError):
    """The body is in none of the formats that are read."""

    code = "not_an_image"
    status = 415


class BadImage(ImageError):
    """The body begins like an image, and then is broken or cut off."""

    code = "bad_image"


class ImageTooLarge(ImageError):
    """The image has more pixels than are decoded."""

    code = "image_too_large"
    status = 413


class ImageInfo(msgspec.Struct, frozen=True):
    """What an image is.

    Attributes:
        format: "jpeg", "png", "webp", "gif", "bmp" or "tiff".
        width, height: in pixels, as people see it: after the camera's orientation is applied.
        mode: how a pixel is stored, in Pillow's words: "RGB", "L" (grey), "P" (palette), "RGBA", "CMYK" and so on.
        frames: more than 1 for an animation, or a document of several pages.
        bytes: length of the file.
    """

    format: str
    width: int
    height: int
    mode: str
    frames: int
    bytes: int


def describe(data: bytes) -> ImageInfo:
    """What an image says of itself.

    Raises:
        NotAnImage, BadImage, ImageTooLarge: see there.
    """
    with _opened(data) as image:
        width, height = _size_as_stored(image)
        if _orientation(image) in _ON_ITS_SIDE:
            width, height = height, width
        return ImageInfo(
            format=(image.format or "").lower(),
            width=width,
            height=height,
            mode=image.mode,
            frames=getattr(image, "n_frames", 1),
            bytes=len(data),
        )


def shrink(data: bytes, width: int, height: int, format: Format, quality: int) -> bytes:
    """The image, made to fit into width × height pixels without changing its shape, upright, in `format`.

    Raises:
        NotAnImage, BadImage, ImageTooLarge: see there.
    """
    with _opened(data) as image:
        if image.format == "TIFF":
            image.load()  # here, and only here, Pillow turns the image itself
        on_its_side = image.format != "TIFF" and _orientation(image) in _ON_ITS_SIDE
        box = (height, width) if on_its_side else (width, height)
        # Of a JPEG this decodes only as much detail as is needed, and only before the image is loaded.
        image.draft(None, box)
        small = _scalable(image)
        small.thumbnail(box)
        # Turned last: there are fewer pixels to turn now.
        ImageOps.exif_transpose(small, in_place=True)
        return _encoded(small, format, quality)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image, its head read and its size within bounds. What fails inside is told as one of our errors."""
    try:
        with warnings.catch_warnings():
            # Pillow's own bounds are further out than ours; between the two it only warns, into the log.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # A broken tag in a file that can be shown all the same is nobody's news.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(data), formats=READ) as image:
                pixels = image.width * image.height
                if pixels > MOST_PIXELS:
                    raise ImageTooLarge(
                        f"the image has {image.width} × {image.height} pixels, at most {MOST_PIXELS:,} are decoded",
                        details={"width": image.width, "height": image.height, "most_pixels": MOST_PIXELS},
                    )
                yield image
    except mesh.MeshError:
        raise
    except Image.DecompressionBombError as exc:
        raise ImageTooLarge(f"the image has too many pixels, at most {MOST_PIXELS:,} are decoded") from exc
    except UnidentifiedImageError as exc:
        raise NotAnImage(_what_it_is(data)) from exc
    # Decoders of a dozen formats meet a stranger's bytes here: OSError, SyntaxError, struct.error, zlib.error and
    # more are all the same news.
    except Exception as exc:
        raise BadImage(f"the image is damaged or truncated ({type(exc).__name__}: {exc})") from exc


def _what_it_is(data: bytes) -> str:
    """What is wrong with something that is no image, and what to do."""
    if not data:
        return "the body is empty; send an image"
    if data[:2] == b"--":
        return (
            "the body is a form, not an image: send the file itself "
            "(curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg)"
        )
    return f"these {len(data):,} bytes are not a readable image; supported: {', '.join(READ)}"


def _orientation(image: Image.Image) -> int:
    """1 to 8, as in EXIF; 1 is upright."""
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _size_as_stored(image: Image.Image) -> tuple[int, int]:
    """Width and height before any turning. Of a TIFF, releases of Pillow differ on what `size` means before loading."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        return int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return image.size


def _scalable(image: Image.Image) -> Image.Image:
    """The image in a mode whose neighbouring pixels may be mixed."""
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode in _SCALABLE:
        return image.convert(_SCALABLE[image.mode])
    if image.mode.startswith(("I", "F")):
        # 16 bits of grey (or more, rarely): the upper eight are what a thumbnail shows.
        return (image if image.mode == "F" else image.point(lambda value: value * (1 / 256))).convert("L")
    return image


def _encoded(image: Image.Image, format: Format, quality: int) -> bytes:
    if format == "jpeg" and image.mode in _WITH_ALPHA:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white.convert("RGB")
    elif format == "webp" and image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if image.mode in _WITH_ALPHA else "RGB")
    out = io.BytesIO()
    # Without the profile, colours of a phone's photograph look dull; it means the values of the mode it came with.
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    image.save(out, format, quality=quality, optimize=format == "png", icc_profile=profile)
    return out.getvalue()
