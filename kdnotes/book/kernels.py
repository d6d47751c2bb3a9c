"""Kernels that start at once: forked from a process that has loaded the heavy libraries already.

Loading them takes a chapter seconds of one core, as long as some need to measure something.
multiprocessing's fork server loads them once; a kernel is then a fork of it. On Linux only: where
forking after loading is not safe, kernels start as usual.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kdnotes.training.pool import KEEP_FREED_MEMORY

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

# What chapters load, libraries that only a few of them use included.
LIBRARIES = (
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "torch",
    "timm.layers",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.datasets",
    "seaborn",
    "foolbox",
    "torchmetrics",
)
WORTH_LOADING = 3  # chapters from which on loading the libraries ahead saves time


def environment() -> dict[str, str]:
    """The environment of a kernel: this process's, for one thread and figures in the notebook."""
    # A backend chosen for scripts would leave the notebooks without figures.
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    # Several multi-threaded kernels at once would slow each other.
    changed = {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return KEEP_FREED_MEMORY | inherited | changed


def preload(count: int) -> bool:
    """Begin to load the libraries if that pays for ``count`` kernels; whether these can be forked.

    Returns at once; who asks for a kernel waits until the libraries are there. The server ends with
    this process.
    """
    if sys.platform != "linux" or count < WORTH_LOADING:
        return False
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(list(LIBRARIES))
    # What draws into notebooks must be loaded in the notebook: it looks for its kernel then.
    drawing = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    own, wanted = dict(os.environ), environment() | drawing
    try:
        _become(wanted)
        forkserver.ensure_running()
    finally:
        _become(own)
    return True


def manager(
    surroundings: Mapping[str, str],
    folder: Path,
    said: IO[str],
    forked: bool = False,
    started: Callable[[Any], None] = lambda process: None,
) -> type[AsyncKernelManager]:
    """What starts a kernel, for nbclient and papermill.

    ``surroundings``: its environment; ``folder``: where it starts; ``said``: the file, with a name,
    that gets what it writes to standard output and error; ``forked``: from the libraries of
    `preload`; ``started`` is told the process, which can be killed.
    """
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class Forking(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
            arguments = cmd[cmd.index("-f") :]
            process = get_context("forkserver").Process(
                target=_be_kernel, args=(arguments, options["env"], str(folder), said.name)
            )
            process.start()
            self.process = _Forked(process)  # type: ignore[assignment]
            self.pid = self.pgid = process.pid  # it leads a group of its own
            return self.connection_info

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            if forked:
                about = {"kernel_id": self.kernel_id, "kernel_spec": self.kernel_spec}
                self.provisioner = Forking(**about, parent=self)
            surely = {"env": dict(surroundings), "cwd": str(folder), "stdout": said, "stderr": said}
            await super().start_kernel(**options | surely)
            started(self.provisioner.process)  # type: ignore[union-attr]

    return Manager


class _Forked:
    """A forked process with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: Any) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _be_kernel(
    arguments: list[str], surroundings: Mapping[str, str], folder: str, said: str
) -> None:
    """Runs in the fork."""
    os.setsid()  # Ctrl-C reaches the one who asked for the kernel, who then ends it
    with open(said, "ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    os.chdir(folder)
    _become(surroundings)
    from ipykernel.kernelapp import IPKernelApp

    threading.Thread(target=_end_with_parent, daemon=True).start()
    IPKernelApp.launch_instance(argv=arguments)


def _end_with_parent() -> None:
    parent = parent_process()  # not the server, but the one who asked for the kernel
    assert parent is not None
    parent.join()
    os._exit(1)


def _become(surroundings: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(surroundings)
