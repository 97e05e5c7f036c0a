"""Pictures of what a trained net does to an image: feature maps, velocities, diffusivities, the solver's steps."""

from pocketcnn.pictures.maps import Fields, draw_fields, draw_maps, feature_maps, solver_fields, stations, write_figure

__all__ = ["Fields", "draw_fields", "draw_maps", "feature_maps", "solver_fields", "stations", "write_figure"]
