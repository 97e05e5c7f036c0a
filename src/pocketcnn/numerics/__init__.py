"""The definitions: pure tensor mathematics, slow and obvious, right on any device and in any dtype.

Every fast twin in `pocketcnn.kernels` is tested against the function of the same name here.
"""

from pocketcnn.numerics.dynamic_conv import condconv2d, involution2d
from pocketcnn.numerics.ring_index import ring_indices, ring_kernel

__all__ = ["condconv2d", "involution2d", "ring_indices", "ring_kernel"]
