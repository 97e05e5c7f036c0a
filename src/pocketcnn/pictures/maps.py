"""Feature maps of nets side by side."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pocketcnn.pictures.panels import MAPS, PANEL, colour_bar, limits_of, plane_of, show_image, show_plane
from pocketcnn.pictures.stations import feature_maps, stations
from pocketcnn.support.plots import arranged, pyplot


def draw_maps(
    images: Tensor, nets: Mapping[str, nn.Module], x: Tensor, *, layer: str | None = None, channel: int | None = None
) -> Any:
    """Draws images and their feature maps, a row for each image.

    For one net, a column for each station is drawn, each with its own colour scale. For several nets, one map of each is
    drawn, on a common scale.

    Args:
        images: [batch, channels, height, width] as uint8, as a reader knows them.
        nets: by the title of their column.
        x: the same images, normalised.
        layer: name of the module whose map is drawn. None draws all stations of one net, the last station of several.
        channel: of the maps; None for the mean over channels.
    Returns:
        A matplotlib figure.
    """
    several = len(nets) > 1
    columns: list[tuple[str, Tensor]] = []
    for title, net in nets.items():
        names = [layer] if layer else stations(net)[-1:] if several else None
        columns += [(title if several else name, maps) for name, maps in feature_maps(net, x, names).items()]
    label = "" if all(maps.shape[1] == 1 for _, maps in columns) else "mean over channels"
    if channel is not None:
        label = f"channel {channel}"
    planes = [(title, plane_of(maps, channel, title)) for title, maps in columns]
    common = limits_of([plane for _, plane in planes]) if several else None
    plots = pyplot()
    rows, count = len(images), len(planes) + 1
    figure, axes = plots.subplots(
        rows, count, figsize=(PANEL * count + 0.5, 0.95 * PANEL * rows + 0.45 + 0.3 * (not several)), squeeze=False,
        layout="constrained", gridspec_kw={"hspace": 0.02, "wspace": 0.02},
    )  # fmt: skip
    for row in range(rows):
        show_image(axes[row, 0], images[row])
        drawn = [
            show_plane(axes[row, place], plane[row], MAPS, common or limits_of([plane]))
            for place, (_, plane) in enumerate(planes, start=1)
        ]
    for axis, title in zip(axes[0], ["input", *(title for title, _ in planes)], strict=True):
        axis.set_title(title, fontsize=9)
    if several:
        colour_bar(figure, drawn[-1], axes[:, 1:], "right", label)
    else:
        for place, last in enumerate(drawn, start=1):
            colour_bar(figure, last, axes[:, place], "bottom")
        figure.supxlabel(label, fontsize=9)
    return arranged(figure)
