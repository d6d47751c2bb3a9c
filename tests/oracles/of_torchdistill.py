"""Makes torchdistill.json: what torchdistill's losses say of inputs that a formula gives.

    pip install --no-deps --target /tmp/peer torchdistill==1.1.5
    PYTHONPATH=/tmp/peer python tests/oracles/of_torchdistill.py > tests/oracles/torchdistill.json

Nothing of kdnotes is in it. The tests take inputs from here and numbers from the file, so that they
run without torchdistill, which wants a newer torch than kdnotes does.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TAU, GAMMA, WEIGHT = 4.0, 0.1, 0.9
IMAGES, CLASSES, NEGATIVES, WIDTH, BATCH = 64, 4, 16, 8, 5
TEMPERATURE, MOMENTUM = 0.07, 0.5


def waves(*shape: int, start: float, scale: float = 3.0) -> Tensor:
    """Numbers without a pattern, the same on every machine and with every torch."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return scale * torch.sin(start + 0.37 * places**2).view(shape)


def logits() -> tuple[Tensor, Tensor, Tensor]:
    """A student's and a teacher's, with labels."""
    return waves(6, 4, start=1), waves(6, 4, start=2), torch.arange(6) % 4


def features() -> tuple[Tensor, Tensor]:
    """A student's and a teacher's, of another width."""
    return waves(7, 5, start=3), waves(7, 9, start=4)


def banks() -> tuple[Tensor, Tensor]:
    """Entries of the student's and the teacher's memory, of unit length."""
    return tuple(F.normalize(waves(IMAGES, WIDTH, start=start)) for start in (5, 6))


def step(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One batch of CRD: embeddings of unit length, the images, and these with their negatives."""
    student, teacher = (F.normalize(waves(BATCH, WIDTH, start=number + s)) for s in (7, 9))
    indices = torch.arange(BATCH) * 7 + number
    places = torch.arange(BATCH * NEGATIVES).view(BATCH, NEGATIVES)
    negatives = (indices[:, None] + 1 + places * 4 + places % 3) % IMAGES
    assert (negatives % CLASSES != indices[:, None] % CLASSES).all()
    return student, teacher, indices, torch.cat([indices[:, None], negatives], 1)


def kl(losses: Any) -> float:
    """Cross-entropy and soft labels together."""
    student, teacher, labels = logits()
    loss = losses.KDLoss("s", "output", "t", "output", temperature=TAU, alpha=GAMMA, beta=WEIGHT)
    return float(loss({"s": {"output": student}}, {"t": {"output": teacher}}, labels))


def similarity(losses: Any) -> float:
    """The loss between two matrices of similarities, batch mean."""
    student, teacher = features()
    loss = losses.SPKDLoss("s", "t", "batchmean")
    return float(loss({"s": {"output": student}}, {"t": {"output": teacher}}))


def contrast(losses: Any) -> dict[str, Any]:
    """Two steps of CRD: the second sees moved banks and the constants of the first."""
    loss = losses.CRDLoss(
        "norm", "empty", "norm", WIDTH, IMAGES, NEGATIVES, IMAGES, TEMPERATURE, MOMENTUM, eps=0.0
    ).double()
    for bank, start in zip((loss.memory_v1, loss.memory_v2), banks(), strict=True):
        bank.copy_(start)
    found = []
    for number in range(2):
        student, teacher, indices, chosen = step(number)
        positions = {"pos_idx": indices, "contrast_idx": chosen}
        given = {"norm": {"output": student}, "empty": {"input": positions}}
        found.append(float(loss(given, {"norm": {"output": teacher}})))
    ways = waves(IMAGES, WIDTH, start=11)  # one number for each bank, which sees all its entries
    return {
        "losses": found,
        "banks": [float((bank * ways).sum()) for bank in (loss.memory_v1, loss.memory_v2)],
        "log_normalizers": loss.params[2:4].log().tolist(),
    }


def main() -> None:
    """Print the numbers as JSON."""
    from torchdistill.losses import mid_level as losses

    found = {"kl": kl(losses), "crd": contrast(losses), "sp_rows_of_sum_one": similarity(losses)}
    # It divides the rows by their sum (`normalize(x, 1)` sets p, not dim), where the publication,
    # equation 3, and the authors' peers have unit length: once more with what is meant.
    losses.normalize = lambda values, dim: F.normalize(values, dim=dim)
    print(json.dumps(found | {"sp": similarity(losses)}, indent=1))


if __name__ == "__main__":
    main()
