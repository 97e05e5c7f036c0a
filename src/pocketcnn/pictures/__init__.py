"""Pictures of trained nets: their feature maps, how alike nets and their filters are, and what each method has learned.

A method's pictures are in the file of its name, whose function `draw(net, images, title)` yields a name and a figure for
each of them: velocities, diffusivities and steps of a solver; the depth of each image and the kernels that an ODE makes;
what routers, rings and the kernels of pixels have learned.
"""

from pocketcnn.pictures.condconv import class_share, draw_routing, routing
from pocketcnn.pictures.images import Images
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
    "Images",
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
