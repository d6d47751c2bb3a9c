"""Notebooks as they are committed: without outputs, with quiet metadata.

As a command: python tests/quiet_notebooks.py NOTEBOOK... prints what is wrong, then exits with 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def noises(notebook: dict[str, Any]) -> list[str]:
    """What a notebook holds that a run has left, or an editor."""
    about = notebook["metadata"]
    found = [f"metadata {name!r}" for name in sorted(set(about) - {"kernelspec", "language_info"})]
    if (kernel := about.get("kernelspec", {}).get("name")) != "python3":
        found.append(f"kernel {kernel!r}, not 'python3'")
    language = sorted(set(about.get("language_info", {})) - {"name"})
    found += [f"metadata 'language_info.{name}'" for name in language]
    seen: set[str] = set()
    for number, cell in enumerate(notebook["cells"], start=1):
        found += [
            f"cell {number}: metadata {name!r}"
            for name in sorted(set(cell["metadata"]) - {"tags", "mystnb"})
        ]
        if cell.get("outputs"):
            found.append(f"cell {number}: outputs")
        if cell.get("execution_count") is not None:
            found.append(f"cell {number}: an execution count")
        if not cell.get("id") or cell["id"] in seen:
            found.append(f"cell {number}: no id of its own")
        seen.add(cell.get("id", ""))
    return found


def main(names: list[str]) -> int:
    """Print what is wrong with each notebook; 1 if anything is."""
    found = [
        f"{name}: {noise}"
        for name in names
        for noise in noises(json.loads(Path(name).read_text(encoding="utf-8")))
    ]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
