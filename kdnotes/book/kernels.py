"""Kernels that start at once: forked from a process that has loaded the heavy libraries already.

Loading them takes a chapter seconds of one core, as long as some need to measure something. One
server process loads them once; a kernel is then a fork of it. On Linux only: where forking after
loading is not safe, kernels start as usual.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ADDRESS = "KDNOTES_KERNELS"  # in the environment: where the server listens
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
    "captum.attr",
    "foolbox",
    "torchmetrics",
)
WAITING = 60  # kernels that may wait while the libraries are being loaded


@contextmanager
def server(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Run a server; yields the environment that kernels need so as to be forked from it.

    Everything else that kernels find in their environment is their own. Where there can be no
    server, the environment comes back as it was.
    """
    if sys.platform != "linux":
        yield environment
        return
    with (
        tempfile.TemporaryDirectory(prefix="kdnotes-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        address = str(Path(folder) / "kernels")
        # Kernels can be asked for from here on; those who ask wait until the server is ready.
        listener.bind(address)
        listener.listen(WAITING)
        # What draws into notebooks must be loaded in the notebook: it looks for its kernel then.
        drawing = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        process = subprocess.Popen(
            [sys.executable, "-m", "kdnotes.book.kernels", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment | drawing,
            start_new_session=True,  # Ctrl-C reaches the one who started it, who then stops all
        )
        assert process.stdin is not None
        try:
            yield environment | {ADDRESS: address}
        finally:
            process.stdin.close()
            process.wait()


def manager() -> dict[str, Any]:
    """Arguments for papermill's client: who starts the kernel, if there is a server."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        return {}
    from jupyter_client.manager import AsyncKernelManager

    class ForkedKernelManager(AsyncKernelManager):
        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            usual = super().format_kernel_cmd(extra_arguments)
            stand_in = str(Path(__file__).with_name("kernel_stand_in.py"))
            # Without site and the user's settings: the stand-in is to be there at once.
            return [sys.executable, "-I", "-S", stand_in, address, self.connection_file, *usual]

    return {"kernel_manager_class": ForkedKernelManager}


def main() -> None:
    """Fork a kernel for each connection, until stdin closes."""
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        for name in LIBRARIES:
            with suppress(ImportError):  # whoever needs it will say so
                importlib.import_module(name)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries finished kernels
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            with connection:
                message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
                if os.fork() == 0:
                    listener.close()
                    _become_kernel(connection, json.loads(message), streams)
                for stream in streams:
                    os.close(stream)


def _become_kernel(connection: socket.socket, wish: dict[str, Any], streams: list[int]) -> None:
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(wish["folder"])
        os.environ.clear()
        os.environ.update(wish["environment"])
        connection.sendall(f"{os.getpid()}\n".encode())
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        from ipykernel.kernelapp import IPKernelApp

        parent = f"--IPKernelApp.parent_handle={os.getppid()}"
        IPKernelApp.launch_instance(argv=["-f", wish["connection_file"], parent])
        status = 0
    finally:
        os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """End this kernel when its stand-in is gone."""
    with suppress(OSError):
        connection.recv(1)
    os._exit(1)


if __name__ == "__main__":
    main()
