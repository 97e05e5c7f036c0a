"""Setting the C library to keep freed memory for the next arrays."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
# The values to set; the second one where a version of glibc does not allow the first.
_SETTINGS = {_MMAP_THRESHOLD: (2**31 - 1, 2**25), _TRIM_THRESHOLD: (2**31 - 1,), _TOP_PAD: (2**28,)}


def keep_memory() -> bool:
    """Sets glibc to keep the memory of freed arrays, instead of returning it to the system after every operation.

    The system clears each page that it hands out. That takes a tenth of a training step of resnet20 on two cores, and more
    for smaller nets. The setting holds for the whole process, whose memory then never shrinks. Nothing changes if
    `MALLOC_` variables are set in the environment, or if the C library is not glibc.

    Returns:
        True if a setting changed.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = [any(mallopt(setting, value) == 1 for value in values) for setting, values in _SETTINGS.items()]
    return any(done)
