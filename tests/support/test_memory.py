"""Tests of keeping freed memory. It is a setting of the process, so each test starts a process of its own."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource
from pocketcnn.support.memory import keep_memory
changed = keep_memory()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**21)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(changed, faults())
"""


def run(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env={**environment, **variables}
    )
    changed, faults = done.stdout.split()
    return changed == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_an_array_gets_the_pages_of_the_one_before():
    changed, faults = run()
    if not changed:
        pytest.skip("another C library")
    assert faults < 2**21 * 8 / 4096 / 8  # 16 MB are 4,096 pages, or a few large ones


def test_the_environment_has_the_last_word():
    assert run(MALLOC_TOP_PAD_="0")[0] is False
