"""The definitions: pure tensor mathematics, slow and obvious, correct on any device and in any dtype.

Each fast twin in `pocketcnn.kernels` is tested against the function of the same name here.
"""

from pocketcnn.numerics.condconv import condconv2d
from pocketcnn.numerics.entropy import edge_density, image_entropy, image_lot, image_variance
from pocketcnn.numerics.involution import involution2d
from pocketcnn.numerics.odeint import odeint
from pocketcnn.numerics.ring_fit import nearest_windows
from pocketcnn.numerics.ring_index import channel_indices, ring_indices, ring_kernel
from pocketcnn.numerics.similarity import (
    LogLinear,
    centred_gram,
    correlated_filters,
    filter_correlations,
    kernel_alignment,
    linear_cka,
    log_linear_fit,
)
from pocketcnn.numerics.stencil import (
    advect_diffuse,
    advect_diffuse_formed,
    courant,
    depthwise_moments,
    limit_velocity,
    perona_malik,
)

__all__ = [
    "LogLinear",
    "advect_diffuse",
    "advect_diffuse_formed",
    "centred_gram",
    "channel_indices",
    "condconv2d",
    "correlated_filters",
    "courant",
    "depthwise_moments",
    "edge_density",
    "filter_correlations",
    "image_entropy",
    "image_lot",
    "image_variance",
    "involution2d",
    "kernel_alignment",
    "limit_velocity",
    "linear_cka",
    "log_linear_fit",
    "nearest_windows",
    "odeint",
    "perona_malik",
    "ring_indices",
    "ring_kernel",
]
