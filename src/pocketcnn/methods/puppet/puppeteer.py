"""The puppeteer: kernel-shaped states that an ODE moves along the depth."""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn import kernels
from pocketcnn.methods._call_value import tracing
from pocketcnn.methods._conv import fan_out
from pocketcnn.methods._kept import Kept
from pocketcnn.methods._shared import AbstractConstants, AbstractShared
from pocketcnn.methods.puppet.options import PuppetOptions
from pocketcnn.numerics._shapes import accumulation_dtype
from pocketcnn.numerics.odeint import odeint
from pocketcnn.numerics.ring_index import channel_indices
from pocketcnn.support.modules import is_filled_later

Shape = tuple[int, ...]
Slot = tuple[int, int, int]  # which stage, which of its blocks, which of the block's kernels


class Puppeteer(AbstractShared, AbstractConstants):
    """The state that all kernels are read off, and the field that moves it along the depth.

    The state P is [rows, columns, kernel_height, kernel_width], stored as a matrix. It moves by

        dP/dt = G(P) = tanh(A P) B,

    where A mixes its rows and B its columns, from t = 0 to `horizon`. The stages share the time equally; so do the blocks
    of a stage, and the kernels of a block, which are read one after the other. Each kernel is scaled so that it starts
    with its Kaiming fan-out variance, as in a plain net.

    Args:
        stages: for each stage and each of its blocks the shapes of the kernels, [out_channels, in_channels / groups,
            kernel_height, kernel_width].
        groups: groups of each kernel's convolution, nested in the same way; 1 for all when not given.
        device: of the parameters; `dtype` is their type.
        dtype: of the parameters.
        **options: fields of `PuppetOptions`.
    Raises:
        ValueError: no kernels, or an option out of range.
    """

    kernels_read_from: Mapping[str, float] = {"state": 1.0, "mix_rows": 1 / 3, "mix_columns": 1 / 3}
    kernels_scaled_by = ("gain",)
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
        # The state is stored at the scale of a typical kernel's weights, so that it takes steps like a plain net's.
        self.std = (sum(n * self.stds[slot] ** 2 for slot, n in self.sizes.items()) / total) ** 0.5
        self.rows, self.columns, *self.kernel_size = self.state_shape = self._state_shape(total)
        made = {"device": device, "dtype": dtype}
        self.state = nn.Parameter(torch.empty(self.rows, self.columns * math.prod(self.kernel_size), **made))
        moves = self.options.generator != "static" and len(self.slots) > 1
        self.mix_rows = nn.Parameter(torch.empty(self.rows, self.rows, **made)) if moves else None
        self.mix_columns = nn.Parameter(torch.empty(self.columns, self.columns, **made)) if moves else None
        self.gain = nn.Parameter(torch.empty(self.rows, **made)) if self.options.start == "entropy" else None
        # Rebuilt from the seed, hence never in a file.
        self.constants = ("indices", "signs")
        self.indices = torch.empty(total, device="meta", dtype=torch.int32)
        self.signs = torch.empty(total, device="meta", dtype=torch.int8)
        paths = self.options.levels if self.options.depth_by == "step" else 1
        self.register_buffer("scales", torch.empty(paths, len(self.slots), device=device, dtype=dtype))
        self.kept = Kept()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Redraws state and field from torch's random numbers, and rebuilds the places of the kernels from the seed."""
        nn.init.normal_(self.state, std=self.std)
        for mix in (self.mix_rows, self.mix_columns):
            if mix is not None:
                nn.init.normal_(mix, std=len(mix) ** -0.5)
        if self.gain is not None:
            nn.init.zeros_(self.gain)
        self.rebuild_constants()
        if self.state.is_meta:
            return
        with torch.no_grad():
            self.scales.fill_(1)
            for path in () if is_filled_later() else range(len(self.scales)):
                made = self._generate(None, path)
                stds = [made[slot].std(correction=0) / self.stds[slot] if slot in made else 1.0 for slot in self.slots]
                self.scales[path] = 1 / torch.tensor(stds)

    def where(self) -> torch.device:
        """Device of the state."""
        return self.state.device

    def make_constants(self) -> dict[str, Tensor]:
        """Makes the places that kernels are read from, and their signs, from the seed."""
        seed = self.options.seed
        if self.options.read == "channels":
            indices, signs = channel_indices(list(self.slots.values()), self.state_shape, seed=seed)
        else:
            indices, signs = kernels.ring_indices(list(self.sizes.values()), math.prod(self.state_shape), seed=seed)
        return {"indices": indices.int(), "signs": signs.to(torch.int8)}

    def key(self, level: int) -> tuple[float | None, int]:
        """Start of the state and number of its path for a level: levels with equal keys share their kernels."""
        start = (level + 0.5) / self.options.levels if self.gain is not None else None
        return start, min(level, len(self.scales) - 1)

    def kernels(self, level: int) -> Mapping[Slot, Tensor]:
        """Generates the kernels of one level, by (stage, block, number in the block).

        Each is [out_channels, in_channels // groups, kernel_height, kernel_width], and not to be written to. In evaluation mode without gradients
        they are generated once and kept until a value of the state, the field or the scales changes, in whatever way.
        """
        return self(level)  # a call, so that hooks run: some of torch's pruning and norms are hooks

    def forward(self, level: int) -> Mapping[Slot, Tensor]:
        """Generates the kernels of one level, as `kernels` does."""
        key = self.key(level)
        if self.training or torch.is_grad_enabled() or tracing() or self.state.is_meta:
            return self._generate(*key)
        made_of = [self.state, self.mix_rows, self.mix_columns, self.gain, self.scales]
        sources = [tensor for tensor in made_of if tensor is not None]
        return self.kept.get(key, sources, lambda: self._generate(*key), (self.indices, self.signs))

    def trajectory(self, level: int) -> list[Tensor]:
        """Computes the states off which the kernels of one level are read, in order.

        Each is a matrix [rows, columns * kernel_height * kernel_width], in units of the state's standard deviation at
        initialisation.
        """
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
        """Chooses the shape of the state: square, so that state and field together have about the size asked for."""
        height, width = (max(shape[axis] for shape in self.slots.values()) for axis in (2, 3))
        size = self.options.size
        wanted = size * total if isinstance(size, float) else size
        mixers = 2 if self.options.generator != "static" else 0  # matrices of the field
        side = max(1, round((wanted / (height * width + mixers)) ** 0.5))
        return side, side, height, width

    def _times(self, path: int) -> dict[Slot, float]:
        """Time at which each kernel is read."""
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
        self.settle()  # a replica or a swapped parameter may be on another device
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
        """Computes the state at the times, in units of its standard deviation at initialisation."""
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


def puppeteers_of(model: nn.Module) -> list[Puppeteer]:
    """Lists the puppeteers of a net, in order."""
    return [module for module in model.modules() if isinstance(module, Puppeteer)]
