"""The images that the pictures of a net show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Labelled = tuple[Tensor, Tensor, Tensor, Sequence[str]]
"""Images as uint8, the same normalised, the class of each, and the names of the classes."""


@dataclass(frozen=True)
class Images:
    """Images for the figures that `draw(net, images, title)` in the file of a method yields.

    `pixels` are [batch, channels, height, width] as uint8, as a reader knows them, and `x` the same normalised for the
    net. `channel` is the channel of a map that is shown; None leaves the choice to the figure. `labelled(most)` loads up to
    so many images with their classes, for figures about many images.
    """

    pixels: Tensor
    x: Tensor
    channel: int | None
    labelled: Callable[[int], Labelled]
