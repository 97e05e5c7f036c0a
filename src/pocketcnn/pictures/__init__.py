"""Pictures of what a trained net does to an image: feature maps, velocities, diffusivities, the solver's steps; and of
how deep which image goes, and the kernels that an ODE makes."""

from pocketcnn.pictures.depth import draw_kernels, draw_levels
from pocketcnn.pictures.maps import Fields, draw_fields, draw_maps, feature_maps, solver_fields, stations, write_figure

__all__ = [
    "Fields",
    "draw_fields",
    "draw_kernels",
    "draw_levels",
    "draw_maps",
    "feature_maps",
    "solver_fields",
    "stations",
    "write_figure",
]
