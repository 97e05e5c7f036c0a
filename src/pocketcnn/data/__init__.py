"""One door to images: `load("digits" | hub id | folder)` gives decoded train, validation and test splits."""

from pocketcnn.data.augment import Augmentation, augment
from pocketcnn.data.images import BUILT_IN, DataSet, Images, load
from pocketcnn.data.sources import read_image

__all__ = ["BUILT_IN", "Augmentation", "DataSet", "Images", "augment", "load", "read_image"]
