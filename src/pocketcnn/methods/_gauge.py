"""How complex each image of a batch is, held out to the parts of a net that act on it.

A net's own code stands between its input and its stages, and hands on features only. So what the gauge found is held out
beside it, for the length of one call, each thread and each net its own.
"""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketcnn.numerics.entropy import edge_density, image_entropy, image_variance

_log = logging.getLogger(__name__)


def _thread() -> int:
    """This thread; a trace is a place of its own."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Held:
    """What one caller holds out to another for the length of a call, each thread its own.

    A net's own code stands between the gauge, the stages and their convolutions, and hands on features only.
    """

    def __init__(self) -> None:
        self._stacks: dict[int, list[Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return Held()  # what is held out belongs to a call that is under way

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, ()

    def get(self) -> Any:
        """What was held out last in this thread; None if nothing is."""
        stack = self._stacks.get(_thread())
        return stack[-1] if stack else None

    def push(self, value: Any) -> None:
        """Holds out a value until `pop`."""
        self._stacks.setdefault(_thread(), []).append(value)

    def pop(self) -> None:
        """Takes back what was held out last."""
        stack = self._stacks[_thread()]
        stack.pop()
        if not stack:
            del self._stacks[_thread()]

    def swap(self, value: Any) -> None:
        """Holds out a value in the place of what was held out last."""
        self.pop()
        self.push(value)

    @contextlib.contextmanager
    def given(self, value: Any) -> Iterator[None]:
        """Holds out a value inside of a `with`."""
        self.push(value)
        try:
            yield
        finally:
            self.pop()


class Crowd:
    """A batch as the gauge sees it: the images by level, the highest first, and what is made for them in this call."""

    def __init__(self, levels: Sequence[int], device: torch.device) -> None:
        self.made: dict[Any, Any] = {}
        counts: dict[int, int] = {}
        for level in levels:
            counts[level] = counts.get(level, 0) + 1
        self.groups = sorted(counts.items(), reverse=True) or [(0, 0)]
        self.order: Tensor | None = None
        if len(self.groups) > 1:
            self.order = torch.tensor(levels, device=device).argsort(descending=True, stable=True)
            self.back = self.order.argsort()


UNMEASURED = "held out until the first stage measures the features it is given"


class Unseen(NamedTuple):
    """A batch whose values cannot be looked at, while a net is traced: the levels as a tensor."""

    levels: Tensor
    made: dict[Any, Any]


class Gauge(nn.Module):
    """Says how complex each image is that a net is given, and holds that out to the net's stages.

    It is a part of every stage and looks at the input of the net it is attached to. It undoes the normalisation it was calibrated for, measures, and
    maps the measure to [0, 1]: the share of the calibration images that are simpler. Before `calibrate_` the measure is
    divided by the largest it can be (entropy by 8 bits). An image with pixels outside of the range is nothing it can
    judge and counts as complex, so that it passes the whole net.

    Args:
        measure: `"entropy"`, `"variance"`, `"edges"` or `"features"`, as in `PuppetOptions`.
        levels: how many degrees of complexity are told apart.
        channels: of the images.
    Shape: images [batch, channels, height, width] to [batch].
    """

    mean: Tensor
    std: Tensor
    value_range: Tensor
    quantiles: Tensor
    calibrated: Tensor

    # What to measure, the most there can be of it, and the range of values before calibration.
    MEASURES: Mapping[str, tuple[Callable[[Tensor], Tensor], float, tuple[float, float]]] = {
        "entropy": (image_entropy, 8.0, (0.0, 1.0)),
        "variance": (image_variance, 1.0, (0.0, 1.0)),
        "edges": (edge_density, 1.0, (0.0, 1.0)),
        "features": (image_entropy, 8.0, (0.0, 4.0)),  # of normalised and rectified features few are larger
    }
    POINTS = 33
    """Of the map: the measure's quantiles."""

    def __init__(self, measure: str = "entropy", levels: int = 4, channels: int = 3) -> None:
        super().__init__()
        if measure not in self.MEASURES:
            raise ValueError(f"no measure {measure!r}; known: {', '.join(self.MEASURES)}")
        self.measure, self.levels = measure, levels
        self.calls, self._pinned = Held(), Held()
        self._warned = False
        _, most, value_range = self.MEASURES[measure]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("value_range", torch.tensor(value_range))
        self.register_buffer("quantiles", torch.linspace(0, most, self.POINTS))
        self.register_buffer("calibrated", torch.tensor(False))

    def value(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """The measure of each image, in its own unit: bits for entropy.

        Raises:
            ValueError: pixels that are not a number, or images of one pixel.
        """
        return self.MEASURES[self.measure][0](self._pixels(x))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """How complex each image is, between 0 and 1."""
        pixels = self._pixels(x)
        value = self.MEASURES[self.measure][0](pixels)
        if self.measure == "features":
            if self.training and not values_unknown(x):
                self._learn(value, momentum=0.1)
            return self.share_of(value)
        strange = (pixels.flatten(1) - 1 / 2).abs().amax(1) > 0.52
        if not (values_unknown(x) or self._warned) and strange.any():
            self._warn(pixels[strange])
        return torch.where(strange, 1.0, self.share_of(value))

    def share_of(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The map from the measure to [0, 1], rising, piecewise linear between the quantiles."""
        points = self.quantiles.to(value.dtype)
        place = torch.searchsorted(points, value.contiguous()).clamp(1, self.POINTS - 1)
        low, high = points[place - 1], points[place]
        within = ((value - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return (place - 1 + within) / (self.POINTS - 1)

    def level_of(self, share: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Which of the levels, from 0 on, a share between 0 and 1 belongs to."""
        return (share * self.levels).long().clamp(0, self.levels - 1)

    @torch.no_grad()
    def levels_of(self, x: Float[Tensor, "batch channels height width"]) -> Int[Tensor, " batch"]:
        """The level of each image, from 0 on."""
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
        """Learns the map from the measure to [0, 1] from images like those the net will see.

        Afterwards as many of these images lie at each level; `fit` does it with the training images. The measure of
        features, which change as the net is trained, is calibrated in training mode instead, batch by batch.

        Args:
            loader: batches of images as the net is given them, alone or first in a tuple.
            mean: what was subtracted when they were normalised, a number or one a channel.
            std: what they were divided by after that.
            value_range: the lowest and the highest value of a pixel before that.
        Raises:
            ValueError: no images, or images that do not lie in `value_range` once the normalisation is undone.
        """
        device = self.quantiles.device
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))
        if self.measure == "features":
            return self
        self.value_range = torch.tensor(value_range, dtype=torch.float32, device=device)
        values = []
        for batch in loader:
            pixels = self._pixels((batch if isinstance(batch, Tensor) else batch[0]).to(device))
            if len(pixels) and (pixels.min() < -0.02 or pixels.max() > 1.02):
                raise ValueError(f"{self._found(pixels)}; {_FIX}")
            values.append(self.MEASURES[self.measure][0](pixels))
        if not sum(map(len, values)):
            raise ValueError("the loader gave no images to calibrate with")
        self._learn(torch.cat(values), momentum=1.0)
        self._warned = False
        return self

    @property
    def pin(self) -> int | None:
        """The level at which this thread holds it."""
        return self._pinned.get()

    @contextlib.contextmanager
    def pinned(self, level: int) -> Iterator[None]:
        """Inside of a `with`, calls from this thread treat every image as one of that level.

        Raises:
            ValueError: there is no such level.
        """
        if not 0 <= level < self.levels:
            raise ValueError(f"levels are numbered from 0 to {self.levels - 1}, not {level}")
        with self._pinned.given(level):
            yield

    def attach(self, net: nn.Module) -> None:
        """Makes a net's every call begin with a look at its input."""
        net.register_forward_pre_hook(self._begin, with_kwargs=True)
        net.register_forward_hook(self._end, always_call=True)

    def see(self, x: Tensor) -> "Crowd | Unseen":
        """Sorts a batch into levels."""
        if self.pin is not None:
            return Crowd([self.pin] * len(x), x.device)
        levels = self.levels_of(x)
        return Unseen(levels, {}) if values_unknown(x) else Crowd(levels.tolist(), x.device)

    def extra_repr(self) -> str:
        return f"measure={self.measure!r}, levels={self.levels}"

    def _begin(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.push(UNMEASURED)  # first of all, for `_end` comes whatever happens
        if self.measure == "features":
            return
        images = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() == 4), None)
        if images is None:
            raise ValueError("the net's depth depends on its images, [batch, channels, height, width], and it got none")
        self.calls.swap(self.see(images))

    def _end(self, *_: Any) -> None:
        self.calls.pop()

    def _pixels(self, x: Tensor) -> Tensor:
        """Images with the normalisation undone and their range brought to [0, 1], in at least float32."""
        if self.measure == "features":
            return x.float() / self.value_range[1]
        if len(self.mean) != x.shape[1]:
            raise ValueError(f"the net's depth is set by images of {len(self.mean)} channels, these have {x.shape[1]}")
        x = x if x.dtype == torch.float64 else x.float()
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
        return f"with mean and std undone, images range from {found[0]:.3g} to {found[1]:.3g}, not within {low:g} to {high:g}"

    def _warn(self, pixels: Tensor) -> None:
        self._warned = True
        message = f"{self._found(pixels)}; such images get the full depth. {_FIX}"
        if self.calibrated:
            warnings.warn(message, stacklevel=2)
        else:
            _log.warning("%s", message)


_FIX = (
    "Call pocketcnn.methods.puppet.gauge_of(net).calibrate_(loader, mean=..., std=..., value_range=...) with images as the net is given them, the "
    "mean and std they were normalised with and the range of their pixels before that"
)


def values_unknown(x: Tensor) -> bool:
    """Whether a tensor's values cannot be looked at: the net is being traced, or has no storage."""
    return x.is_meta or torch.compiler.is_compiling() or torch.compiler.is_exporting()
