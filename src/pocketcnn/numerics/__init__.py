"""The definitions: pure tensor mathematics, slow and obvious, right on any device and in any dtype.

Every fast twin in `pocketcnn.kernels` is tested against the function of the same name here.
"""

from pocketcnn.numerics.dynamic_conv import condconv2d, involution2d
from pocketcnn.numerics.ring_index import ring_indices, ring_kernel
from pocketcnn.numerics.stencil import advect_diffuse, courant, limit_velocity, perona_malik

__all__ = [
    "advect_diffuse",
    "condconv2d",
    "courant",
    "involution2d",
    "limit_velocity",
    "perona_malik",
    "ring_indices",
    "ring_kernel",
]
