"""Keeping freed memory for the next arrays."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
# What is asked for, and what is where a version of glibc does not allow that.
_SETTINGS = {_MMAP_THRESHOLD: (2**31 - 1, 2**25), _TRIM_THRESHOLD: (2**31 - 1,), _TOP_PAD: (2**28,)}


def keep_memory() -> bool:
    """Has glibc keep the memory of arrays that are freed, instead of giving it back to the system after every operation.

    A system clears the pages that it hands out, which takes a tenth of a training step of resnet20 on two cores and more of
    smaller nets. The setting holds for the whole process, which stays as large as it ever was. Where `MALLOC_` variables in the environment say what to do, and where the C
    library is another one, nothing is changed.

    Returns:
        Whether anything was changed.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = [any(mallopt(setting, value) == 1 for value in values) for setting, values in _SETTINGS.items()]
    return any(done)
