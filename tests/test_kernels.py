"""Forked kernels: their own surroundings, the libraries already there, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_execution import order, said
from tiny_book import code, write

from kdnotes.book import execution
from kdnotes.book.execution import execute_notebook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


@pytest.fixture(autouse=True, scope="module")
def preloaded() -> None:
    before = dict(os.environ)
    assert not execution.preload(execution.WORTH_LOADING - 1)
    assert execution.preload(execution.WORTH_LOADING)
    assert dict(os.environ) == before


def run(source: str, folder: Path, forked: bool = True) -> list[str]:
    """The words that a cell prints in a kernel."""
    wanted = order(folder, source, forked=forked)
    execute_notebook(wanted)
    return said(wanted)


def ends(process: int) -> bool:
    """Whether it ends soon; its entry stands until the process that it came from notices."""
    for _ in range(300):  # the libraries' server ends slowly where its files have to be read again
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_a_kernel_has_the_libraries_and_surroundings_of_its_own(tmp_path: Path) -> None:
    # Loaded ahead, not by the cell: it is told before anything is imported.
    loaded = "import sys, os; print('torch' in sys.modules, 'timm' in sys.modules)\n"
    surroundings = "print(os.getcwd(), os.environ['MARK'], os.getpid(), os.getpgid(0))"
    folder = tmp_path / "own"
    *first, where, mark, process, group = run(loaded + surroundings, folder)
    assert first == ["True", "True"]
    assert (where, mark) == (str(folder), "own")
    assert process == group
    assert ends(int(process))
    assert run("import sys; print('torch' in sys.modules)", tmp_path / "b", False) == ["False"]


def test_two_kernels_know_nothing_of_each_other(tmp_path: Path) -> None:
    assert run("import torch; torch.left_behind = 1; print(1)", tmp_path / "a") == ["1"]
    asked = "import torch, random; print(hasattr(torch, 'left_behind'), random.random())"
    first, second = (run(asked, tmp_path / name) for name in "bc")
    assert first[0] == second[0] == "False"
    assert first[1] != second[1]


def test_a_kernel_computes_what_an_ordinary_one_does(tmp_path: Path) -> None:
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
    assert run(source, tmp_path / "here") == ordinary.split()


def test_a_kernel_can_train_in_processes_of_its_own(tmp_path: Path) -> None:
    source = (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "with ProcessPoolExecutor(1, get_context('spawn')) as pool:\n"
        "    print(pool.submit(abs, -3).result())"
    )
    assert run(source, tmp_path / "here") == ["3"]


def test_figures_are_drawn_into_the_notebook(tmp_path: Path) -> None:
    wanted = order(tmp_path / "here", "import matplotlib.pyplot as p\np.plot([0, 1]);", forked=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        execute_notebook(wanted)
    assert "image/png" in wanted.output.read_text()


def test_a_forked_kernel_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"DeadKernelError.*\n(.*\n)*out of luck$"):
        run("import os\nos.write(2, b'out of luck\\n')\nos._exit(3)", tmp_path / "dying")


def test_kernels_end_with_the_process_that_asked_for_them(tmp_path: Path) -> None:
    mark = tmp_path / "process"
    waiting = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    write(tmp_path / "template.ipynb", [code(waiting)])
    script = (
        "from pathlib import Path\n"
        "from kdnotes.book.execution import Order, execute_notebook, preload\n"
        "here = Path.cwd()\n"
        "forked = preload(3)\n"
        "execute_notebook(Order(here / 'template.ipynb', here / 'out.ipynb', {}, {}, here, '',\n"
        "                       forked))"
    )
    asking = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert asking.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kernel = int(mark.read_text())
    server = psutil.Process(kernel).parent()
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    assert ends(kernel)
    assert server is not None
    assert ends(server.pid)
