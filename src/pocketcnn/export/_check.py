"""The check that every exported file must pass: it gives the net's outputs, on ordinary images and on strange ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.errors import Disagreement
from pocketcnn.export._trace import quiet
from pocketcnn.support.calls import Inputs, batches_of
from pocketcnn.support.copying import copied

BATCHES = (1, 3, 17)
TOLERANCE, STRANGE_TOLERANCE = 1e-5, 1e-4
"""The largest difference allowed on images, and on inputs that are no images: this, times the largest output of the batch
where that is above 1."""
_ROUNDING, _MOST = 8, 1e-2
"""A difference is allowed too up to so many times the net's own rounding error, which in deep or badly scaled nets is more;
on ordinary images never above this share of the largest output, because nothing would be checked then."""
_HUGE = (
    1e15  # an example with larger outputs is not compared where the file overflows: so do squares and products inside
)
_AT_ONCE = 4  # images that go through the net in float64 together, to bound its memory
_STRANGE = ("zeros", "black", "white", "large")

Run = Callable[..., Any]


def ordinary_inputs(count: int, sizes: Sequence[tuple[int, ...]], notes: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Draws what a net of inputs of some sizes is called with, each input with images of its own."""
    return tuple(ordinary_images(count, size, notes, place) for place, size in enumerate(sizes))


def ordinary_images(count: int, input_size: tuple[int, ...], notes: Mapping[str, Any], seed: int = 0) -> Tensor:
    """Draws random images [count, channels, height, width] of every degree of detail, normalised as the notes say.

    They are noise with spots of several sizes and several contrasts, in 256 steps like decoded images. Without notes
    they are normalised to about mean 0 and deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(input_size) != 3:  # no images
        return torch.randn(count, *input_size, generator=generator)
    channels, *size = input_size
    images = []
    for number in range(count):
        spots = [max(1, side >> (number % 4)) for side in size]
        noise = torch.rand(1, channels, *spots, generator=generator)
        contrast = (1 + number % 5) / 5
        images.append(F.interpolate(0.5 + contrast * (noise - 0.5), size=size, mode="bilinear"))
    pixels = (255 * torch.cat(images)).round() / 255
    return normalised(pixels, notes)


def normalised(pixels: Tensor, notes: Mapping[str, Any]) -> Tensor:
    """Normalises images in [0, 1] as in the net's training."""
    # Of several inputs the notes say of one how it is normalised: of that which has as many channels.
    fits = len(notes.get("mean", [0])) in (1, pixels.shape[1] if pixels.dim() > 1 else 1)
    known = notes if fits else {}
    mean, std = (torch.tensor(known.get(key, [number])) for key, number in (("mean", 0.5), ("std", 0.25)))
    along = [-1, *[1] * (pixels.dim() - 2)]
    return (pixels - mean.view(along)) / std.view(along)


def probes(
    sizes: Sequence[tuple[int, ...]],
    notes: Mapping[str, Any],
    batches: Sequence[int],
    images: Inputs | None,
    strange: bool = True,
) -> dict[str, tuple[Tensor, ...]]:
    """What a file is checked on, by name: a tensor for each input, whose sizes are given; also what is no image, if `strange`."""
    found = {f"batch {count}": ordinary_inputs(count, sizes, notes) for count in batches}
    count = batches[-1]
    if images is not None:
        given = images if isinstance(images, tuple) else (images,)
        for first in range(0, len(given[0]) // count * count, count):
            found[f"images {first} to {first + count - 1}"] = tuple(one[first : first + count] for one in given)

    if not strange:
        return found

    def filled(value: float) -> tuple[Tensor, ...]:
        return tuple(torch.full((count, *size), value) for size in sizes)

    return {
        **found,
        "zeros": filled(0.0),
        "black": tuple(normalised(one, notes) for one in filled(0.0)),
        "white": tuple(normalised(one, notes) for one in filled(1.0)),
        "large": tuple(100 * one for one in ordinary_inputs(count, sizes, notes)),
    }


def differences(run: Run, model: nn.Module, inputs: Mapping[str, tuple[Tensor, ...]]) -> dict[str, float]:
    """Compares the outputs of a file with those of the net, and returns the largest difference for each batch.

    Where the net overflows, as some nets do on inputs that are no images, the file must overflow too; where its outputs are
    huge, the file may. Where the file differs by more than `TOLERANCE`, the net is compared with itself in float64: a file
    cannot be nearer to it than its own rounding.

    Raises:
        Disagreement: a difference is more than `TOLERANCE` or the net's rounding allows.
    """
    found = {}
    for name, given in inputs.items():
        with torch.no_grad(), quiet():
            wanted = _several(model(*given))
        got = _several(run(*given))
        if [y.shape for y in got] != [y.shape for y in wanted]:
            shapes = [" and ".join(str(list(y.shape)) for y in some) for some in (got, wanted)]
            raise Disagreement(f"{name}: the file makes {shapes[0]}, the net {shapes[1]}; nothing was written")
        found[name] = max(
            _apart(name, place, one, other, model, given)
            for place, (one, other) in enumerate(zip(got, wanted, strict=True))
        )
    return found


def _several(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(y.float() for y in (outputs if isinstance(outputs, tuple) else (outputs,)))


def _apart(name: str, place: int, got: Tensor, wanted: Tensor, model: nn.Module, given: tuple[Tensor, ...]) -> float:
    """The largest difference of one output from that of the net."""
    rows = [len(wanted), -1]
    huge = (wanted.abs() > _HUGE).reshape(rows).any(1) & ~got.isfinite().reshape(rows).all(1)
    finite = wanted.isfinite() & ~huge.view(-1, *[1] * (wanted.dim() - 1))
    apart = (got - wanted)[finite].abs()
    found = float(apart.max()) if len(apart) else 0.0
    tolerance = STRANGE_TOLERANCE if name in _STRANGE else TOLERANCE
    scale = max(1.0, float(wanted[finite].abs().max()) if len(apart) else 1.0)
    allowed = tolerance * scale
    if not found <= allowed:
        most = _MOST * scale if name.startswith("batch") else math.inf
        allowed = max(allowed, min(_ROUNDING * rounding(model, given, wanted, place), most))
    if not found <= allowed or got[~wanted.isfinite()].isfinite().any():
        raise Disagreement(
            f"{name}: the file's outputs are up to {found:.3g} from the net's, {allowed:.3g} is allowed; nothing was written"
        )
    return found


def rounding(model: nn.Module, given: tuple[Tensor, ...], wanted: Tensor, place: int = 0) -> float:
    """Measures how far the outputs of a net in float32 are from those in float64; 0 if it cannot run in float64.

    Args:
        model: in float32; it is left alone.
        given: what it is called with.
        wanted: the net's outputs for them; of several, the one of that `place`.
        place: its number.
    Cost: a copy of the net in float64, and a pass of all examples through it.
    """
    try:
        with torch.no_grad(), quiet():
            wide = copied(model).double()
            exact = torch.cat(
                [_of_place(wide(*(one.double() for one in rows)), place) for rows in batches_of(given, _AT_ONCE)]
            )
    except Exception:  # a foreign net may make tensors of its own, in float32
        return 0.0
    finite = wanted.isfinite() & exact.isfinite()
    apart = (wanted.double() - exact)[finite].abs()
    return float(apart.max()) if len(apart) else 0.0


def _of_place(outputs: Any, place: int) -> Tensor:
    return outputs[place] if isinstance(outputs, tuple) else outputs
