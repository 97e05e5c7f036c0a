"""Classifies image files with a net that `pocketcnn export` wrote; needs onnxruntime, numpy and pillow, nothing else.

    pocketcnn export cifar10/resnet20_ring28 --format onnx --output resnet20.onnx
    python examples/serve_onnx.py resnet20.onnx photo.jpg other.png

The file itself holds its class names, the size of its images and how to normalise them.
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def open_net(path):
    """Opens a session, and reads the file's notes on images and classes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["pocketcnn"])


def read(path, notes):
    """Reads an image as the net's input [channels, height, width]: upright, cropped to the middle, resized and normalised."""
    channels, height, width = notes["input_size"]
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    normalised = (pixels - np.float32(notes["mean"])) / np.float32(notes["std"])
    return normalised.transpose(2, 0, 1)


def classify(session, images):
    """Probability of each class, [batch, classes]."""
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.stack(images)})
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", help="a file that pocketcnn export wrote")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="number of classes shown for each image")
    given = parser.parse_args(words)
    session, notes = open_net(given.net)
    shares = classify(session, [read(path, notes) for path in given.images])
    for path, row in zip(given.images, shares, strict=True):
        best = row.argsort()[::-1][: given.top]
        print(path, *(f"{notes['classes'][number]} {100 * row[number]:.1f}%" for number in best), sep="  ")


if __name__ == "__main__":
    main()
