import os
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from fastmask.memory import keep_memory
print(keep_memory())

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(2):
    before = faults()
    torch.zeros(50_000_000)
print(faults() - before)
"""


def run(**variables):
    done = subprocess.run([sys.executable, "-c", CODE], env={**os.environ, **variables}, capture_output=True, text=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="for glibc")
def test_freed_memory_is_used_again_without_asking_the_system():
    # 200 MB are 49,000 pages of 4 kB
    kept, faults = run()
    assert kept
    assert faults < 1000
    left_alone, fresh = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not left_alone
    assert fresh > faults
