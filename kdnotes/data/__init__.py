"""Images with known factors: drawn scenes, digits, folders, torchvision's sets, and their views."""

from kdnotes.data.sets import (
    FOLDER_PREFIX,
    DataSpec,
    ImageData,
    check_name,
    load,
    names,
    with_fingerprint,
)

__all__ = [
    "FOLDER_PREFIX",
    "DataSpec",
    "ImageData",
    "check_name",
    "load",
    "names",
    "with_fingerprint",
]
