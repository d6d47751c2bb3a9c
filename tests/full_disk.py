"""Disks that are full or cannot be written to, for tests: small ones in memory, where they can be.

Mounting needs root, or a system that lends it within a namespace; run as ``unshare -Urm``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Mounts a file system of so many bytes at a place, and executes the rest in it.
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'
IN_NAMESPACE = ("unshare", "-Urm", "sh", "-c", MOUNT)


def run_on(
    place: Path, size: int, source: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run Python where a fresh file system of so many bytes lies at ``place``; skips if it cannot.

    The source finds its arguments, the first of which is the place, in sys.argv.
    """
    place.mkdir(exist_ok=True)
    try:
        subprocess.run([*IN_NAMESPACE, "4096", place, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    where = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [*IN_NAMESPACE, str(size), place, sys.executable, "-c", source, place, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": where},
    )
