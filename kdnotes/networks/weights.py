"""Weights from elsewhere: one's own checkpoints, and what timm or others have published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm

from kdnotes.errors import RequestError
from kdnotes.networks.building import PRESET_NETS, TRAINED_HERE, build, check_name
from kdnotes.networks.wrapping import Normalized


def load_user_model(text: str, num_classes: int) -> Normalized:
    """One's own network: ``ARCH`` (timm's pretrained weights) or ``ARCH:FILE`` (a checkpoint).

    FILE is safetensors, or a PyTorch state dictionary (read with weights_only). A network saved
    without its normalisation gets that of timm's own weights. Raises RequestError for an unknown
    architecture, a missing or unfitting file, or other classes.
    """
    name, _, file = text.partition(":")
    check_name(name)
    if not file:
        return load_published(name, name, num_classes)
    path = Path(file).expanduser()
    if not path.is_file():
        raise RequestError(f"no checkpoint {file!r}")
    try:
        state = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike: the file cannot be used
        raise RequestError(
            f"cannot read {path.name} as a checkpoint of tensors: {error}"
        ) from error
    normalisation = {}
    if name not in PRESET_NETS:
        expected = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        normalisation = {"mean": tuple(expected.mean), "std": tuple(expected.std)}
    problems = []
    for small_images in (True, False):
        network = build(name, num_classes, 0, small_images=small_images, **normalisation)
        target = network if any(key.startswith("body.") for key in state) else network.body
        try:
            target.load_state_dict(state)
            return network
        except RuntimeError as error:
            problems.append(str(error).splitlines()[-1].strip())
    raise RequestError(
        f"checkpoint {path.name} does not fit {name} with {num_classes} classes: {problems[-1]}"
    )


def load_published(name: str, weights: str, num_classes: int) -> Normalized:
    """A timm architecture with published weights, in evaluation mode.

    ``weights``: timm's name with its tag, such as resnet50.tv_in1k, or that of a file. A file
    WEIGHTS.safetensors (or .pth, .pt, .bin) in the folder KDNOTES_WEIGHTS comes first, timm's hub
    second. Raises RequestError saying what to do when neither has them, or when they do not fit.
    """
    check_name(name)
    folder = os.environ.get("KDNOTES_WEIGHTS", "")
    endings = (".safetensors", ".pth", ".pt", ".bin")
    files = [Path(folder).expanduser() / f"{weights}{ending}" for ending in endings]
    found = next((file for file in files if folder and file.is_file()), None)
    advice = (
        f"Put them as {weights}.safetensors (or .pth) into a folder and set KDNOTES_WEIGHTS to it, "
        f"or set KDNOTES_WEIGHTS={TRAINED_HERE} to train this network instead"
    )
    if found is None and not timm.is_model_pretrained(weights):
        raise RequestError(f"timm has no weights {weights!r}. {advice}")
    try:
        # The body is named without the tag where the file's own name is not one of timm's.
        body: Any = timm.create_model(
            weights if timm.is_model(weights) else name,
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay={"file": str(found)} if found else None,
        )
    except Exception as error:  # the hub's client raises a dozen kinds; the reason is in the text
        reason = " ".join(str(error).split())[:300]
        problem = f"weights {weights!r} could not be downloaded ({reason}). {advice}"
        if found:
            problem = f"{found.name} does not fit {name}: {reason}"
        raise RequestError(problem) from error
    expected = body.pretrained_cfg
    return Normalized(body, tuple(expected["mean"]), tuple(expected["std"])).eval()
