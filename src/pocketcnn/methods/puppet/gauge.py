"""The gauge measures how complex each image of a batch is; the calls of a net carry the result to its stages.

A net's own code stands between its input and its stages, and passes on features only. So the levels of the images are
kept beside it, for the length of one call, by thread and by net.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.fx import Proxy

from pocketcnn.methods._call_value import CallValue, in_a_part, is_repeatable, repeating, tracing
from pocketcnn.methods._leaf import AbstractLeaf, proxy_in
from pocketcnn.methods._shared import AbstractShared, AbstractWhole
from pocketcnn.numerics._shapes import is_recorded
from pocketcnn.numerics.entropy import edge_density, image_entropy, image_lot, image_variance

_log = logging.getLogger(__name__)


class OneLevel(NamedTuple):
    """A batch whose images all have one level (None: the highest), and the kernels made for it in this call."""

    level: int | None
    made: dict[Any, Any]


class MixedLevels:
    """A batch of mixed levels: its images in groups, the highest level first, and the kernels made for it in this call.

    `groups` are pairs of a level and its number of images; `order` sorts the images by group and `back` undoes that.
    """

    def __init__(self, levels: Tensor) -> None:
        self.made: dict[Any, Any] = {}
        self.levels = levels
        listed = levels.tolist()
        self.groups = [(level, listed.count(level)) for level in sorted(set(listed), reverse=True)]
        self.order = levels.argsort(descending=True, stable=True)
        self.back = self.order.argsort()


class TracedLevels(NamedTuple):
    """A batch of a net that is being traced, when no values can be read: the levels as a tensor, and the kernels."""

    levels: Tensor
    made: dict[Any, Any]


def _sorted(levels: int | tuple[int, ...] | None, x: Tensor) -> OneLevel | MixedLevels:
    """Makes the levels of the images whose features are `x` from their values."""
    return MixedLevels(torch.tensor(levels, device=x.device)) if isinstance(levels, tuple) else OneLevel(levels, {})


UNMEASURED = "set until the first stage measures the features that it is given"


class Calls:
    """The calls of a net that are under way, with the levels of their images, for the net's stages."""

    def __init__(self, gauge: "Gauge | None" = None) -> None:
        self.gauge = gauge
        self._batch = CallValue()
        self._warned = False

    def attach(self, net: nn.Module) -> None:
        """Makes every call of a net begin with a look at its input."""
        net.register_forward_pre_hook(self._begin, with_kwargs=True)
        net.register_forward_hook(self._end, always_call=True)

    @staticmethod
    def of(net: nn.Module) -> "Calls | None":
        """Finds the calls attached to a net."""
        owners = (getattr(hook, "__self__", None) for hook in net._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, Calls)), None)

    def detach(self, net: nn.Module) -> None:
        """Removes the hooks of `attach`."""
        for hooks in (net._forward_pre_hooks, net._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]

    def recorded_shares(self, x: Proxy) -> Proxy | None:
        """Finds the gauge's output in a graph that `torch.fx` records, for the images whose features a stage is given.

        None if nothing depends on the images, or the stage is recorded outside of the net.

        Raises:
            ValueError: the net takes no or several inputs, so that nobody knows which are the images.
        """
        tracer: Any = x.tracer
        gauge, found = self.gauge, self._batch.get()
        if gauge is None or isinstance(found, Proxy):
            return found if isinstance(found, Proxy) else None
        if found is UNMEASURED:
            self._batch.replace(gauge(x))
            return self._batch.get()
        # Hooks of the net that is traced do not run.
        if Calls.of(tracer.root) is not self:
            return None
        nodes = tracer.graph.nodes
        for node in nodes:
            if node.op == "call_module" and tracer.root.get_submodule(node.target) is gauge:
                return Proxy(node, tracer)
        images = [Proxy(node, tracer) for node in nodes if node.op == "placeholder"]
        return gauge(x if gauge.measure == "features" else _only(images))

    def levels_for(self, x: Tensor, shares: Tensor | None = None) -> "OneLevel | MixedLevels | TracedLevels":
        """Returns the levels of the images whose features a stage is given; `shares` are the gauge's output if it is known.

        Raises:
            ValueError: the stage is given another number of images than the net.
        """
        given = self._batch.current()
        if self.gauge is None:
            return given.value if given is not None and not is_repeatable(given) else OneLevel(None, {})
        if shares is not None:
            found, repeatable = self.gauge.sort(shares), False
        elif given is None and repeating():
            return _sorted(self._batch.noted(x, "the levels of its images"), x)
        elif given is None:
            found, repeatable = OneLevel(self._level_alone(), {}), in_a_part()
        else:
            if given.value is UNMEASURED:
                self._batch.replace(self._measured(x, self.gauge))
            found, repeatable = self._batch.get(), is_repeatable(given)
        if not isinstance(found, OneLevel) and found.levels.shape[0] != x.shape[0]:
            raise ValueError(
                f"the net was given {found.levels.shape[0]} images, but a stage in it gets features of {x.shape[0]}; "
                "condense the part of the net that takes as many images as its stages"
            )
        if not repeatable or isinstance(found, TracedLevels):
            return found
        levels = found.level if isinstance(found, OneLevel) else tuple(found.levels.tolist())
        self._batch.note(x, levels, levels)
        return _sorted(levels, x)  # with kernels of its own, so that a repetition makes as many

    def _measured(self, x: Tensor, gauge: "Gauge") -> "OneLevel | MixedLevels | TracedLevels":
        """Measures features; one that learns from them finds what it found before, if the whole call is repeated."""
        if not (gauge.training and in_a_part()) and not repeating():
            return gauge.see(x)
        if repeating() and (known := self._batch.known(x)) is not None:
            return _sorted(known, x)
        found = gauge.see(x)
        if not isinstance(found, TracedLevels):
            levels = found.level if isinstance(found, OneLevel) else tuple(found.levels.tolist())
            self._batch.note(x, levels, levels)
        return found

    def _level_alone(self) -> int | None:
        """Level for a stage outside of a call of the net: the one that the gauge is held at, or the highest."""
        pin = self.gauge.pin if self.gauge is not None else None
        if pin is None and not (self._warned or tracing()):
            self._warned = True
            _log.warning(
                "a stage runs outside of a call of the net, whose images would set its depth, and passes all blocks; "
                "call the net itself, or pin the level by gauge_of(net).pinned(level)"
            )
        return pin

    def _begin(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._batch.clear()  # left by a call that was interrupted
        self._batch.push(UNMEASURED)  # at once, because `_end` is called whatever happens
        if self.gauge is not None and self.gauge.measure == "features":
            return
        found: Any = OneLevel(None, {})
        if self.gauge is not None:
            given = (*args, *kwargs.values())
            if proxy_in(*given) is not None:
                found = self.gauge(_only([a for a in given if isinstance(a, Proxy)]))
            else:
                found = self.gauge.see(_only([a for a in given if isinstance(a, Tensor) and a.dim() == 4]))
        self._batch.pop()
        self._batch.push(found)

    def _end(self, *_: Any) -> None:
        self._batch.clear()


def _only(images: Sequence[Any]) -> Any:
    """Returns the one batch of images that a net is given."""
    if len(images) != 1:
        raise ValueError(
            f"the net's depth depends on its images, [batch, channels, height, width], and it got {len(images)} such "
            "tensors instead of one"
        )
    return images[0]


class Gauge(AbstractLeaf, AbstractShared, AbstractWhole):
    """Measures how complex each image is that a net is given.

    The gauge undoes the normalisation it was calibrated for, measures, and maps the measure to [0, 1]: the share of the
    calibration images that are simpler. Before `calibrate_` the measure is divided by its largest possible value (entropy
    by 8 bits). The gauge cannot judge an image with pixels outside the range; it counts as complex and passes the whole
    net.

    Args:
        measure: `"entropy"`, `"variance"`, `"edges"`, `"features"` or `"random"`, as in `PuppetOptions`.
        levels: number of degrees of complexity.
        channels: channels of the images.
    Raises:
        ValueError: an unknown measure.
    Shape: images [batch, channels, height, width] to [batch].
    """

    mean: Tensor
    std: Tensor
    value_range: Tensor
    quantiles: Tensor
    calibrated: Tensor
    stored_types: Mapping[str, torch.dtype] = {"calibrated": torch.bool}
    uncast = ("mean", "std", "value_range", "quantiles")  # in bfloat16 neighbouring quantiles would become equal

    # Name -> the measure, its largest value, and the range of pixels before calibration.
    MEASURES: Mapping[str, tuple[Callable[[Tensor], Tensor], float, tuple[float, float]]] = {
        "entropy": (image_entropy, 8.0, (0.0, 1.0)),
        "variance": (image_variance, 1.0, (0.0, 1.0)),
        "edges": (edge_density, 1.0, (0.0, 1.0)),
        "random": (image_lot, 1.0, (0.0, 1.0)),
        "features": (image_entropy, 8.0, (0.0, 4.0)),  # few normalised and rectified features are larger
    }
    POINTS = 33
    """Points of the map: quantiles of the measure."""

    def __init__(self, measure: str = "entropy", levels: int = 4, channels: int = 3) -> None:
        super().__init__()
        if measure not in self.MEASURES:
            raise ValueError(f"no measure {measure!r}; known: {', '.join(self.MEASURES)}")
        self.measure, self.levels = measure, levels
        self._pinned, self._record = CallValue(), CallValue()
        self._warned = False
        for name, size in (("mean", channels), ("std", channels), ("value_range", 2), ("quantiles", self.POINTS)):
            self.register_buffer(name, torch.empty(size, dtype=torch.float32))  # whatever the default is
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Removes the calibration."""
        _, most, (low, high) = self.MEASURES[self.measure]
        self.mean.zero_()
        self.std.fill_(1)
        self.value_range[0], self.value_range[1] = low, high
        self.quantiles.copy_(torch.linspace(0, most, self.POINTS))
        self.calibrated.zero_()

    def value(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Measures each image, in the measure's own unit: bits for entropy.

        Raises:
            ValueError: pixels that are not a number, or images of one pixel.
        """
        return self.MEASURES[self.measure][0](self._pixels(x))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Rates the complexity of each image between 0 and 1."""
        if not is_recorded():
            return self._rate(x)
        # Runtimes fail at the operations of an empty batch; with a blank image more there is none.
        return self._rate(torch.cat([x, x.new_zeros(1, *x.shape[1:])]))[:-1]

    def _rate(self, x: Tensor) -> Tensor:
        pixels = self._pixels(x)
        value = self.MEASURES[self.measure][0](pixels)
        if self.measure == "features" and self.training and len(x) and not (tracing() or x.is_meta):
            self._learn(value, momentum=0.1)
        share = self.share_of(value)
        if self.measure != "features":
            strange = (pixels.flatten(1) - 1 / 2).abs().amax(1) > 0.52
            if not (tracing() or x.is_meta or self._warned) and len(x):
                self._warn_of(pixels[strange], pixels)
            share = torch.where(strange, 1.0, share)
        if (record := self._record.get()) is not None:
            record.append((self.level_of(share), value.detach()))
        return share

    def share_of(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Maps the measure to [0, 1]; the map rises and is piecewise linear between the quantiles."""
        points = self.quantiles.to(value.dtype)
        place = (points < value[..., None]).sum(-1).clamp(1, self.POINTS - 1)
        low, high = points[place - 1], points[place]
        within = ((value - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return (place - 1 + within) / (self.POINTS - 1)

    def level_of(self, share: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Level, from 0 on, of a share between 0 and 1."""
        return (share * self.levels).long().clamp(0, self.levels - 1)

    @torch.no_grad()
    def levels_of(self, x: Float[Tensor, "batch channels height width"]) -> Int[Tensor, " batch"]:
        """Finds the level of each image, from 0 on; nothing is recorded."""
        with self._record.given(None):
            return self.level_of(self(x))

    @torch.no_grad()
    def calibrate_(
        self,
        loader: Iterable[Any],
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> "Gauge":
        """Learns the map from the measure to [0, 1] from images like those that the net will see.

        Afterwards each level holds as many of these images as the others. `train.fit` calibrates with the training images.
        The measure "features" is calibrated in training mode instead, batch by batch, because features change.

        Args:
            loader: batches of images as the net is given them, alone or first in a tuple.
            mean: the mean subtracted when they were normalised, a number or one a channel.
            std: the deviation that they were divided by after that.
            value_range: the lowest and the highest value of a pixel before normalisation.
        Raises:
            ValueError: no images, an impossible normalisation, or images outside `value_range` once it is undone; the
                calibration stays as it was.
        """
        if self.measure == "features":
            return self
        new = Gauge(self.measure, self.levels, len(self.mean)).to(self.mean.device)
        for name, buffer, given in (("mean", new.mean, mean), ("std", new.std, std)):
            values = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
            if len(values) not in (1, len(self.mean)):
                raise ValueError(f"{name} is a number or {len(self.mean)} of them, one a channel, not {len(values)}")
            buffer.copy_(values)
        if not (new.std > 0).all() or not value_range[0] < value_range[1]:
            raise ValueError(f"std must be positive and value_range (lowest, highest), got {std} and {value_range}")
        new.value_range.copy_(torch.tensor(value_range))
        measured = []
        for batch in loader:
            pixels = new._pixels((batch if isinstance(batch, Tensor) else batch[0]).to(self.mean.device))
            if len(pixels) and (pixels.min() < -0.02 or pixels.max() > 1.02):
                raise ValueError(f"{new._found(pixels)}; {_FIX}")
            measured.append(self.MEASURES[self.measure][0](pixels))
        if not sum(map(len, measured)):
            raise ValueError("the loader gave no images to calibrate with")
        new._learn(torch.cat(measured), momentum=1.0)
        self.load_state_dict(new.state_dict())
        self._warned = False
        return self

    @property
    def pin(self) -> int | None:
        """The level at which this thread holds the gauge; None if it is free."""
        return self._pinned.get()

    @contextlib.contextmanager
    def pinned(self, level: int) -> Iterator[None]:
        """Inside a `with`, calls from this thread treat every image as one of that level, and still measure it.

        Raises:
            ValueError: there is no such level.
        """
        if not 0 <= level < self.levels:
            raise ValueError(f"levels are numbered from 0 to {self.levels - 1}, not {level}")
        with self._pinned.given(level):
            yield

    @contextlib.contextmanager
    def recording(self, net: nn.Module) -> Iterator[tuple[Callable[[Tensor], Any], list[tuple[Tensor, Tensor]]]]:
        """Inside a `with`, records level and measure of every image that this thread measures.

        Yields:
            A function that measures a batch of images: the net itself if its features are measured, else the gauge's own.
            And the record, a pair of tensors [batch] for each call.
        """
        record: list[tuple[Tensor, Tensor]] = []
        with self._record.given(record):
            yield (net if self.measure == "features" else self.see), record

    def see(self, x: Tensor) -> OneLevel | MixedLevels | TracedLevels:
        """Sorts a batch into levels."""
        with torch.no_grad():
            return self.sort(self(x))

    def sort(self, shares: Float[Tensor, " batch"]) -> OneLevel | MixedLevels | TracedLevels:
        """Sorts a batch into levels by the complexity of its images, as the gauge gives it."""
        levels = self.level_of(shares)
        if (pin := self.pin) is not None:
            return OneLevel(pin, {})
        # Batch norm in training must not see images that have stopped, so there the compiler has to break its graph.
        if shares.is_meta or (tracing() and not (self.training and not torch.compiler.is_exporting())):
            return TracedLevels(levels, {})
        mixed = MixedLevels(levels)
        return mixed if len(mixed.groups) > 1 else OneLevel(mixed.groups[0][0] if mixed.groups else 0, {})

    def extra_repr(self) -> str:
        return f"measure={self.measure!r}, levels={self.levels}"

    def _pixels(self, x: Tensor) -> Tensor:
        """Undoes the normalisation of images and maps their range to [0, 1], in at least float32."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.measure == "features":
            return x.nan_to_num() / self.value_range[1]  # of a net that diverges the loss tells
        if len(self.mean) != x.shape[1]:
            raise ValueError(f"the net's depth is set by images of {len(self.mean)} channels, these have {x.shape[1]}")
        low, high = self.value_range.to(x.dtype)
        mean, std = (t.to(x.dtype)[:, None, None] for t in (self.mean, self.std))
        return (x * std + mean - low) / (high - low)

    def _learn(self, values: Tensor, momentum: float) -> None:
        ranked = values.to(self.quantiles.dtype).sort().values
        found = ranked[torch.linspace(0, len(ranked) - 1, self.POINTS, device=ranked.device).round().long()]
        self.quantiles = self.quantiles + momentum * (found - self.quantiles)
        self.calibrated = torch.ones_like(self.calibrated)

    def _found(self, pixels: Tensor) -> str:
        low, high = self.value_range.tolist()
        found = [low + (high - low) * end.item() for end in (pixels.min(), pixels.max())]
        return f"with mean and std undone, images range from {found[0]:.3g} to {found[1]:.3g}, not from {low:g} to {high:g}"

    def _warn_of(self, strange: Tensor, pixels: Tensor) -> None:
        """Warns once if the range of images is wrong."""
        spread = (pixels.max() - pixels.min()).item()
        if len(strange):
            message = f"{self._found(strange)}; such images get the full depth. {_FIX}"
        elif 0 < spread < 0.02:
            message = f"{self._found(pixels)}; they count as simple. {_FIX}"
        else:
            return
        self._warned = True
        if self.whole("calibrated"):
            warnings.warn(message, stacklevel=2)
        else:
            _log.warning("%s", message)


_FIX = (
    "Call pocketcnn.methods.puppet.gauge_of(net).calibrate_(loader, mean=..., std=..., value_range=...) with images as the "
    "net is given them, the mean and std they were normalised with and the range of their pixels before that"
)
