"""Records by which the file of a method tells a compact net which convolution reads which kernel of which source."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """A convolution of the dense net, the kernel that it reads, and the factor of this kernel.

    `origin` names the source of the kernel: readings of one origin share the module that `source(origin, slots)` in the
    method's file builds. Called without arguments, this module returns the kernels of its origin by slot.
    """

    conv: str  # dotted name
    origin: Hashable
    slot: Any
    scale: float = 1.0
