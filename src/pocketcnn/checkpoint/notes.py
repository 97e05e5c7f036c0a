"""What a model file says of the images that its net was trained on."""

from typing import Any

from pocketcnn.data import DataSet


def image_notes(data: DataSet) -> dict[str, Any]:
    """What a model file should say of the images it was trained on."""
    return {
        "data": data.name,
        "classes": list(data.classes),
        "input_size": list(data.input_size),
        "mean": list(data.mean),
        "std": list(data.std),
    }
