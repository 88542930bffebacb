"""Images in, thumbnails out: `mesh run services.thumbnails:Thumbnails`; for whole albums, `:Albums` beside it."""

from services.thumbnails.album import Albums, Failure, NoThumbnail, Progress, UnknownAlbum
from services.thumbnails.parcel import BadParcel, ParcelTooLarge
from services.thumbnails.picture import BadImage, ImageInfo, ImageTooLarge, NotAnImage
from services.thumbnails.service import Thumbnails

__all__ = [
    "Albums",
    "BadImage",
    "BadParcel",
    "Failure",
    "ImageInfo",
    "ImageTooLarge",
    "NoThumbnail",
    "NotAnImage",
    "ParcelTooLarge",
    "Progress",
    "Thumbnails",
    "UnknownAlbum",
]
