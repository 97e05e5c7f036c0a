"""The check that every exported file must pass: it gives the net's outputs, on ordinary images and on strange ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.errors import Disagreement
from pocketcnn.export._trace import quiet

BATCHES = (1, 3, 17)
TOLERANCE, STRANGE_TOLERANCE = 1e-5, 1e-4
"""The largest difference allowed on images, and on inputs that are no images: this, times the largest output of the batch
where that is above 1."""
_STRANGE = ("zeros", "black", "white", "large")

Run = Callable[[Tensor], Tensor]


def ordinary_images(count: int, input_size: tuple[int, int, int], notes: Mapping[str, Any]) -> Tensor:
    """Draws random images [count, channels, height, width] of every degree of detail, normalised as the notes say.

    They are noise with spots of several sizes and several contrasts, in 256 steps like decoded images. Without notes
    they are normalised to about mean 0 and deviation 1.
    """
    generator = torch.Generator().manual_seed(0)
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
    mean, std = (torch.tensor(notes.get(key, [number])) for key, number in (("mean", 0.5), ("std", 0.25)))
    return (pixels - mean[:, None, None]) / std[:, None, None]


def probes(
    input_size: tuple[int, int, int], notes: Mapping[str, Any], batches: Sequence[int], images: Tensor | None
) -> dict[str, Tensor]:
    """The inputs that a file is checked on, by name."""
    found = {f"batch {count}": ordinary_images(count, input_size, notes) for count in batches}
    count = batches[-1]
    if images is not None:
        for number, rows in enumerate(images[: len(images) // count * count].split(count)):
            found[f"images {number * count} to {number * count + count - 1}"] = rows
    shape = (count, *input_size)
    black, white = (normalised(torch.full(shape, value), notes) for value in (0.0, 1.0))
    return {
        **found,
        "zeros": torch.zeros(shape),
        "black": black,
        "white": white,
        "large": 100 * ordinary_images(count, input_size, notes),
    }


def differences(run: Run, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Compares the outputs of a file with those of the net, and returns the largest difference for each batch.

    Where the net overflows, as some nets do on inputs that are no images, the file must overflow too.

    Raises:
        Disagreement: a difference is more than `TOLERANCE` allows.
    """
    found = {}
    for name, x in inputs.items():
        with torch.no_grad(), quiet():
            wanted = model(x).float()
        got = run(x)
        if got.shape != wanted.shape:
            raise Disagreement(
                f"{name}: the file makes {list(got.shape)}, the net {list(wanted.shape)}; nothing was written"
            )
        finite = wanted.isfinite()
        apart = (got - wanted)[finite].abs()
        found[name] = float(apart.max()) if len(apart) else 0.0
        tolerance = STRANGE_TOLERANCE if name in _STRANGE else TOLERANCE
        allowed = tolerance * max(1.0, float(wanted[finite].abs().max()) if len(apart) else 1.0)
        if not found[name] <= allowed or got[~finite].isfinite().any():
            raise Disagreement(
                f"{name}: the file's outputs are up to {found[name]:.3g} from the net's, {allowed:.3g} is allowed; nothing "
                "was written"
            )
    return found
