"""One door to images: `load("digits" | hub id | folder)` gives decoded train, validation and test splits; `open_stream`
gives those of a folder that does not fit in memory."""

from pocketcnn.data.augment import Augmentation, augment, shrink
from pocketcnn.data.images import BUILT_IN, DataSet, Images, generator_of, load, load_unlabelled
from pocketcnn.data.sources import read_image
from pocketcnn.data.stream import Stream, open_stream

__all__ = [
    "BUILT_IN",
    "Augmentation",
    "DataSet",
    "Images",
    "Stream",
    "augment",
    "generator_of",
    "load",
    "load_unlabelled",
    "open_stream",
    "read_image",
    "shrink",
]
