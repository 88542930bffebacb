"""A heavy back end behind the gateway: images in over HTTP, thumbnails out, on all cores.

Owns: the methods, their limits, and where they run.
Leaves to others: reading and shrinking an image (picture).

Shrinking an image takes tens of milliseconds of one core. `offload="process"` gives it to a child process, so that the
worker goes on answering; an image that crashes the decoder takes a child with it and nothing else. A child finds the
method again by name and has no worker around it: what it needs are its arguments and this module.
"""

from __future__ import annotations

import os
from typing import Annotated, Final

import msgspec

import mesh
from mesh import http, rpc
from services.thumbnails import picture
from services.thumbnails.picture import Format, ImageInfo

#: One image in each core's hands and one beside it, ready to be taken up.
AT_ONCE: Final = 2 * (os.cpu_count() or 1)
#: Each that waits holds its image in memory; past this many, callers are told `overloaded` at once.
WAITING: Final = 64

Side = Annotated[int, msgspec.Meta(ge=1, le=4096, description="in pixels")]
Quality = Annotated[int, msgspec.Meta(ge=1, le=100, description="of JPEG and WebP: 100 is the best and largest")]


class Thumbnails(mesh.Service):
    """Makes small images of large ones."""

    name = "thumbnails"
    version = "1.0"

    @http.post("/thumbnails")
    @rpc(idempotent=True, offload="process", concurrency=AT_ONCE, queue=WAITING)
    def thumbnail(
        self, image: bytes, width: Side = 256, height: Side = 256, format: Format = "jpeg", quality: Quality = 80
    ) -> bytes:
        """Shrink an image until it fits into width × height, keeping its shape; a smaller image keeps its size.

        Reads JPEG, PNG, WebP, GIF, BMP and TIFF; of an animation, the first picture. A photograph that was taken with
        the camera on its side comes out upright. Transparency becomes white where the format has none (JPEG).

        Errors: 415 `not_an_image`, 422 `bad_image`, 413 `image_too_large`.
        """
        return picture.shrink(image, width, height, format, quality)

    # The head of a file is read in no time, but it is a stranger's file: it, too, is opened in a child.
    @http.post("/thumbnails/info")
    @rpc(idempotent=True, offload="process", concurrency=AT_ONCE, queue=WAITING)
    def info(self, image: bytes) -> ImageInfo:
        """Tell an image's format and its size as people see it, without decoding it.

        Errors: 415 `not_an_image`, 422 `bad_image`, 413 `image_too_large`.
        """
        return picture.describe(image)
