"""Pictures of what a trained net does to an image: feature maps, velocities, diffusivities, the solver's steps; of how
deep which image goes, and the kernels that an ODE makes; of what routers, pixels' kernels and rings have learned; and of
how alike nets and their filters are."""

from pocketcnn.pictures.condconv import class_share, draw_routing, routing
from pocketcnn.pictures.involution import draw_pixel_kernels, pixel_kernels
from pocketcnn.pictures.maps import draw_maps
from pocketcnn.pictures.panels import write_figure
from pocketcnn.pictures.pde import Fields, draw_fields, solver_fields
from pocketcnn.pictures.puppet import draw_kernels, draw_levels
from pocketcnn.pictures.ring import draw_ring, ring_fraction, ring_overlap, ring_usage, rings
from pocketcnn.pictures.similarity import (
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
from pocketcnn.pictures.stations import feature_maps, stations

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
