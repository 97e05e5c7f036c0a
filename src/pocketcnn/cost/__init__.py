"""Costs of a net: stored parameters, bytes, multiply-adds, depth, time and memory, as frozen records."""

from pocketcnn.cost.images import ImageCosts, measure_images
from pocketcnn.cost.latency import Latency, measure_latency
from pocketcnn.cost.macs import Cost, macs_by_module, measure
from pocketcnn.cost.memory import measure_memory
from pocketcnn.cost.params import count_params, distinct_tensors, separate, serialized_bytes, tensors_by_all_names
from pocketcnn.support.protocols import gauge_of

__all__ = [
    "Cost",
    "ImageCosts",
    "Latency",
    "count_params",
    "distinct_tensors",
    "gauge_of",
    "macs_by_module",
    "measure",
    "measure_images",
    "measure_latency",
    "measure_memory",
    "separate",
    "serialized_bytes",
    "tensors_by_all_names",
]
