"""The options of Puppet-CNN."""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from pocketcnn.numerics.odeint import check_solver
from pocketcnn.numerics.ring_index import check_seed

_MOST, _DEEPEST = 100, 10_000  # every pass takes the steps, and every level is a set of kernels
Generator = Literal["ode", "linear", "static", "stored"]


@dataclass(frozen=True)
class PuppetOptions:
    """The generator of the kernels, and what the complexity of an image decides."""

    size: int | float = 0.08
    """Parameters of a puppeteer: an integer, or a fraction in (0, 1] of its kernels' weights."""
    generator: Generator = "ode"
    """Motion of the state: along the ODE, on a straight line, or none; or stored: ordinary kernels."""
    solver: str = "euler"
    """Solver of the ODE: euler, midpoint, heun or rk4."""
    num_steps: int = 1
    """Steps of the solver from one kernel to the next."""
    horizon: float = 1.0
    """Time at which the last stage ends."""
    depth: Literal["entropy", "fixed"] = "entropy"
    """Number of blocks of a stage that an image passes: set by its entropy, or fixed: all."""
    depth_by: Literal["horizon", "step"] = "horizon"
    """Way to spare simple images blocks: "horizon", a stage reads its first kernels only; "step", as many, further apart."""
    start: Literal["fixed", "entropy"] = "fixed"
    """Start of the state: the same for all images, or set by their entropy."""
    measure: Literal["entropy", "variance", "edges", "features", "random"] = "entropy"
    """Measure of an image's complexity; features is the entropy of the first stage's input, random a hash, as a control."""
    levels: int = 4
    """Number of degrees of complexity."""
    min_depth: int | None = None
    """Blocks that the simplest images pass in each stage; None for half as many as the most complex ones."""
    max_depth: int | None = None
    """Blocks that the most complex images pass in each stage; None for all it has."""
    generate: Literal["all", "equal"] = "all"
    """Blocks to generate: "all" of a stage, or the "equal" ones after the first, which may change size and width."""
    read: Literal["numbers", "channels"] = "numbers"
    """Parts of the state that a kernel takes: single numbers from places all over it, or whole channels."""
    scope: Literal["net", "stage"] = "net"
    """One puppeteer for the net, or one for each stage."""
    seed: int = 0
    """Rebuilds the places of the state that each kernel reads; stored in the model file."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} {getattr(self, name)!r}; known: {', '.join(get_args(kind))}")
        check_solver(self.solver)
        check_seed(self.seed)
        check_size(self.size)
        depths = [depth for depth in (self.min_depth, self.max_depth) if depth is not None]
        if min(self.num_steps, self.levels, *depths) < 1:
            raise ValueError(
                f"num_steps, levels, min_depth and max_depth must be at least 1, got {self.num_steps}, {self.levels}, "
                f"{self.min_depth}, {self.max_depth}"
            )
        if max(self.num_steps, self.levels) > _MOST or max(depths, default=0) > _DEEPEST:
            raise ValueError(
                f"num_steps and levels may be at most {_MOST}, min_depth and max_depth {_DEEPEST:,}, got {self.num_steps}, "
                f"{self.levels}, {self.min_depth}, {self.max_depth}"
            )
        if len(depths) == 2 and depths[0] > depths[1]:
            raise ValueError(f"min_depth {self.min_depth} is more than max_depth {self.max_depth}")
        if not (self.horizon > 0 and math.isfinite(self.horizon)):
            raise ValueError(f"horizon must be a positive time, got {self.horizon}")

    @property
    def adapts(self) -> bool:
        """True if anything depends on the image."""
        return self.depth == "entropy" or (self.start == "entropy" and self.generator != "stored")

    def depth_of(self, level: int, blocks: int) -> int:
        """Number of a stage's blocks that an image of some level passes; never fewer at a higher level."""
        highest = blocks if self.max_depth is None else min(self.max_depth, blocks)
        if self.depth == "fixed" or self.levels == 1:
            return highest
        lowest = max(1, highest // 2) if self.min_depth is None else min(self.min_depth, highest)
        return lowest + round((highest - lowest) * level / (self.levels - 1))


def check_size(size: int | float) -> None:
    """Checks the number of stored parameters.

    Raises:
        ValueError: neither a fraction in (0, 1] nor an integer of at least 1 and below 2**31.
    """
    if isinstance(size, bool) or not (0 < size <= 1 if isinstance(size, float) else 1 <= size < 2**31):
        raise ValueError(f"size is a fraction in (0, 1] or a number of at least 1 and below 2**31, not {size}")
