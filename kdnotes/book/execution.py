"""Chapters one after another, in a process of its own: ``python -m kdnotes.book.execute``.

Each line of stdin is a JSON object with template, output, out, parameters, base and stamp. Each
line of stdout is a JSON object: the number of cells done, and when a chapter ends its outcome. The
process stops when stdin closes, so that it never outlives the one who started it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

LONGEST_SOURCE_LINE = 80

_channel: IO[str] = sys.stdout  # where the one who started this process listens


def main() -> None:
    """Execute the notebooks that stdin names, telling stdout how far they are."""
    global _channel
    # The kernel inherits standard output; what libraries print there is not for our reader.
    _channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    while True:
        _tell(**execute(**json.loads(orders.get())))


def execute(
    template: str,
    output: str,
    out: str,
    parameters: dict[str, Any],
    base: str,
    stamp: dict[str, Any],
) -> dict[str, Any]:
    """Run a notebook with papermill into ``output``; kernels start in the folder ``base``.

    All paths are absolute. ``out`` is the folder of the chapter's results, ``stamp`` is added to
    the metadata. Returns ``{"failed": None, "seconds": ...}``, or what is needed to describe the
    failing cell.
    """
    import nbformat
    from papermill import execute_notebook
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillExecutionError

    from kdnotes.book import kernels

    class TellingEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *args: Any, **kwargs: Any) -> Any:
            total = len(nb_man.nb.cells)
            complete = nb_man.cell_complete

            def cell_complete(cell: Any, cell_index: int, **options: Any) -> None:
                complete(cell, cell_index, **options)
                _tell(done=cell_index + 1, total=total)

            nb_man.cell_complete = cell_complete
            return super().execute_managed_notebook(nb_man, *args, **kwargs)

    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill_engines.register("telling", TellingEngine)
    # Relative, because papermill formats paths as templates: braces in a folder's name are fatal.
    target = Path(output)
    os.chdir(target.parent)
    os.environ["KDNOTES_OUT"] = out  # the kernel gets this environment
    started = time.perf_counter()
    try:
        execute_notebook(
            nbformat.read(template, as_version=4),
            target.name,
            parameters=parameters,
            engine_name="telling",
            progress_bar=False,
            cwd=base,
            **kernels.manager(),
        )
    except PapermillExecutionError as error:
        return {
            "failed": {
                "cell": error.cell_index + 1,
                "source": _first_line(error.source),
                "error": f"{error.ename}: {error.evalue}".strip().removesuffix(":"),
            }
        }
    except Exception as error:  # the kernel died, or there is none: said by the caller
        return {"failed": {"cell": None, "source": "", "error": f"{type(error).__name__}: {error}"}}
    seconds = round(time.perf_counter() - started, 2)
    notebook = nbformat.read(target.name, as_version=4)
    about = notebook.metadata["papermill"]
    for name in ("input_path", "output_path"):
        about.pop(name, None)
    notebook.metadata["kdnotes"] = stamp | {"seconds": seconds}
    nbformat.write(notebook, target.name)
    return {"failed": None, "seconds": seconds}


def _first_line(source: str) -> str:
    line = next((line for line in source.splitlines() if line.strip()), "")
    return line[:LONGEST_SOURCE_LINE]


def _tell(**event: Any) -> None:
    print(json.dumps(event), file=_channel, flush=True)


def _listen(orders: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
