"""Images in, thumbnails out: `mesh run services.thumbnails:Thumbnails`."""

from services.thumbnails.picture import BadImage, ImageInfo, ImageTooLarge, NotAnImage
from services.thumbnails.service import Thumbnails

__all__ = ["BadImage", "ImageInfo", "ImageTooLarge", "NotAnImage", "Thumbnails"]
