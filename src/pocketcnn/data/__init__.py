"""One door to images: `load("digits" | hub id | folder)` gives decoded train, validation and test splits."""

from pocketcnn.data.augment import Augmentation, augment, shrink
from pocketcnn.data.images import BUILT_IN, DataSet, Images, generator_of, load
from pocketcnn.data.sources import read_image

__all__ = ["BUILT_IN", "Augmentation", "DataSet", "Images", "augment", "generator_of", "load", "read_image",
           "shrink"]  # fmt: skip
