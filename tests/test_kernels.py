"""Forked kernels: their own surroundings, the libraries already there, and none left behind."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kdnotes.book import kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, str]]:
    with kernels.server(dict(os.environ) | {"OMP_NUM_THREADS": "1"}) as environment:
        yield environment


def run(environment: dict[str, str], source: str, folder: Path) -> str:
    """What a cell prints in a kernel that was asked for in an environment."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.ADDRESS, environment[kernels.ADDRESS])
        patch.setenv("KDNOTES_OUT", str(folder))
        client = NotebookClient(
            notebook, resources={"metadata": {"path": str(folder)}}, **kernels.manager()
        )
        client.execute()
    return "".join(output.get("text", "") for output in notebook.cells[0].outputs)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(process: int) -> bool:
    for _ in range(100):
        if not running(process):
            return True
        time.sleep(0.1)
    return False


def test_a_kernel_has_the_libraries_and_surroundings_of_its_own(
    served: dict[str, str], tmp_path: Path
) -> None:
    # Loaded by the server, not by the cell: it is told before anything is imported.
    loaded = "import sys, os; print('torch' in sys.modules, 'timm' in sys.modules)\n"
    said = run(
        served, f"{loaded}print(os.getcwd(), os.environ['KDNOTES_OUT'], os.getpid())", tmp_path
    )
    first, second = said.splitlines()
    assert first == "True True"
    folder, out, process = second.split()
    assert folder == out == str(tmp_path)
    assert ends(int(process))


def test_two_kernels_know_nothing_of_each_other(served: dict[str, str], tmp_path: Path) -> None:
    assert run(served, "import torch; torch.left_behind = 1; print(1)", tmp_path) == "1\n"
    said = "import torch; print(hasattr(torch, 'left_behind'))"
    assert run(served, said, tmp_path) == "False\n"
    draws = "import random; print(random.random())"
    assert run(served, draws, tmp_path) != run(served, draws, tmp_path)


def test_a_kernel_computes_what_an_ordinary_one_does(
    served: dict[str, str], tmp_path: Path
) -> None:
    source = (
        "import torch\n"
        "torch.manual_seed(3)\n"
        "layer = torch.nn.Conv2d(3, 8, 3)\n"
        "print(layer(torch.randn(4, 3, 16, 16)).sum().item(), torch.get_num_threads())"
    )
    ordinary = subprocess.run(
        [sys.executable, "-c", source],
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert run(served, source, tmp_path) == ordinary


def test_figures_are_drawn_into_the_notebook(served: dict[str, str], tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.plot([0, 1]);")]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.ADDRESS, served[kernels.ADDRESS])
        patch.delenv("MPLBACKEND", raising=False)
        NotebookClient(notebook, **kernels.manager()).execute()
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[0].outputs)


def test_a_kernel_ends_with_the_process_that_stands_for_it(
    served: dict[str, str], tmp_path: Path
) -> None:
    from jupyter_client.manager import AsyncKernelManager

    async def started_and_killed() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(kernels.ADDRESS, served[kernels.ADDRESS])
            manager: AsyncKernelManager = kernels.manager()["kernel_manager_class"]()
            await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        stand_in = manager.provisioner.process.pid  # type: ignore[union-attr]
        heard: list[str] = []
        await client.execute_interactive(
            "import os; print(os.getpid())",
            output_hook=lambda message: heard.append(message["content"].get("text", "")),
        )
        client.stop_channels()
        os.kill(stand_in, 9)
        await manager.shutdown_kernel(now=True)
        return int("".join(heard))

    assert ends(asyncio.run(started_and_killed()))


def test_without_a_server_the_kernel_is_an_ordinary_one(tmp_path: Path) -> None:
    nobody = {kernels.ADDRESS: str(tmp_path / "nobody")}
    loaded = "import sys; print('torch' in sys.modules)"
    assert run(nobody, loaded, tmp_path) == "False\n"


def test_the_server_ends_with_the_block(tmp_path: Path) -> None:
    with kernels.server(dict(os.environ)) as environment:
        address = environment[kernels.ADDRESS]
        process = int(run(environment, "import os; print(os.getppid())", tmp_path))
        assert running(process)
    assert ends(process)
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
        late.connect(address)
