"""Pictures of what a trained net does to an image: feature maps, velocities, diffusivities, the solver's steps; of how
deep which image goes, and the kernels that an ODE makes; of what routers, pixels' kernels and rings have learned; and of
how alike nets and their filters are."""

from pocketcnn.pictures.alike import (
    alignments,
    draw_correlated,
    draw_law,
    draw_similarity,
    filter_similarity,
    layer_kernels,
    same_stations,
    similarity,
    station_grams,
)
from pocketcnn.pictures.depth import draw_kernels, draw_levels
from pocketcnn.pictures.inside import (
    class_share,
    draw_pixel_kernels,
    draw_ring,
    draw_routing,
    pixel_kernels,
    ring_fraction,
    ring_overlap,
    ring_usage,
    rings,
    routing,
)
from pocketcnn.pictures.maps import Fields, draw_fields, draw_maps, feature_maps, solver_fields, stations, write_figure

__all__ = [
    "Fields",
    "alignments",
    "class_share",
    "draw_correlated",
    "draw_fields",
    "draw_kernels",
    "draw_law",
    "draw_levels",
    "draw_maps",
    "draw_pixel_kernels",
    "draw_ring",
    "draw_routing",
    "draw_similarity",
    "feature_maps",
    "filter_similarity",
    "layer_kernels",
    "pixel_kernels",
    "ring_fraction",
    "ring_overlap",
    "ring_usage",
    "rings",
    "routing",
    "same_stations",
    "similarity",
    "solver_fields",
    "station_grams",
    "stations",
    "write_figure",
]
