"""A stage with generated kernels, which replaces a run of equal blocks."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import kernels
from pocketcnn.methods._call_value import CallValue, is_repeatable, repeating
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments
from pocketcnn.methods._leaf import AbstractLeaf
from pocketcnn.methods.puppet.gauge import Calls, Gauge, OneLevel, TracedLevels
from pocketcnn.methods.puppet.options import PuppetOptions
from pocketcnn.methods.puppet.puppeteer import Puppeteer, Shape, Slot


class Part(NamedTuple):
    """Neighbouring images of a batch that share their kernels; `level` is one that has these kernels."""

    kernels: Mapping[Slot, Tensor]
    images: int
    level: int


class Mixed(NamedTuple):
    """A batch whose values cannot be read: sets of kernels, and each image's weights of them, one of which is 1."""

    kernels: list[Mapping[Slot, Tensor]]
    weights: Tensor


class GeneratedConv2d(AbstractConv2d):
    """A convolution inside a `PuppetStage`, which sets its kernels for each call."""

    def __init__(
        self, *arguments: Any, puppeteer: Puppeteer, slot: Slot, batch: CallValue, bias: Any, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.bias = bias
        self.slot, self._batch = slot, batch
        self._puppeteer = (puppeteer,)  # in a tuple, because it is registered in the stage

    def dense_weight(self, x: Tensor | None = None) -> Tensor:
        """Returns a copy of the kernel that the stage has set; outside a call of the stage, that of the highest level."""
        given, puppeteer = self._batch.get(), self._puppeteer[0]
        made = given[0].kernels if isinstance(given, list) else puppeteer.kernels(puppeteer.options.levels - 1)
        return made[self.slot].clone()  # the puppeteer keeps its own

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Lists the puppeteer's parameters."""
        return list(self._puppeteer[0].parameters())

    def filtered(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Filters images with the kernels that the stage has set, or that of the highest level."""
        given = self._given(x)
        x, padding = self.pad(x)
        how = (self.stride, padding, self.dilation, self.groups)
        if isinstance(given, Mixed):
            experts = torch.stack([made[self.slot] for made in given.kernels])
            y = kernels.condconv2d(
                x, given.weights.to(x.dtype), experts, stride=how[0], padding=how[1], dilation=how[2], groups=how[3]
            )
            return y if self.bias is None else y + self.bias[:, None, None]
        if given is None or len(given) == 1:
            kernel = self.dense_weight() if given is None else given[0].kernels[self.slot]
            return F.conv2d(x, kernel, self.bias, *how)
        parts = zip(x.split([part.images for part in given]), given, strict=True)
        return torch.cat([F.conv2d(rows, part.kernels[self.slot], self.bias, *how) for rows, part in parts])

    def _given(self, x: Tensor) -> list[Part] | Mixed | None:
        """Returns the kernels for a batch: those that the stage has set.

        In a part of the stage that activation checkpointing repeats without the stage, the layer generates them itself,
        both times: gradients then reach the puppeteer, and both passes save the same tensors.
        """
        given = self._batch.current()
        if given is None:
            return self._generated(self._batch.noted(x, "the levels of its images")) if repeating() else None
        if not is_repeatable(given) or isinstance(given.value, Mixed):
            return given.value
        groups = tuple((part.level, part.images) for part in given.value)
        self._batch.note(x, groups, groups)
        return self._generated(groups)

    def _generated(self, groups: Sequence[tuple[int, int]]) -> list[Part]:
        return [Part(self._puppeteer[0].kernels(level), images, level) for level, images in groups]


class PuppetStage(AbstractLeaf):
    """Blocks with generated kernels that follow each other; the more complex an image, the more of them it passes.

    In training mode a block sees all images that reach it at once, for its batch norm's statistics. In evaluation mode
    images with different kernels go through one after the other. While a net is traced (`torch.compile`, `torch.export`)
    all images pass all blocks, and those that should have stopped keep the features they had: the same result without
    the saving. In training mode `torch.compile` breaks its graph to read the levels instead, for batch norm's sake.

    Args:
        blocks: modules from a map to a map; all but the first keep its size and channels. They become part of the stage;
            their convolutions larger than 1x1 are replaced.
        puppeteer: makes the kernels; None makes one for this stage, or keeps the ordinary kernels with
            `generator="stored"`.
        number: number of this stage among the puppeteer's.
        **options: fields of `PuppetOptions`; leave them out with a puppeteer, which has its own.
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
        self.gauge: Gauge | None = None  # decides how many blocks each image passes; without it all images pass all
        self.calls = Calls()  # the net's own, once the stage is part of a net
        self._batch = CallValue()  # kernels for the batch in a block: a list of `Part`, or `Mixed`
        self.blocks = nn.ModuleList(blocks)
        if puppeteer is not None:
            for b, block in enumerate(blocks):
                for k, (names, conv) in enumerate(convolutions_of(block)):
                    arguments = conv_arguments(conv)
                    del arguments["device"], arguments["dtype"]
                    generated = GeneratedConv2d(
                        **{**arguments, "bias": conv.bias}, puppeteer=puppeteer, slot=(number, b, k), batch=self._batch
                    )
                    _put(block, names, generated.train(conv.training))

    @property
    def needs_entropy(self) -> bool:
        """True if the ordinary net that equals the stage depends on the image."""
        return self.gauge is not None

    @property
    def why_not_dense(self) -> str:
        """Reason why no ordinary net equals the stage; empty if one does."""
        if not self.needs_entropy:
            return ""
        return "how deep it goes depends on the image; materialize(net, entropy=...) gives the net for one entropy, in bits"

    def depth_of(self, level: int) -> int:
        """Number of blocks that an image of a level passes."""
        return self.options.depth_of(level, len(self.blocks))

    def given_by_caller(self, x: Any, shares: Any = None) -> dict[str, Any]:
        """Hands over the complexity of the images: a recorded call of the stage is not part of a call of the net."""
        found = self.calls.recorded_shares(x) if shares is None else None
        return {} if found is None else {"shares": found}

    def forward(
        self, x: Float[Tensor, "batch channels height width"], shares: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch out out_height out_width"]:
        found = self.calls.levels_for(x, shares)
        if isinstance(found, OneLevel):
            return self._straight(x, self.options.levels - 1 if found.level is None else found.level, found.made)
        if isinstance(found, TracedLevels):
            return self._masked(x, found)
        x = _rows(x, found.order)
        # In training all groups go together, for batch norm; else only if they share their kernels, because then no
        # results have to be concatenated after each convolution.
        together = self.training or len({self._key(level) for level, _ in found.groups}) == 1
        waves = [found.groups] if together else [[group] for group in found.groups]
        passed = []
        for wave, rows in zip(waves, x.split([sum(count for _, count in wave) for wave in waves]), strict=True):
            passed += self._pass(rows, wave, found.made)
        return _rows(torch.cat(passed), found.back)

    def level_of(self, entropy: float | None = None) -> int:
        """Level of images of some entropy; the highest one if nothing depends on it, or none is given."""
        if self.gauge is None or entropy is None:
            return self.options.levels - 1
        value = torch.tensor(float(entropy), device=self.gauge.quantiles.device)
        return int(self.gauge.level_of(self.gauge.share_of(value)))

    def dense(self, entropy: float | None = None) -> nn.Sequential:
        """Builds the ordinary blocks that the stage equals, for images of some entropy if that matters."""
        level = self.level_of(entropy)
        stage = copy.deepcopy(self)
        blocks = stage.blocks[: self.depth_of(level)]
        stage._batch.push(stage._parts([(level, 1)], {}))
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
        """Sends all images through the blocks of one level."""
        depth = self.depth_of(level)
        parts = self._parts([(level, 1)], made)
        for block in self.blocks[:depth]:
            x = self._run(block, x, parts)
        return self._with_idle(x, depth)

    def _pass(self, x: Tensor, groups: Sequence[tuple[int, int]], made: dict[Any, Any]) -> list[Tensor]:
        """Sends each group of images, the highest level first, through its blocks; returns their features by group."""
        finished: list[Tensor] = []
        for position, block in enumerate(self.blocks):
            active = [(level, count) for level, count in groups if self.depth_of(level) > position]
            count = sum(count for _, count in active)
            # No image is left, or too little for batch norm: a single value a channel.
            if position and (count == 0 or (self.training and count * x[0, 0].numel() == 1)):
                return [self._with_idle(x, position), *finished]
            if count < len(x):
                finished.insert(0, x[count:])
                x = x[:count]
            x = self._run(block, x, self._parts(active, made))
        return [x, *finished]

    def _with_idle(self, x: Tensor, depth: int) -> Tensor:
        """Gives parameters that no image reached gradients of 0 in training, because all devices must have the same."""
        idle = [p for block in self.blocks[depth:] for p in block.parameters() if p.requires_grad]
        if not (idle and self.training):
            return x
        if self.puppeteer is not None:
            idle += self.puppeteer.parameters()
        return x + 0 * torch.stack([p.sum() for p in idle]).sum()

    def _masked(self, x: Tensor, found: TracedLevels) -> Tensor:
        """Sends all images through all blocks; an image whose depth is reached keeps the features it has."""
        levels = range(self.options.levels)
        depths = torch.tensor([self.depth_of(level) for level in levels], device=x.device)[found.levels]
        for position, block in enumerate(self.blocks):
            reached = [level for level in levels if self.depth_of(level) > position]
            parts = self._parts([(level, 1) for level in reached], found.made)
            given: list[Part] | Mixed = parts
            if len(parts) > 1:
                places = {key: place for place, key in enumerate(dict.fromkeys(map(self._key, reached)))}
                # Images that should have stopped may get any kernels: `where` drops their results.
                place = torch.tensor([places.get(self._key(level), 0) for level in levels], device=x.device)
                given = Mixed([part.kernels for part in parts], F.one_hot(place[found.levels], len(places)))
            y = self._run(block, x, given)
            x = torch.where((depths > position)[:, None, None, None], y, x) if position else y
        return x

    def _run(self, block: nn.Module, x: Tensor, given: "list[Part] | Mixed") -> Tensor:
        self._batch.push(given)  # no `with`, which the compiler cannot trace here
        try:
            return block(x)
        finally:
            self._batch.pop()

    def _key(self, level: int) -> Any:
        return None if self.puppeteer is None else (self.puppeteer.kept, *self.puppeteer.key(level))

    def _parts(self, groups: Sequence[tuple[int, int]], made: dict[Any, Any]) -> list[Part]:
        """Joins groups that share their kernels, and makes the kernels, once a call."""
        counts: dict[Any, int] = {}
        levels: dict[Any, int] = {}
        for level, count in groups:
            key = self._key(level)
            counts[key] = counts.get(key, 0) + count
            levels.setdefault(key, level)
            if key not in made:
                made[key] = self.puppeteer.kernels(level) if self.puppeteer is not None else {}
        return [Part(made[key], count, levels[key]) for key, count in counts.items()]


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """Reorders images, copying each as a whole in its own memory layout: ten times faster than `x[order]`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.movedim(1, -1).index_select(0, order).movedim(-1, 1) if last else x.index_select(0, order)


def _put(block: nn.Module, names: Sequence[str], new: nn.Module) -> None:
    """Puts a module at all its names in a block."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(block.get_submodule(parent), child, new)


def convolutions_of(block: nn.Module) -> list[tuple[list[str], nn.Conv2d]]:
    """Lists the convolutions of a block that are larger than 1x1, in the order of definition, with all their names."""
    found: dict[nn.Conv2d, list[str]] = {}
    for name, module in block.named_modules(remove_duplicate=False):
        if type(module) is nn.Conv2d and max(module.kernel_size) > 1:
            found.setdefault(module, []).append(name)
    return [(names, conv) for conv, names in found.items()]


def kernel_shapes(blocks: Sequence[nn.Module]) -> list[list[Shape]]:
    """Shapes of the kernels that a stage of these blocks has generated, block by block."""
    return [[tuple(conv.weight.shape) for _, conv in convolutions_of(block)] for block in blocks]


def kernel_groups(blocks: Sequence[nn.Module]) -> list[list[int]]:
    """Groups of the convolutions with generated kernels, block by block."""
    return [[conv.groups for _, conv in convolutions_of(block)] for block in blocks]
