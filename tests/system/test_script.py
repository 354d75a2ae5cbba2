"""A script without a main guard, where loading processes would run it again, is told so before any starts."""

import subprocess
import sys

import pytest

from fastmask.system.script import unguarded_line

WORK = """
import multiprocessing
multiprocessing.set_start_method("{method}")
import torch
from fastmask.data.loaders import pick_workers
from fastmask.system.errors import UsageError

def work():
    return pick_workers(2, torch.device("cpu"))

try:
    {guard}
        print(work())
except UsageError as error:
    print(error)
"""


def printed(tmp_path, method, guard):
    script = tmp_path / "script.py"
    script.write_text(WORK.format(method=method, guard=guard))
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.strip(), script


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="needs the three start methods, and loading processes")
@pytest.mark.parametrize(
    ("method", "guard", "refused"),
    [
        ("spawn", "if True:", True),
        pytest.param("forkserver", "for _ in range(1):", True, marks=pytest.mark.slow),
        pytest.param("spawn", 'if __name__ == "__main__":', False, marks=pytest.mark.slow),
        pytest.param("fork", "if True:", False, marks=pytest.mark.slow),
    ],
)
def test_a_script_without_a_main_guard_is_refused_by_its_line(tmp_path, method, guard, refused):
    found, script = printed(tmp_path, method, guard)
    sentence = (
        f"{script}, line 13: the 2 loading processes (workers) import this script and would run it again; "
        'put its code below a line if __name__ == "__main__": or set workers=0.'
    )
    assert found == (sentence if refused else "2")


def test_python_c_and_a_guarded_program_have_nothing_to_run_again():
    assert unguarded_line() is None
    command = "from fastmask.system.script import unguarded_line; print(unguarded_line())"
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "None"
