"""What runs elsewhere, run here: a workflow's commands exist, and a failed week is told once."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
# Stands for GitHub's own command: notes down what it was asked, and knows the open issues.
GH = """#!/bin/sh
echo "$@" >> "$ASKED"
if [ "$2" = list ]; then printf %s "$OPEN"; fi
"""


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_makes_can_be_made(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    made = [step["run"].split()[1] for step in steps(path) if step.get("run", "")[:5] == "make "]
    assert made
    assert set(made) <= targets


def test_the_pages_are_uploaded_from_where_they_are_built() -> None:
    (upload,) = (
        step
        for step in steps(REPOSITORY / ".github" / "workflows" / "pages.yml")
        if "upload-pages-artifact" in step.get("uses", "")
    )
    assert upload["with"]["path"] == "_build/html"


@pytest.mark.parametrize("already_open", ["", "7"])
def test_a_failed_week_opens_one_issue_and_then_adds_to_it(
    already_open: str, tmp_path: Path
) -> None:
    (told,) = (step for step in steps(WORKFLOWS[-1]) if step.get("if") == "failure()")
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "ASKED": str(tmp_path / "asked"),
        "OPEN": already_open,
        "RUN": "https://example.org/run/1",
    }
    subprocess.run(["bash", "-e", "-c", told["run"]], env=environment, check=True)
    looked, acted = (tmp_path / "asked").read_text().splitlines()
    assert looked.startswith("issue list --state open")
    expected = "issue comment 7 --body Again: " if already_open else "issue create --title "
    assert acted.startswith(expected)
    assert acted.endswith("https://example.org/run/1")
