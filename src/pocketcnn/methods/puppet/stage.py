"""A stage of generated kernels, in the place of a run of equal blocks."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import kernels
from pocketcnn.methods._call_value import CallValue
from pocketcnn.methods._conv import AbstractConv2d, conv_arguments
from pocketcnn.methods.puppet.gauge import Calls, Gauge, OneLevel, TracedLevels
from pocketcnn.methods.puppet.options import PuppetOptions
from pocketcnn.methods.puppet.puppeteer import Puppeteer, Shape, Slot


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
        self, *arguments: Any, puppeteer: Puppeteer, slot: Slot, held: CallValue, bias: Any, **keywords: Any
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
        self._held = CallValue()
        self.blocks = nn.ModuleList(blocks)
        if puppeteer is not None:
            for b, block in enumerate(blocks):
                for k, (names, conv) in enumerate(convolutions_of(block)):
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
        if isinstance(found, OneLevel):
            return self._straight(x, self.options.levels - 1 if found.level is None else found.level, found.made)
        if isinstance(found, TracedLevels):
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

    def _masked(self, x: Tensor, found: TracedLevels) -> Tensor:
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


def convolutions_of(block: nn.Module) -> list[tuple[list[str], nn.Conv2d]]:
    """The convolutions of a block that are larger than 1x1, in the order of definition, with all their names in it."""
    found: dict[nn.Conv2d, list[str]] = {}
    for name, module in block.named_modules(remove_duplicate=False):
        if type(module) is nn.Conv2d and max(module.kernel_size) > 1:
            found.setdefault(module, []).append(name)
    return [(names, conv) for conv, names in found.items()]


def kernel_shapes(blocks: Sequence[nn.Module]) -> list[list[Shape]]:
    """The shapes of the kernels that a stage of such blocks has generated, block by block."""
    return [[tuple(conv.weight.shape) for _, conv in convolutions_of(block)] for block in blocks]


def kernel_groups(blocks: Sequence[nn.Module]) -> list[list[int]]:
    """The groups of those convolutions."""
    return [[conv.groups for _, conv in convolutions_of(block)] for block in blocks]
