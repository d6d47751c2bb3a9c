"""Makes mdistiller.json: what the authors' published function of DKD says.

    python tests/oracles/of_mdistiller.py PATH/mdistiller/distillers/DKD.py \
        > tests/oracles/mdistiller.json

PATH is a checkout of github.com/megvii-research/mdistiller (here: e8c5bb3). The inputs are those of
`of_torchdistill`, with settings of two kinds.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from of_torchdistill import logits

SETTINGS = ({"alpha": 1.0, "beta": 8.0, "tau": 4.0}, {"alpha": 2.0, "beta": 0.5, "tau": 1.5})


def main() -> None:
    """Print the numbers as JSON."""
    functions, _, _ = Path(sys.argv[1]).read_text().partition("class DKD")
    there: dict[str, Any] = {}
    exec(functions.replace("from ._base import Distiller", ""), there)
    warnings.simplefilter("ignore")  # an argument of theirs is deprecated
    student, teacher, labels = logits()
    found = [
        each | {"loss": float(there["dkd_loss"](student, teacher, labels, *each.values()))}
        for each in SETTINGS
    ]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
