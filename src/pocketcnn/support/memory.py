"""The machine's memory: how much there is, and a setting that keeps what is freed for the next arrays."""

import ctypes
import os
import sys
from pathlib import Path

from pocketcnn.errors import NotEnoughMemory

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


def machine_memory() -> int | None:
    """The memory of the machine, or of the container that it lends us, in bytes; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and (words := limit.read_text().strip()).isdigit():
        memory = min(memory, int(words))
    return memory


def require_memory(size_bytes: int, what: str, remedy: str) -> None:
    """Checks before an array is made that the machine's memory can hold it.

    The system promises memory that it does not have, and ends the process that uses it; so this cannot be left to a MemoryError.

    Args:
        size_bytes: length of the array.
        what: name of the array, for the message.
        remedy: end of the message: what the user can do.
    Raises:
        NotEnoughMemory: it cannot.
    """
    memory = machine_memory()
    if memory is not None and size_bytes > memory:
        raise NotEnoughMemory(
            f"{what}: {size_bytes / 1e9:,.1f} GB, this machine has {memory / 1e9:,.1f} GB in all; {remedy}"
        )
