"""Any folder of images: ImageNet's layout, domains such as PACS's, one's own photos."""

from __future__ import annotations

from pathlib import Path

from kdnotes.data import TEST_SOURCE_OFFSET, DataSpec, ImageData, Source, folders
from kdnotes.data.folders import FolderOptions
from kdnotes.errors import RequestError
from kdnotes.lazy import torch


def load(spec: DataSpec, options: FolderOptions, data_dir: Path | None) -> ImageData:
    """Read one split of ``imagefolder:PATH``: uint8 (N, 3, size, size). Raises RequestError.

    Factors ``group`` and ``domain``, where asked for, number what ``names`` has under them; a group
    is -1 where the table does not name a photo.
    """
    from kdnotes.data import photos

    folder = folders.survey(spec.name, options)
    listed = folder.split(spec.split)
    names = [photo.name for photo in listed]
    images, kept = photos.read(folder.root, names, folder.size, options.skip_damaged)
    number = {label: index for index, label in enumerate(folder.classes)}
    labels = torch.tensor([number[photo.label] for photo in listed])[kept]
    present = set(labels.tolist())
    if lost := [label for label, index in number.items() if index not in present]:
        raise RequestError(
            f"no readable image of {folders.enumerated(lost)} in the {spec.split} split of "
            f"{folder.root}"
        )
    factors = {name: torch.tensor(folder.factor(name, listed))[kept] for name in folder.names}
    sources = kept + TEST_SOURCE_OFFSET * (spec.split == "test")
    return ImageData(images, labels, folder.classes, sources, factors, names=folder.names)


def fingerprint(spec: DataSpec, options: FolderOptions, data_dir: Path | None) -> str:
    """Name of the content of one split; it holds no absolute path."""
    return folders.survey(spec.name, options).fingerprint(spec.split)


SOURCES = (Source("imagefolder", load, fingerprint, FolderOptions, mirrored=True, takes_path=True),)
