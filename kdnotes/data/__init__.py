"""Images with known factors: drawn scenes, digits, folders, torchvision's sets, and their views.

Importing this, and planning with it, does not import torch; making or reading images does.
"""

from kdnotes.data.folders import FOLDER_PREFIX
from kdnotes.data.image_data import ImageData
from kdnotes.data.registry import Source, load, names, source, with_fingerprint
from kdnotes.data.spec import DataSpec

__all__ = [
    "FOLDER_PREFIX",
    "DataSpec",
    "ImageData",
    "Source",
    "load",
    "names",
    "source",
    "with_fingerprint",
]
