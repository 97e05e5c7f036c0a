"""Puppet-CNN: a small differential equation makes the kernels along the depth; the image's entropy sets how deep it goes.

The puppeteer holds one state, shaped like a kernel, and what moves it: dP/dt = G(P). Every convolution of the stages
reads its kernel off the state at the time its layer is reached, from places and with signs that a seed picks.
How complex an image is sets how many blocks of each stage it passes, and, if wanted, where the state starts.

Source: Puppet-CNN: Input-Adaptive Convolutional Networks Using Ordinary Differential Equations. There is no public code,
and much is left open there; what we chose: G, the reading of a kernel, the map from entropy to depth (the share of the
calibration images that are simpler), and batches of mixed depth, in which each image gets what it would get alone.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import kernels
from pocketcnn.methods._blocks import (
    elsewhere,
    is_block,
    kept_channels,
    names_of,
    neighbours,
    obstacle_to,
    owners_of_parameters,
    structure,
)
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments, fan_out
from pocketcnn.methods._gauge import Alike, Calls, Gauge, Held, Unseen, tracing
from pocketcnn.methods._method import Method, Range, Site
from pocketcnn.numerics.dynamic_conv import accumulation_dtype
from pocketcnn.numerics.odeint import check_solver, odeint
from pocketcnn.numerics.ring_index import channel_indices, check_seed
from pocketcnn.support.modules import learning

Generator = Literal["ode", "linear", "static", "stored"]
_FIT_STEPS, _FIT_RATE = 300, 0.3  # of the fit to trained kernels; the rate in units of the state's deviation


@dataclass(frozen=True)
class PuppetOptions:
    """What makes the kernels, and what the complexity of an image decides."""

    size: int | float = 0.08
    """Numbers of a puppeteer: an integer, or a fraction in (0, 1] of its kernels' numbers."""
    generator: Generator = "ode"
    """How the state moves: along the ODE, on a straight line, not at all; or stored: ordinary kernels."""
    solver: str = "euler"
    """Of the ODE: euler, midpoint, heun or rk4."""
    num_steps: int = 1
    """Steps of the solver from one kernel to the next."""
    horizon: float = 1.0
    """The time at which the last stage ends."""
    depth: Literal["entropy", "fixed"] = "entropy"
    """Whether the image sets how many blocks of a stage it passes, or all images pass all."""
    depth_by: Literal["horizon", "step"] = "horizon"
    """How a simple image is spared blocks: each stage reads only its first kernels, or as many at longer steps."""
    start: Literal["fixed", "entropy"] = "fixed"
    """Whether the state starts the same for all images, or where their complexity puts it."""
    measure: Literal["entropy", "variance", "edges", "features"] = "entropy"
    """What is called complex; features is the entropy of what the first stage is given."""
    levels: int = 4
    """How many degrees of complexity are told apart."""
    min_depth: int | None = None
    """Blocks that the simplest images pass in each stage; None for half of those that the most complex ones pass."""
    max_depth: int | None = None
    """Blocks that the most complex images pass in each stage; None for all it has."""
    generate: Literal["all", "equal"] = "all"
    """Whether the first block of a stage, which may change size and width, is generated too."""
    read: Literal["numbers", "channels"] = "numbers"
    """Whether a kernel takes single numbers of the state, from places all over it, or whole channels."""
    scope: Literal["net", "stage"] = "net"
    """Whether one puppeteer serves the net, or each stage has its own."""
    seed: int = 0
    """Rebuilds which places of the state each kernel reads; stored in the model file."""

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
        if len(depths) == 2 and depths[0] > depths[1]:
            raise ValueError(f"min_depth {self.min_depth} is more than max_depth {self.max_depth}")
        if not (self.horizon > 0 and math.isfinite(self.horizon)):
            raise ValueError(f"horizon must be a positive time, got {self.horizon}")

    @property
    def adapts(self) -> bool:
        """Whether anything depends on the image."""
        return self.depth == "entropy" or (self.start == "entropy" and self.generator != "stored")

    def depth_of(self, level: int, blocks: int) -> int:
        """How many of a stage's blocks an image of some level passes; never fewer at a higher level."""
        highest = blocks if self.max_depth is None else min(self.max_depth, blocks)
        if self.depth == "fixed" or self.levels == 1:
            return highest
        lowest = max(1, highest // 2) if self.min_depth is None else min(self.min_depth, highest)
        return lowest + round((highest - lowest) * level / (self.levels - 1))


def check_size(size: int | float) -> None:
    """Checks how many numbers are stored.

    Raises:
        ValueError: neither a fraction in (0, 1] nor a number of at least 1.
    """
    if isinstance(size, bool) or not (0 < size <= 1 if isinstance(size, float) else size >= 1):
        raise ValueError(f"size is a fraction in (0, 1] or a number of at least 1, not {size}")


Shape = tuple[int, ...]
Slot = tuple[int, int, int]  # which stage, which of its blocks, which of the block's kernels


class Puppeteer(nn.Module):
    """The state that all kernels are read off, and what moves it along the depth.

    The state P is [rows, columns, kernel_height, kernel_width], stored as a matrix. It moves by

        dP/dt = G(P) = tanh(A P) B,

    A mixing its rows and B its columns, from t = 0 to `horizon`. Stages share the time equally, so do the blocks of a
    stage and the kernels of a block, which are read one after the other. Each is scaled so that it starts with its
    Kaiming fan-out variance, as in a plain net.

    Args:
        stages: for each stage and each of its blocks the shapes of the kernels, [out_channels, in_channels / groups,
            kernel_height, kernel_width].
        groups: of each kernel's convolution, nested in the same way; 1 for all when not given.
        device: of the parameters; `dtype` is their type.
        dtype: of the parameters.
        **options: fields of `PuppetOptions`.
    Raises:
        ValueError: no kernels, or an option out of range.
    """

    indices: Tensor
    signs: Tensor
    scales: Tensor

    def __init__(
        self,
        stages: Sequence[Sequence[Sequence[Shape]]],
        *,
        groups: Sequence[Sequence[Sequence[int]]] | None = None,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = PuppetOptions(**options)
        if self.options.generator == "stored":
            raise ValueError('there is nothing to generate with generator="stored"')
        self.stages = [[[tuple(shape) for shape in block] for block in stage] for stage in stages]
        self.slots = _numbered(self.stages)
        if not self.slots:
            raise ValueError("a puppeteer needs the shape of at least one kernel")
        counts = _numbered(groups) if groups is not None else dict.fromkeys(self.slots, 1)
        self.sizes = {slot: math.prod(shape) for slot, shape in self.slots.items()}
        self.stds = {slot: (2 / fan_out(shape, counts[slot])) ** 0.5 for slot, shape in self.slots.items()}
        total = sum(self.sizes.values())
        # The state is stored in the size of a typical kernel's numbers, so that it takes steps like a plain net's.
        self.std = (sum(n * self.stds[slot] ** 2 for slot, n in self.sizes.items()) / total) ** 0.5
        self.rows, self.columns, *self.kernel_size = self.state_shape = self._state_shape(total)
        made = {"device": device, "dtype": dtype}
        self.state = nn.Parameter(torch.empty(self.rows, self.columns * math.prod(self.kernel_size), **made))
        moves = self.options.generator != "static" and len(self.slots) > 1
        self.mix_rows = nn.Parameter(torch.empty(self.rows, self.rows, **made)) if moves else None
        self.mix_columns = nn.Parameter(torch.empty(self.columns, self.columns, **made)) if moves else None
        self.gain = nn.Parameter(torch.empty(self.rows, **made)) if self.options.start == "entropy" else None
        # Rebuilt from the seed, hence never in a file.
        self.register_buffer("indices", torch.empty(total, device=device, dtype=torch.int32), persistent=False)
        self.register_buffer("signs", torch.empty(total, device=device, dtype=torch.int8), persistent=False)
        paths = self.options.levels if self.options.depth_by == "step" else 1
        self.register_buffer("scales", torch.empty(paths, len(self.slots), device=device, dtype=dtype))
        self.kept = Kept()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws state and field anew from torch's random numbers, and rebuilds from the seed where kernels are read."""
        nn.init.normal_(self.state, std=self.std)
        for mix in (self.mix_rows, self.mix_columns):
            if mix is not None:
                nn.init.normal_(mix, std=len(mix) ** -0.5)
        if self.gain is not None:
            nn.init.zeros_(self.gain)
        if self.state.is_meta:
            return
        seed = self.options.seed
        if self.options.read == "channels":
            indices, signs = channel_indices(list(self.slots.values()), self.state_shape, seed=seed)
        else:
            indices, signs = kernels.ring_indices(list(self.sizes.values()), math.prod(self.state_shape), seed=seed)
        self.indices.copy_(indices)
        self.signs.copy_(signs)
        with torch.no_grad():
            self.scales.fill_(1)
            for path in range(len(self.scales)):
                made = self._generate(None, path)
                stds = [made[slot].std(correction=0) / self.stds[slot] if slot in made else 1.0 for slot in self.slots]
                self.scales[path] = 1 / torch.tensor(stds)

    def key(self, level: int) -> tuple[float | None, int]:
        """What the kernels of a level depend on: where the state starts, and which path it takes from there."""
        start = (level + 0.5) / self.options.levels if self.gain is not None else None
        return start, min(level, len(self.scales) - 1)

    def kernels(self, level: int) -> Mapping[Slot, Tensor]:
        """The kernels of one level, by (stage, block, number in the block), each [out_channels, in_channels // groups,
        kernel_height, kernel_width].

        Without gradients in evaluation mode they are generated once and kept until the stored numbers change. A change
        that goes past torch's own counting (`parameter.data.mul_(2)`) is not noticed; `eval()` forgets what was kept.
        """
        key = self.key(level)
        if self.training or torch.is_grad_enabled() or tracing() or self.state.is_meta:
            return self._generate(*key)
        return self.kept.get(key, [*self.parameters(), *self.buffers()], lambda: self._generate(*key))

    def trajectory(self, level: int) -> list[Tensor]:
        """The state where the kernels of one level are read, in order: matrices [rows, columns * kernel_height *
        kernel_width], in units of the state's standard deviation at initialisation."""
        start, path = self.key(level)
        return list(self._states(start, list(self._times(path).values())))

    def train(self, mode: bool = True) -> "Puppeteer":
        self.kept.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        options = self.options
        state = "x".join(map(str, self.state_shape))
        return f"{state}, {len(self.slots)} kernels, generator={options.generator!r}, solver={options.solver!r}"

    def _state_shape(self, total: int) -> tuple[int, int, int, int]:
        """As square as can be, state and field together of about the size asked for."""
        height, width = (max(shape[axis] for shape in self.slots.values()) for axis in (2, 3))
        size = self.options.size
        numbers = size * total if isinstance(size, float) else size
        field_numbers = 2 if self.options.generator != "static" else 0
        side = max(1, round((numbers / (height * width + field_numbers)) ** 0.5))
        return side, side, height, width

    def _times(self, path: int) -> dict[Slot, float]:
        """When each kernel is read."""
        level = path if len(self.scales) > 1 else self.options.levels - 1
        depths = [self.options.depth_of(level, len(stage)) for stage in self.stages]
        unit = self.options.horizon / len(self.stages)
        # Stage s lasts from time s to s + 1; within it blocks, and within a block its kernels, divide the time.
        return {
            (s, b, k): unit * (s + (b + k / len(self.stages[s][b])) / depths[s])
            for s, b, k in self.slots
            if b < depths[s]
        }

    def _generate(self, start: float | None, path: int) -> dict[Slot, Tensor]:
        device = self.state.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else contextlib.nullcontext():
            times = self._times(path)
            states = self._states(start, list(times.values()))
            scales = dict(zip(self.slots, self.scales[path], strict=True))
            windows = dict(zip(self.slots, itertools.accumulate(self.sizes.values(), initial=0), strict=False))
            made = {}
            for slot, state in zip(times, states, strict=True):
                window = slice(windows[slot], windows[slot] + self.sizes[slot])
                flat = kernels.ring_kernel(state.flatten(), self.indices[window], self.signs[window], 1.0)
                made[slot] = (flat * scales[slot]).view(self.slots[slot]).to(self.state.dtype)
            return made

    def _states(self, start: float | None, times: Sequence[float]) -> Tensor | list[Tensor]:
        """The state at the times, in units of its standard deviation at the start."""
        state = self.state.to(accumulation_dtype(self.state)) / self.std
        if start is not None and self.gain is not None:
            state = state * (1 + start * self.gain[:, None])
        if self.mix_rows is None:
            return [state] * len(times)
        if self.options.generator == "linear":
            slope = self._slope(0.0, state)
            return [state + time * slope for time in times]
        steps = self.options.num_steps
        fine = [a + (b - a) * i / steps for a, b in itertools.pairwise(times) for i in range(steps)] + [times[-1]]
        return odeint(self._slope, state, fine, solver=self.options.solver)[::steps]

    def _slope(self, time: float, state: Tensor) -> Tensor:
        """G(P) = tanh(A P) B."""
        rows, columns = (mix.to(state.dtype) for mix in (self.mix_rows, self.mix_columns) if mix is not None)
        mixed = torch.tanh(rows @ state).view(self.rows, self.columns, -1)
        # One product for all rows and places within a kernel: many small ones are six times slower.
        flat = mixed.transpose(1, 2).reshape(-1, self.columns) @ columns
        return flat.view(self.rows, -1, self.columns).transpose(1, 2).reshape_as(state)


def _numbered(stages: Any) -> dict[Slot, Any]:
    return {
        (s, b, k): value
        for s, stage in enumerate(stages)
        for b, block in enumerate(stage)
        for k, value in enumerate(block)
    }


class Kept:
    """What was made of some numbers, as long as they stay what they were. Copies of a net start without."""

    def __init__(self) -> None:
        self._stamp: Any = None
        self._made: dict[Any, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        return Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()

    def clear(self) -> None:
        """Forgets everything."""
        self._stamp, self._made = None, {}

    def get(self, key: Any, numbers: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What was made under a key, made now if the numbers have changed since."""
        stamp = [(n.data_ptr(), n.dtype, 0 if n.is_inference() else n._version) for n in numbers]
        if stamp != self._stamp:
            self._stamp, self._made = stamp, {}
        made = self._made  # another thread may begin anew meanwhile
        if key not in made:
            made[key] = make()
        return made[key]


class Part(NamedTuple):
    """Neighbouring images of a batch that share their kernels."""

    kernels: Mapping[Slot, Tensor]
    images: int


class Mixed(NamedTuple):
    """A batch whose values cannot be looked at: every image's share in each of some sets of kernels, one of them 1."""

    kernels: list[Mapping[Slot, Tensor]]
    weights: Tensor


class GeneratedConv2d(AbstractConv2d):
    """A convolution inside of a `PuppetStage`, whose kernels the stage holds out to it."""

    def __init__(
        self, *arguments: Any, puppeteer: Puppeteer, slot: Slot, held: Held, bias: Any, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.bias = bias
        self.slot, self._held = slot, held
        self._puppeteer = (puppeteer,)  # in a tuple: it is the stage's, and registered there

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """The kernel that the stage holds out; called by itself, that of the highest level."""
        given = self._held.get()
        if isinstance(given, list):
            return given[0].kernels[self.slot]
        puppeteer = self._puppeteer[0]
        return puppeteer.kernels(puppeteer.options.levels - 1)[self.slot]

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """The puppeteer's."""
        return list(self._puppeteer[0].parameters())

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        given = self._held.get()
        x, padding = self.pad(x)
        how = (self.stride, padding, self.dilation, self.groups)
        if isinstance(given, Mixed):
            experts = torch.stack([made[self.slot] for made in given.kernels])
            y = kernels.condconv2d(
                x, given.weights.to(x.dtype), experts, stride=how[0], padding=how[1], dilation=how[2], groups=how[3]
            )
            return y if self.bias is None else y + self.bias[:, None, None]
        if given is None or len(given) == 1:
            return F.conv2d(x, self.dense_weight(), self.bias, *how)
        parts = zip(x.split([part.images for part in given]), given, strict=True)
        return torch.cat([F.conv2d(rows, part.kernels[self.slot], self.bias, *how) for rows, part in parts])


class PuppetStage(nn.Module):
    """Blocks that follow each other, with generated kernels, of which each image passes as many as it is complex.

    In training mode a block sees all images that reach it at once, so that its batch norm does; in evaluation mode
    images of different kernels go through one after the other. While a net is traced (`torch.compile`, `torch.export`) all images pass all
    blocks and those that should have stopped keep what they had: the same result without the saving. `torch.compile` of
    a net in training mode breaks off to look at the levels instead, for batch norm's sake.

    Args:
        blocks: modules from a map to a map; all but the first keep its size and channels. They become part of the stage;
            their convolutions larger than 1x1 are replaced.
        puppeteer: makes the kernels; None makes one for this stage, or keeps the ordinary kernels with
            `generator="stored"`.
        number: which of the puppeteer's stages this is.
        **options: fields of `PuppetOptions`; a puppeteer has its own.
    Raises:
        ValueError: no blocks, an option out of range, or a puppeteer made for other blocks.
    Shape: that of the blocks.
    """

    condensed_by = "puppet"

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        puppeteer: Puppeteer | None = None,
        *,
        number: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if puppeteer is not None and options:
            raise ValueError(f"the puppeteer has its options; leave out {', '.join(options)}")
        self.options = puppeteer.options if puppeteer is not None else PuppetOptions(**options)
        blocks = list(blocks)[: self.options.max_depth]
        if not blocks:
            raise ValueError("a stage needs at least one block")
        shapes, groups = kernel_shapes(blocks), kernel_groups(blocks)
        if puppeteer is None and self.options.generator != "stored":
            weight = next(blocks[0].parameters())
            puppeteer = Puppeteer([shapes], groups=[groups], device=weight.device, dtype=weight.dtype, **options)
        if puppeteer is not None and puppeteer.stages[number : number + 1] != [shapes]:
            raise ValueError(f"stage {number} of the puppeteer has other kernels than these blocks")
        self.number = number
        self.puppeteer = puppeteer
        self.gauge: Gauge | None = None  # what decides which image passes how many blocks; without, all pass all
        self.calls = Calls()  # the net's own, once the stage is part of one
        self._held = Held()
        self.blocks = nn.ModuleList(blocks)
        if puppeteer is not None:
            for b, block in enumerate(blocks):
                for k, (names, conv) in enumerate(_kernels_of(block)):
                    arguments = conv_arguments(conv)
                    del arguments["device"], arguments["dtype"]
                    generated = GeneratedConv2d(
                        **{**arguments, "bias": conv.bias}, puppeteer=puppeteer, slot=(number, b, k), held=self._held
                    )
                    _put(block, names, generated.train(conv.training))

    @property
    def needs_entropy(self) -> bool:
        """Whether what an ordinary net would have to equal depends on the image."""
        return self.gauge is not None

    @property
    def why_not_dense(self) -> str:
        """Why no ordinary net equals the stage; empty where one does."""
        if not self.needs_entropy:
            return ""
        return "how deep it goes depends on the image; materialize(net, entropy=...) gives the net for one entropy, in bits"

    def depth_of(self, level: int) -> int:
        """How many blocks an image of that level passes."""
        return self.options.depth_of(level, len(self.blocks))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out out_height out_width"]:
        found = self.calls.seen(x)
        if isinstance(found, Alike):
            return self._straight(x, self.options.levels - 1 if found.level is None else found.level, found.made)
        if isinstance(found, Unseen):
            return self._masked(x, found)
        x = _rows(x, found.order)
        # In training all groups go together, for batch norm; else only where they share their kernels, for then nothing
        # has to be put together after each convolution.
        together = self.training or len({self._key(level) for level, _ in found.groups}) == 1
        waves = [found.groups] if together else [[group] for group in found.groups]
        passed = []
        for wave, rows in zip(waves, x.split([sum(count for _, count in wave) for wave in waves]), strict=True):
            passed += self._pass(rows, wave, found.made)
        return _rows(torch.cat(passed), found.back)

    def level_of(self, entropy: float | None = None) -> int:
        """The level of images of some entropy; the highest where nothing depends on it, or none is given."""
        if self.gauge is None or entropy is None:
            return self.options.levels - 1
        value = torch.tensor(float(entropy), device=self.gauge.quantiles.device)
        return int(self.gauge.level_of(self.gauge.share_of(value)))

    def dense(self, entropy: float | None = None) -> nn.Sequential:
        """The ordinary blocks that the stage equals, for images of some entropy where that matters."""
        level = self.level_of(entropy)
        stage = copy.deepcopy(self)
        blocks = stage.blocks[: self.depth_of(level)]
        stage._held.push(stage._parts([(level, 1)], {}))
        for block in blocks:
            generated: dict[GeneratedConv2d, list[str]] = {}
            for name, module in block.named_modules(remove_duplicate=False):
                if isinstance(module, GeneratedConv2d):
                    generated.setdefault(module, []).append(name)
            for conv, names in generated.items():
                _put(block, names, conv.dense())
        sequence = nn.Sequential(*blocks)
        sequence.training = self.training
        return sequence

    def extra_repr(self) -> str:
        return f"min_depth={self.depth_of(0)}, max_depth={self.depth_of(self.options.levels - 1)}"

    def _straight(self, x: Tensor, level: int, made: dict[Any, Any]) -> Tensor:
        """All images through the blocks of one level."""
        depth = self.depth_of(level)
        parts = self._parts([(level, 1)], made)
        for block in self.blocks[:depth]:
            x = self._run(block, x, parts)
        return self._with_idle(x, depth)

    def _pass(self, x: Tensor, groups: Sequence[tuple[int, int]], made: dict[Any, Any]) -> list[Tensor]:
        """Sends images through the blocks that are theirs, groups of higher levels first."""
        finished: list[Tensor] = []
        for position, block in enumerate(self.blocks):
            active = [(level, count) for level, count in groups if self.depth_of(level) > position]
            count = sum(count for _, count in active)
            # Nobody is left, or too little for batch norm: a single number a channel.
            if position and (count == 0 or (self.training and count * x[0, 0].numel() == 1)):
                return [self._with_idle(x, position), *finished]
            if count < len(x):
                finished.insert(0, x[count:])
                x = x[:count]
            x = self._run(block, x, self._parts(active, made))
        return [x, *finished]

    def _with_idle(self, x: Tensor, depth: int) -> Tensor:
        """In training, lets numbers that no image reached have gradients of 0: every device must have the same ones."""
        idle = [p for block in self.blocks[depth:] for p in block.parameters() if p.requires_grad]
        if not (idle and self.training):
            return x
        if self.puppeteer is not None:
            idle += self.puppeteer.parameters()
        return x + 0 * torch.stack([p.sum() for p in idle]).sum()

    def _masked(self, x: Tensor, found: Unseen) -> Tensor:
        """All images through all blocks; those whose depth is reached keep what they have."""
        levels = range(self.options.levels)
        depths = torch.tensor([self.depth_of(level) for level in levels], device=x.device)[found.levels]
        for position, block in enumerate(self.blocks):
            reached = [level for level in levels if self.depth_of(level) > position]
            parts = self._parts([(level, 1) for level in reached], found.made)
            given: list[Part] | Mixed = parts
            if len(parts) > 1:
                places = {key: place for place, key in enumerate(dict.fromkeys(map(self._key, reached)))}
                # What becomes of images that should have stopped is of no interest.
                place = torch.tensor([places.get(self._key(level), 0) for level in levels], device=x.device)
                given = Mixed([part.kernels for part in parts], F.one_hot(place[found.levels], len(places)))
            y = self._run(block, x, given)
            x = torch.where((depths > position)[:, None, None, None], y, x) if position else y
        return x

    def _run(self, block: nn.Module, x: Tensor, given: "list[Part] | Mixed") -> Tensor:
        self._held.push(given)
        try:
            return block(x)
        finally:
            self._held.pop()

    def _key(self, level: int) -> Any:
        return None if self.puppeteer is None else (self.puppeteer.kept, *self.puppeteer.key(level))

    def _parts(self, groups: Sequence[tuple[int, int]], made: dict[Any, Any]) -> list[Part]:
        """Groups that share their kernels put together, with the kernels, which are made once a call."""
        counts: dict[Any, int] = {}
        for level, count in groups:
            key = self._key(level)
            counts[key] = counts.get(key, 0) + count
            if key not in made:
                made[key] = self.puppeteer.kernels(level) if self.puppeteer is not None else {}
        return [Part(made[key], count) for key, count in counts.items()]


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """Images in another order, each copied as a whole, whatever comes first in memory: ten times faster than `x[order]`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.movedim(1, -1).index_select(0, order).movedim(-1, 1) if last else x.index_select(0, order)


def _put(block: nn.Module, names: Sequence[str], new: nn.Module) -> None:
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(block.get_submodule(parent), child, new)


def _kernels_of(block: nn.Module) -> list[tuple[list[str], nn.Conv2d]]:
    """The convolutions of a block that are larger than 1x1, in the order of definition, with all their names in it."""
    found: dict[nn.Conv2d, list[str]] = {}
    for name, module in block.named_modules(remove_duplicate=False):
        if type(module) is nn.Conv2d and max(module.kernel_size) > 1:
            found.setdefault(module, []).append(name)
    return [(names, conv) for conv, names in found.items()]


def _subclasses_in(blocks: Sequence[nn.Module]) -> str:
    """The kinds of larger convolutions in blocks that are no plain `nn.Conv2d`, in brackets."""
    large = (m for block in blocks for m in block.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
    kinds = dict.fromkeys(type(module).__name__ for module in large if type(module) is not nn.Conv2d)
    return f" ({', '.join(kinds)} is not a plain nn.Conv2d)" if kinds else ""


def kernel_shapes(blocks: Sequence[nn.Module]) -> list[list[Shape]]:
    """The shapes of the kernels that a stage of such blocks has generated, block by block."""
    return [[tuple(conv.weight.shape) for _, conv in _kernels_of(block)] for block in blocks]


def kernel_groups(blocks: Sequence[nn.Module]) -> list[list[int]]:
    """The groups of those convolutions."""
    return [[conv.groups for _, conv in _kernels_of(block)] for block in blocks]


def sites(model: nn.Module, options: PuppetOptions) -> list[Site]:
    """Every stage: blocks in an `nn.Sequential` of which all but the first are equal.

    The first may change size and width. One that holds the net's first convolution, the stem, is left alone.
    """
    owners = owners_of_parameters(model)
    stem = first_conv(model)
    found = []
    for prefixes, blocks in neighbours(model):
        if not is_block(blocks[0][1]):
            condensed = [(name, block) for name, block in blocks if isinstance(block, PuppetStage)]
            found += [
                Site(names_of(prefixes, n), m, f"already condensed by {m.condensed_by!r}", False) for n, m in condensed
            ]
            continue
        if any(module is stem for module in blocks[0][1].modules()):
            blocks = blocks[1:]
        for stage in _stages(blocks):
            chosen = stage if options.generate == "all" else stage[1:]
            name, first = (chosen or stage)[0]
            rest = tuple((f"{prefixes[0]}{other}", block) for other, block in chosen[1:])
            modules = [block for _, block in chosen]
            obstacle = obstacle_to(modules, len(prefixes), owners)
            if not chosen:
                obstacle = 'no block after the first; generate="all" takes that too'
            elif not obstacle and options.generator != "stored" and not any(map(_kernels_of, modules)):
                obstacle = f"its blocks have no convolutions larger than 1x1 to generate{_subclasses_in(modules)}"
            words = f"{len(chosen) or 1} x {type(first).__name__}"
            found.append(Site(names_of(prefixes, name), first, obstacle, not obstacle, rest, words))
    return found or elsewhere(model)


def _stages(blocks: Sequence[tuple[str, nn.Module]]) -> Iterator[list[tuple[str, nn.Module]]]:
    """Neighbours of one type cut into stages: a block, and those after it that are equal and keep size and channels."""
    runs = [list(run) for _, run in itertools.groupby(blocks, lambda named: structure(named[1]))]
    while runs:
        stage = runs.pop(0)
        if len(stage) == 1 and runs and _keeps_shape(runs[0][0][1]):
            stage += runs.pop(0)
        if len(stage) > 1 and not _keeps_shape(stage[-1][1]):
            yield from ([block] for block in stage)
        else:
            yield stage


def _keeps_shape(block: nn.Module) -> bool:
    return kept_channels(block)[0] > 0


def first_conv(model: nn.Module) -> Any:
    """The first convolution of a net, condensed or not; None where there is none."""
    return next((m for m in model.modules() if isinstance(m, nn.Conv2d | AbstractConv2d)), None)


def build(sites: Sequence[Site], options: PuppetOptions) -> dict[str, nn.Module]:
    """A stage for each site, with one puppeteer and one gauge for all of them."""
    stages: list[list[nn.Module]] = [site.modules[: options.max_depth] for site in sites]
    kinds = {(p.device, p.dtype) for stage in stages for block in stage for p in block.parameters()}
    if len(kinds) > 1:
        raise ValueError(f"one puppeteer cannot serve layers of different devices or dtypes: {sorted(map(str, kinds))}")
    device, dtype = next(iter(kinds))
    given = asdict(options)

    def puppeteer_of(some: Sequence[Sequence[nn.Module]]) -> Puppeteer:
        shapes, groups = list(map(kernel_shapes, some)), list(map(kernel_groups, some))
        return Puppeteer(shapes, groups=groups, device=device, dtype=dtype, **given)

    if options.generator == "stored":
        return {site.name: PuppetStage(stage, **given) for site, stage in zip(sites, stages, strict=True)}
    if options.scope == "stage":
        return {site.name: PuppetStage(stage, puppeteer_of([stage])) for site, stage in zip(sites, stages, strict=True)}
    shared = puppeteer_of(stages)
    return {
        site.name: PuppetStage(stage, shared, number=number)
        for number, (site, stage) in enumerate(zip(sites, stages, strict=True))
    }


def finish(model: nn.Module, built: Mapping[str, nn.Module | None]) -> None:
    """Has the stages hear of every call of the net: of its images, where they decide anything, and of each other."""
    stages = [stage for stage in built.values() if isinstance(stage, PuppetStage)]
    calls = Calls.of(model)
    if calls is None:
        calls = Calls()
        calls.attach(model)
    for stage in stages:
        stage.calls = calls
        if not stage.options.adapts:
            continue
        wanted = (stage.options.measure, stage.options.levels)
        gauge = calls.gauge
        if gauge is None:
            first = first_conv(model)
            gauge = Gauge(*wanted, channels=first.in_channels if first is not None else 3)
            calls.gauge = gauge.to(next(stage.parameters()).device)
        if (gauge.measure, gauge.levels) != wanted:
            raise ValueError(
                f"the net measures {gauge.measure} at {gauge.levels} levels already, for stages made before"
            )
        stage.gauge = gauge.train(stage.training)


def gauge_of(model: nn.Module) -> Gauge | None:
    """What says in a net how complex each image is, and what `calibrate_` is called on; None where no image decides
    anything."""
    return next((module for module in model.modules() if isinstance(module, Gauge)), None)


def puppeteers_of(model: nn.Module) -> list[Puppeteer]:
    """What generates the kernels of a net, in order."""
    return [module for module in model.modules() if isinstance(module, Puppeteer)]


def fit(trained: Mapping[str, Sequence[Any]], made: Mapping[str, nn.Module | None]) -> None:
    """Puppeteers whose trajectories pass as near to the trained kernels as they can, on the way of the highest level.

    What is brought down is 1 - cos^2 of the angle between each generated kernel and the trained one, weighted by their
    numbers; its length then comes from the kernel's scale, which is stored.
    """
    targets: dict[Puppeteer, dict[Slot, Tensor]] = {}
    for name, stage in made.items():
        assert isinstance(stage, PuppetStage)
        if (puppeteer := stage.puppeteer) is not None:
            for b, block in enumerate(trained[name][: len(stage.blocks)]):
                for k, (_, conv) in enumerate(_kernels_of(block)):
                    targets.setdefault(puppeteer, {})[stage.number, b, k] = conv.weight.detach()
    for puppeteer, kernels_of in targets.items():
        _follow(puppeteer, kernels_of)


def _follow(puppeteer: Puppeteer, wanted: Mapping[Slot, Tensor]) -> None:
    """Moves a puppeteer's state and field until its kernels point where those wanted do, then sets its scales."""
    parameters = list(puppeteer.parameters())
    path = puppeteer.key(puppeteer.options.levels - 1)
    optimizer = torch.optim.Adam(parameters, _FIT_RATE * puppeteer.std)
    total = sum(w.numel() for w in wanted.values())
    with learning(parameters):
        for step in range(_FIT_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _FIT_RATE * puppeteer.std * (1 + math.cos(math.pi * step / _FIT_STEPS)) / 2
            made = puppeteer._generate(*path)
            near = [
                F.cosine_similarity(made[slot].flatten(), w.flatten(), dim=0).square() * w.numel()
                for slot, w in wanted.items()
                if slot in made
            ]
            optimizer.zero_grad()
            (-torch.stack(near).sum() / total).backward()
            optimizer.step()
    with torch.no_grad():
        for number in range(len(puppeteer.scales)):
            made = puppeteer._generate(*(puppeteer.key(number) if len(puppeteer.scales) > 1 else path))
            for place, slot in enumerate(puppeteer.slots):
                if slot in made and slot in wanted and made[slot].square().sum() > 0:
                    # The sign too: a trajectory may pass on the other side.
                    power = made[slot].square().sum()
                    puppeteer.scales[number, place] *= (made[slot] * wanted[slot]).sum() / power
        puppeteer.kept.clear()


METHOD = Method(
    name="puppet",
    summary="an ODE makes the kernels along the depth; the image's entropy sets how deep it goes",
    source="Puppet-CNN: Input-Adaptive Convolutional Networks Using Ordinary Differential Equations",
    options=PuppetOptions,
    sites=sites,
    build=build,
    places=(
        "run of equal blocks of convolutions in an nn.Sequential",
        "runs of equal blocks of convolutions in an nn.Sequential",
    ),
    finish=finish,
    fit=fit,
    searched={"size": Range(0.02, 0.5), "depth": ("fixed", "entropy")},
)
