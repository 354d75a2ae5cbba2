import os
import subprocess
import sys

import pytest

CODE = """
import resource
import timm
import torch
from fastmask.memory import keep_memory
print(keep_memory())
net = timm.create_model("resnet18").to(memory_format=torch.channels_last)
x = torch.randn(8, 3, 128, 128).contiguous(memory_format=torch.channels_last)
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**variables):
    done = subprocess.run([sys.executable, "-c", CODE], env={**os.environ, **variables}, capture_output=True, text=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="for glibc")
def test_a_step_uses_the_memory_of_the_one_before():
    kept, faults = run()
    left_alone, fresh = run(GLIBC_TUNABLES="glibc.malloc.check=0")
    assert (kept, left_alone) == (True, False)
    assert faults < fresh / 3
