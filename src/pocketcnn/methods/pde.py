"""The Global layer: where a net repeats a block, keep one and let a solver spread its features over the map.

The layer reads velocities and diffusivities off its input, and an advection-diffusion equation carries the features
along. A few steps of the solver reach as far as a few blocks, for the parameters of a few small convolutions.

Source: Kag & Saligrama, Condensing CNNs with Partial Differential Equations, CVPR 2022; the options follow Mukherjee's
re-implementation report. We differ from their code where it differs from their formula: a positive velocity carries
features towards larger coordinates, rows and columns both interact, and batch norm has its usual epsilon unless
`published_eps` asks for theirs. The solver, its order and its stability are `pocketcnn.numerics.advect_diffuse`'s.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Literal, get_args, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from pocketcnn import kernels
from pocketcnn.errors import UnstableStep
from pocketcnn.methods._blocks import (
    RUNS,
    condensed_sites,
    difference,
    elsewhere,
    is_block,
    kept_channels,
    names_of,
    neighbours,
    obstacle_to,
    structure,
)
from pocketcnn.methods._conv import LARGEST_KERNEL, check_images, fan_out
from pocketcnn.methods._leaf import AbstractLeaf
from pocketcnn.methods._method import Method, Range, Site
from pocketcnn.methods._norms import as_line, fold_, is_plain, remember_statistics
from pocketcnn.methods._passes import called_in_order
from pocketcnn.methods._sites import Ties
from pocketcnn.numerics.stencil import check_grid, courant, limit_velocity, perona_malik
from pocketcnn.support.modules import carried_by, is_watched

Velocity = Literal["depthwise", "conv", "identity", "residual", "zero"]
Diffusivity = Literal["depthwise", "conv", "constant", "residual", "perona_malik", "zero"]
Initial = Literal["identity", "residual"]
Equation = Literal["advection_diffusion", "diffusion", "advection"]
Boundary = Literal["periodic", "replicate", "reflect", "zero"]
Activation = Literal["relu", "none"]

_MOST_STEPS = 10_000


@dataclass(frozen=True)
class PdeOptions:
    """The equation, the source of its coefficients, and its solver."""

    velocity: Velocity | float = "depthwise"
    """Source of the velocity: a convolution, a residual block or nothing before its batch norm; or a constant."""
    diffusivity: Diffusivity | float = "depthwise"
    """Source of the diffusivity: as for velocity; constant is 1; perona_malik has no parameters; or another constant."""
    initial: Initial = "identity"
    """Start of the solver: the layer's input, or a residual block of it."""
    equation: Equation = "advection_diffusion"
    """Terms of the equation; diffusion leaves out the velocity, advection the diffusivity."""
    source: bool = True
    """Add the layer's input at every step."""
    shared_velocity: bool = False
    """Use one velocity for both axes."""
    num_steps: int = 5
    """Number of steps of the solver."""
    dt: float = 0.2
    """Length of a step in time."""
    dx: float = 1.0
    """Distance between pixels along the width."""
    dy: float = 1.0
    """Distance between pixels along the height."""
    boundary: Boundary = "periodic"
    """Continuation of the map beyond its border."""
    kernel_size: int | None = None
    """Extent of the coefficients' convolutions, odd; None keeps that of the replaced block."""
    bias: bool = False
    """Give those convolutions biases."""
    contrast: float = 2.0
    """Gradient, per pixel, at which the perona_malik diffusivity is 1/2."""
    velocity_activation: Activation = "relu"
    """Function after the velocity's batch norm; after relu features move towards larger coordinates only."""
    velocity_limit: float | None = None
    """Largest |u| dt/dx + |v| dt/dy allowed; faster velocities are shortened; None allows all, as published."""
    published_eps: bool = False
    """Give the coefficients' batch norms the channel count as epsilon, as the paper's code does."""
    last_stage: Literal["global", "drop"] = "global"
    """Replacement of the last run of blocks: a Global layer, or nothing, as in the paper."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.num_steps != int(self.num_steps):
            raise ValueError(f"num_steps must be a whole number of at least 1, got {self.num_steps}")
        if self.num_steps > _MOST_STEPS:
            raise ValueError(
                f"num_steps may be at most {_MOST_STEPS:,}, got {self.num_steps:,}: every pass takes them all"
            )
        check_grid(self.num_steps, self.dt, self.dx, self.dy, self.boundary)
        for name, kind in get_type_hints(type(self)).items():
            choices = [word for part in (kind, *get_args(kind)) for word in get_args(part) if isinstance(word, str)]
            value = getattr(self, name)
            constant = name in ("velocity", "diffusivity") and type(value) in (int, float) and math.isfinite(value)
            if choices and value not in choices and not constant:
                raise ValueError(f"no {name} {value!r}; known: {', '.join(choices)}{_OR_NUMBER.get(name, '')}")
        if self.kernel_size is not None and (self.kernel_size < 1 or self.kernel_size % 2 == 0):
            raise ValueError(f"kernel_size must be odd, so that a pixel has a centre, not {self.kernel_size}")
        if not isinstance(self.diffusivity, str) and not self.diffusivity >= 0:
            raise ValueError(
                f"diffusivity must not be negative, got {self.diffusivity}: the problem would be ill-posed"
            )
        if self.kernel_size is not None and self.kernel_size > LARGEST_KERNEL:
            raise ValueError(f"kernel_size may be at most {LARGEST_KERNEL}, not {self.kernel_size}")
        if not 0 < self.contrast < math.inf:
            raise ValueError(f"contrast must be positive and finite, got {self.contrast}")
        if self.velocity_limit is not None and not 0 < self.velocity_limit < math.inf:
            raise ValueError(f"velocity_limit must be positive, or None for no limit, not {self.velocity_limit}")
        if isinstance(self.velocity, str) or self.equation == "diffusion":
            return
        number = courant(self.velocity, self.velocity, self.dt, self.dx, self.dy)
        if min(number, self.velocity_limit or number) > 1:
            raise UnstableStep(
                f"|u| dt/dx + |v| dt/dy is {number:.4g}, past the limit 1; the largest dt allowed here is "
                f"{self.dt / number:.4g}"
            )


_OR_NUMBER = {"velocity": ", or a finite number", "diffusivity": ", or a finite number"}


class GlobalLayer(AbstractLeaf):
    """Solves an advection-diffusion equation whose coefficients are made from the layer's input.

    With h the input: u, v = act(norm(c(h))) and Dx, Dy = relu(norm(c(h))), where `velocity` and `diffusivity` name c;
    H[0] = initial(h), H[-1] = h, source f = h; the output is relu(norm(H[num_steps])).

    Args:
        channels: of the input and of the output.
        velocity: `"depthwise"` or `"conv"` (all channels mixed), a convolution each for u and v; `"residual"`, a residual
            block each; `"identity"`, the input itself; all with batch norm; `"zero"`; or a number, the constant u = v.
        diffusivity: `"depthwise"`, `"conv"`, `"residual"` as above; `"constant"` for 1; `"perona_malik"`, large on
            plains and small across edges; `"zero"`; or a number.
        initial: `"identity"` or `"residual"`, a residual block.
        equation: `"advection_diffusion"`; `"diffusion"`, without the velocity; `"advection"`, without the diffusivity.
        source: True for f = h, False for f = 0.
        shared_velocity: one velocity for both axes, v = u.
        num_steps: number of steps of the solver, at least 1.
        dt: length of a step in time.
        dx: distance between pixels along the width.
        dy: distance between pixels along the height.
        boundary: as in `pocketcnn.numerics.advect_diffuse`; the convolutions pad with zeros.
        kernel_size: of the convolutions and residual blocks, odd.
        bias: gives depthwise and full convolutions biases.
        contrast: of `perona_malik`.
        velocity_activation: `"relu"` or `"none"`.
        velocity_limit: a bound on |u| dt/dx + |v| dt/dy, kept by shortening velocities; None for none.
        published_eps: gives batch norms of velocity and diffusivity `channels` as epsilon.
        device: of the parameters.
        dtype: of the parameters.
    Raises:
        ValueError: an argument out of range.
        UnstableStep: a constant velocity at which the solver grows without bound; the message gives the largest `dt`.
    Shape: [batch, channels, height, width] to the same.
    Cost: the convolutions', and for the solver, per value of the map, 6 multiply-adds a step and 9 more.
    """

    condensed_by = "pde"
    why_not_dense = "it solves an equation whose coefficients are made of the image"

    def __init__(
        self,
        channels: int,
        *,
        velocity: Velocity | float = "depthwise",
        diffusivity: Diffusivity | float = "depthwise",
        initial: Initial = "identity",
        equation: Equation = "advection_diffusion",
        source: bool = True,
        shared_velocity: bool = False,
        num_steps: int = 5,
        dt: float = 0.2,
        dx: float = 1.0,
        dy: float = 1.0,
        boundary: Boundary = "periodic",
        kernel_size: int = 3,
        bias: bool = False,
        contrast: float = 2.0,
        velocity_activation: Activation = "relu",
        velocity_limit: float | None = None,
        published_eps: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels = channels
        self.options = PdeOptions(
            velocity, diffusivity, initial, equation, source, shared_velocity, num_steps, dt, dx, dy, boundary,
            kernel_size, bias, contrast, velocity_activation, velocity_limit, published_eps,
        )  # fmt: skip
        eps = float(channels) if published_eps else 1e-5
        made: dict[str, Any] = {"device": device, "dtype": dtype}

        def coefficient(kind: str | float) -> nn.Sequential | None:
            """Makes a convolution or block and its batch norm; None if the coefficient is constant or computed."""
            layers: dict[str, Any] = {
                "depthwise": lambda: _conv(channels, kernel_size, channels, bias, made),
                "conv": lambda: _conv(channels, kernel_size, 1, bias, made),
                "residual": lambda: ResidualBlock(channels, kernel_size, **made),
                "identity": nn.Identity,
            }
            if kind not in layers:
                return None
            return nn.Sequential(layers[str(kind)](), nn.BatchNorm2d(channels, eps=eps, **made))

        flows, spreads = equation != "diffusion", equation != "advection"
        self.velocity_x = coefficient(velocity) if flows else None
        self.velocity_y = coefficient(velocity) if flows and not shared_velocity else None
        self.diffusivity_x = coefficient(diffusivity) if spreads else None
        self.diffusivity_y = coefficient(diffusivity) if spreads else None
        self.initial = ResidualBlock(channels, kernel_size, **made) if initial == "residual" else None
        self.bn = nn.BatchNorm2d(channels, **made)

    def velocities(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "..."] | float, Float[Tensor, "..."] | float]:
        """Makes u and v for an input, each a number or of the input's shape."""
        options = self.options
        if options.equation == "diffusion" or options.velocity == "zero":
            return 0.0, 0.0
        if self.velocity_x is None:
            u = v = x.new_full((1, 1, 1, 1), float(options.velocity))
        else:
            u = self.velocity_x(x)
            v = u if self.velocity_y is None else self.velocity_y(x)
            if options.velocity_activation == "relu":
                u, v = F.relu(u), F.relu(v)
        if options.velocity_limit is not None:
            u, v = limit_velocity(u, v, options.velocity_limit, dt=options.dt, dx=options.dx, dy=options.dy)
        return u, v

    def diffusivities(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "..."] | float, Float[Tensor, "..."] | float]:
        """Makes Dx and Dy for an input, each a number or of the input's shape; never negative."""
        kind = self.options.diffusivity
        if self.options.equation == "advection" or kind == "zero":
            return 0.0, 0.0
        if self.diffusivity_x is not None and self.diffusivity_y is not None:
            return F.relu(self.diffusivity_x(x)), F.relu(self.diffusivity_y(x))
        if kind == "perona_malik":
            same = perona_malik(x, self.options.contrast, boundary=self.options.boundary)
            return same, same
        number = 1.0 if kind == "constant" else float(kind)
        return number, number

    def solve(
        self, x: Float[Tensor, "batch channels height width"], num_steps: int
    ) -> Float[Tensor, "batch channels height width"]:
        """Computes the field H after some steps.

        Raises:
            ValueError: the input has another number of channels than the layer, or too few pixels for the boundary.
        """
        check_images(x, self.channels)
        return self._solve(x, num_steps, self._convolutions(x), None)

    def _solve(self, x: Tensor, num_steps: int, parts: list[nn.Sequential], after: Tensor | None) -> Tensor:
        """Solves; compiled kernels run the convolutions in `parts`, and multiply and add `after` the steps, if given."""
        options = self.options
        initial = self.initial(x) if self.initial is not None else None if options.source else x
        settings: dict[str, Any] = {n: getattr(options, n) for n in ("dt", "dx", "dy", "boundary")}
        settings |= {"initial": initial, "num_steps": num_steps}
        if parts:
            makers = (self.velocity_x, self.velocity_y or self.velocity_x, self.diffusivity_x, self.diffusivity_y)
            uses = [-1 if maker is None else parts.index(maker) for maker in makers]
            # A coefficient that no convolution makes is a number, or made from the input in another way.
            flows, spreads = uses[0] < 0, uses[2] < 0
            coefficients = (
                *(self.velocities(x) if flows else (0.0, 0.0)), *(self.diffusivities(x) if spreads else (0.0, 0.0))
            )  # fmt: skip
            rectified = options.velocity_activation == "relu"
            formed = formed_by(parts, x)
            return kernels.advect_diffuse_formed(
                x, formed, uses, coefficients, rectified=rectified, after=after, **settings
            )
        return kernels.advect_diffuse(
            x if options.source else x.new_zeros(x.shape),
            *self.velocities(x),
            *self.diffusivities(x),
            previous=None if options.source else x,
            **settings,
        )

    def _convolutions(self, x: Tensor) -> list[nn.Sequential]:
        """Lists the depthwise convolutions and batch norms that make all coefficients, if compiled kernels can run them.

        The list is empty if they cannot, or if something watches the modules run.
        """
        made = (self.velocity_x, self.velocity_y, self.diffusivity_x, self.diffusivity_y)
        parts = [part for part in made if part is not None]
        options = self.options
        # While a net is exported, nothing may depend on the batch's values or size.
        whole = options.source and options.velocity_limit is None and kernels.compiled(x) and len(x)
        if not whole or _has_any_global_hook() or not all(map(_is_formed, parts)):
            return []
        alike = all(part[0].weight.dtype == x.dtype for part in parts)
        return parts if alike or torch.is_autocast_enabled(x.device.type) else []

    def fold_norm_(self) -> None:
        """Folds the batch norms of coefficients and residual blocks; the last norm follows the solver and stays."""
        made = (self.velocity_x, self.velocity_y, self.diffusivity_x, self.diffusivity_y)
        pairs = [(part[0], part[1]) for part in made if type(part) is nn.Sequential and len(part) == 2]
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        for conv, norm in pairs:
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and not (carried_by(conv) or carried_by(norm)):
                fold_(conv, norm)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        check_images(x, self.channels)
        parts, num_steps = self._convolutions(x), self.options.num_steps
        if parts and not torch.is_grad_enabled() and not self.bn.training and is_plain(self.bn):
            return self._solve(x, num_steps, parts, as_line(self.bn))
        return F.relu(self.bn(self._solve(x, num_steps, parts, None)))

    def extra_macs(self, x: Tensor, y: Tensor) -> dict[str, int]:
        """Counts the solver's: per value 6 multiply-adds a step and 9 for the stencil's weights; and Sobel's 8."""
        macs = {"advect_diffuse": (6 * self.options.num_steps + 9) * y.numel()}
        if self.options.diffusivity == "perona_malik" and self.options.equation != "advection":
            macs["perona_malik"] = 8 * y.numel()
        return macs

    def extra_repr(self) -> str:
        always = ("velocity", "diffusivity", "num_steps", "dt", "boundary")
        never = ("kernel_size", "bias", "last_stage")  # shown by the convolutions, or no option of the layer
        shown = {field.name: getattr(self.options, field.name) for field in fields(PdeOptions)}
        changed = [n for n, v in shown.items() if n not in never and v != getattr(PdeOptions, n)]
        return ", ".join([str(self.channels), *(f"{n}={shown[n]}" for n in shown if n in always or n in changed)])


def _is_formed(part: nn.Module) -> bool:
    """Tells whether `formed_by` can read a convolution and its batch norm, and nothing watches them run.

    The convolution must be depthwise and 3x3, and keep the image's size by padding with zeros; the norm may be folded.
    """
    if type(part) is not nn.Sequential or len(part) != 2 or type(part[0]) is not nn.Conv2d:
        return False
    conv, norm = part[0], part[1]
    ones = (conv.padding, conv.stride, conv.dilation)
    depthwise = conv.kernel_size == (3, 3) and conv.groups == conv.in_channels == conv.out_channels
    plain = depthwise and ones == ((1, 1),) * 3 and conv.padding_mode == "zeros"
    return plain and (type(norm) is nn.Identity or is_plain(norm)) and not any(map(is_watched, (part, conv, norm)))


def formed_by(
    parts: Sequence[nn.Sequential], x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "kernels 11 channels"]:
    """Packs depthwise convolutions and their batch norms as `pocketcnn.numerics.advect_diffuse_formed` takes them.

    Batch norms in training mode use the statistics of the convolved `x`, and update their running statistics.

    Raises:
        ValueError: a batch norm in training mode with only one value a channel.
    """
    convs: list[Any] = [part[0] for part in parts]
    norms: list[Any] = [part[1] for part in parts]
    weights = torch.stack([conv.weight.flatten(1).T for conv in convs])
    learning = [type(norm) is nn.BatchNorm2d and norm.training for norm in norms]
    if any(learning):
        count = x.numel() // x.shape[1]
        if count == 1:
            raise ValueError(
                f"batch norm needs more than one number a channel to learn from, the input is {list(x.shape)}"
            )
        means, variances = kernels.depthwise_moments(x, weights)
    rows = []
    for i, (conv, norm, learns) in enumerate(zip(convs, norms, learning, strict=True)):
        mean = variance = None
        if learns:
            mean, variance = means[i] if conv.bias is None else means[i] + conv.bias, variances[i]
            remember_statistics(norm, mean.detach(), variance.detach() * (count / (count - 1)))
        if isinstance(norm, nn.Identity):
            shift = torch.zeros_like(weights[0, 0]) if conv.bias is None else conv.bias
            rows.append(torch.stack([torch.ones_like(shift), shift]))
        else:
            rows.append(as_line(norm, conv.bias, mean, variance))
    return torch.cat([weights, torch.stack(rows)], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norms around a shortcut, as in a residual net's basic block."""

    def __init__(self, channels: int, kernel_size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.conv1 = _conv(channels, kernel_size, 1, False, made)
        self.bn1 = nn.BatchNorm2d(channels, **made)
        self.conv2 = _conv(channels, kernel_size, 1, False, made)
        self.bn2 = nn.BatchNorm2d(channels, **made)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


def _conv(channels: int, kernel_size: int, groups: int, bias: bool, made: dict[str, Any]) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias, **made)
    nn.init.normal_(conv.weight, std=(2 / fan_out(tuple(conv.weight.shape), groups)) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


@dataclass(frozen=True)
class Run:
    """Facts of a run of equal blocks that the layer replacing them needs."""

    channels: int
    kernel_size: int
    last: bool = False  # True for the last run of the net


def sites(model: nn.Module, options: PdeOptions) -> list[Site]:
    """Lists the runs of equal blocks in each `nn.Sequential`; one layer replaces two or more blocks.

    Blocks of one type that follow each other form one stage or several: a block that changes stride or width begins a new
    one. The first block of a stage is kept.
    """
    ties = Ties.of(model)
    found = [site for prefixes, blocks in neighbours(model) for site in _sites(prefixes, blocks, ties)]
    found = found or elsewhere(model)
    runs = [number for number, site in enumerate(found) if site.possible]
    if runs:
        last = found[runs[-1]]
        found[runs[-1]] = replace(last, detail=replace(last.detail, last=True))
    return called_in_order(model, found)


def _sites(prefixes: Sequence[str], blocks: Sequence[tuple[str, nn.Module]], ties: Ties) -> Iterator[Site]:
    """Lists the runs among neighbours of one type."""
    if not is_block(blocks[0][1]):
        yield from condensed_sites(prefixes, blocks, GlobalLayer)
        return
    runs = [list(run) for _, run in groupby(blocks, lambda named: structure(named[1]))]
    for number, run in enumerate(runs):
        replaced = run if number else run[1:]
        if len(run) == 1 and number < len(runs) - 1:
            continue  # it begins a stage: the blocks after it differ in stride or width
        name, first = (replaced or run)[0]
        modules = [block for _, block in replaced]
        rest = tuple((f"{prefixes[0]}{other}", block) for other, block in replaced[1:])
        detail, obstacle = None, obstacle_to(modules, len(prefixes), ties)
        if len(replaced) < 2:
            obstacle = (
                f"{len(replaced) or 'no'} equal block{'' if len(replaced) == 1 else 's'} after the first; it takes 2"
            )
            if number:
                obstacle += f" (the one before differs in {difference(runs[number - 1][-1][1], first)})"
        elif not obstacle:
            detail, obstacle = _run_of(first)
        words = f"{len(replaced) or 1} x {type(first).__name__}"
        yield Site(names_of(prefixes, name), first, obstacle, not obstacle, rest, words, detail)


def _run_of(block: nn.Module) -> tuple[Run | None, str]:
    """Collects the facts for a layer that replaces blocks like this one; or says why there can be none."""
    channels, problem = kept_channels(block)
    if problem:
        return None, problem
    kernel_size = max(max(module.kernel_size) for module in block.modules() if isinstance(module, nn.Conv2d))
    return Run(channels, kernel_size + 1 - kernel_size % 2), ""


def build(sites: Sequence[Site], options: PdeOptions) -> dict[str, nn.Module | None]:
    """Builds a Global layer for each run; None for the last run with `last_stage="drop"`."""
    built: dict[str, nn.Module | None] = {}
    settings = {field.name: getattr(options, field.name) for field in fields(options) if field.name != "last_stage"}
    for site in sites:
        weight = next(site.module.parameters())
        kernel_size = options.kernel_size or site.detail.kernel_size
        made = {**settings, "kernel_size": kernel_size, "device": weight.device, "dtype": weight.dtype}
        dropped = site.detail.last and options.last_stage == "drop"
        built[site.name] = None if dropped else GlobalLayer(site.detail.channels, **made)
    return built


METHOD = Method(
    name="pde",
    summary="an advection-diffusion solver in place of repeated blocks",
    source="Kag & Saligrama, Condensing CNNs with Partial Differential Equations, CVPR 2022",
    options=PdeOptions,
    sites=sites,
    build=build,
    places=RUNS,
    searched={
        "velocity": ("depthwise", "identity"),
        "diffusivity": ("depthwise", "constant", "perona_malik"),
        "num_steps": Range(1, 8),
        "last_stage": ("global", "drop"),
    },
)
