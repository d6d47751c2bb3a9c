"""The command: times the works asked for, writes the table, prints it.

Threads are one per process, and memory that is freed is kept (asking the system for it anew at
every step costs all contenders alike); both have to be settled before torch is imported, so the
command starts itself again with these settings.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
from importlib import metadata
from pathlib import Path

from kdnotes.training.pool import KEEP_FREED_MEMORY

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "benchmarks"
MODULES = {
    "a": "a_kd_epoch",
    "b": "b_study",
    "c": "c_attacks",
    "d": "d_gradcam",
    "e": "e_cka",
    "f": "f_peak",
    "g": "g_time_to_accuracy",
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    **KEEP_FREED_MEMORY,
    "TQDM_DISABLE": "1",
}
PACKAGES = ("torch", "torchdistill", "foolbox", "torchattacks", "captum", "grad-cam", "torch-cka")
EPILOG = """\
works:
  a  one KD epoch, ResNet-56 to ResNet-20    e  linear CKA, 9 x 3 layers
  b  a whole small study on two cores        f  share of the matmul peak
  c  PGD with ten steps                      g  time to a given accuracy
  d  Grad-CAM of two layers

examples:
  python -m benchmarks                       everything, into results/benchmarks
  python -m benchmarks --only c,d,e          three works, only shown
  python -m benchmarks --only a --rounds 9   more rounds than usual
  python -m benchmarks --quick               small sizes: does everything run?
  python -m benchmarks --quick --out q.csv   the same, with the table in a file
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where results did not agree."""
    asked = _parser().parse_args(arguments)
    works = _works(asked.only)
    import torch

    from benchmarks import timing
    from benchmarks.setting import DisagreementError, Setting

    torch.set_num_threads(1)
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(device, asked.rounds, asked.quick)
    lines: list[timing.Row] = []
    failed = []
    for work in works:
        module = importlib.import_module(f"benchmarks.{MODULES[work]}")
        setting.say(f"({work}) {module.TITLE}")
        started = time.perf_counter()
        try:
            lines += module.run(setting)
        except DisagreementError as error:
            failed.append(str(error))
            setting.say(f"  results do not agree: {error}")
        setting.say(f"  {time.perf_counter() - started:.0f} s in all")
    out = asked.out
    if out is None and not (asked.only or asked.quick or failed):
        out = RESULTS / f"{device}.csv"
    said = [
        timing.as_text(lines),
        "",
        "speedup: the first contender's least seconds over this one's; in f, share of the peak",
        *(f"checked, {text}" for text in setting.checks),
        *(f"DOES NOT AGREE, {text}" for text in failed),
        "",
        *_machine(device),
    ]
    if out is not None:
        timing.write(out, lines)
        out.with_suffix(".txt").write_text("\n".join(said) + "\n", encoding="utf-8")
        setting.say(f"written: {out}")
    print("\n".join(said))
    return 1 if failed else 0


def _machine(device: str) -> list[str]:
    """The processor or the card, and the versions of what was timed."""
    from kdnotes.book.results import hardware

    versions = []
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return [hardware(device), ", ".join(versions)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time the same work as done by kdnotes and by others, in turns.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="a,c", help="these works only")
    parser.add_argument("--rounds", type=_positive, help="rounds of each work; default: its own")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the table goes, as CSV")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one round is needed")
    return number


def _works(only: str) -> list[str]:
    names = [name.strip().lower() for name in only.split(",") if name.strip()] or list(MODULES)
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        sys.exit(f"benchmarks: no work {unknown[0]!r}; there are {', '.join(MODULES)}")
    return names


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    sys.exit(main())
