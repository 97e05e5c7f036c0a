"""Data sets of images. `load("digits" | hub id | folder)` gives decoded train, validation and test splits;
`open_stream` gives splits of a folder that does not fit in memory."""

from pocketcnn.data.augment import Augmentation, augment, shrink
from pocketcnn.data.decode import read_image
from pocketcnn.data.given import from_dataset, from_tensors
from pocketcnn.data.load import load, load_unlabelled
from pocketcnn.data.sets import BUILT_IN, DataSet, Images, generator_of
from pocketcnn.data.shards import open_stream
from pocketcnn.data.stream import Stream

__all__ = [
    "BUILT_IN",
    "Augmentation",
    "DataSet",
    "Images",
    "Stream",
    "augment",
    "from_dataset",
    "from_tensors",
    "generator_of",
    "load",
    "load_unlabelled",
    "open_stream",
    "read_image",
    "shrink",
]
