import os
import subprocess
import sys

import pytest

CODE = """
import os
import numpy as np
from fastmask.system.memory import keep_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

print(keep_memory())
before = resident()
blocks = [np.ones(6_000_000, np.float32) for _ in range(8)]
del blocks
print(resident() - before)
"""


def run(**variables):
    done = subprocess.run([sys.executable, "-c", CODE], env={**os.environ, **variables}, capture_output=True, text=True)
    kept, stayed = done.stdout.split()
    return kept == "True", int(stayed)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="for glibc")
def test_freed_memory_is_kept_unless_the_user_has_set_variables_of_malloc():
    kept, stayed = run()
    left_alone, gone = run(GLIBC_TUNABLES="glibc.malloc.check=0")
    assert (kept, left_alone) == (True, False)
    # eight blocks of 24 MB
    assert stayed > 180e6
    assert gone < 60e6
