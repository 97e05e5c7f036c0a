"""`evaluate`, and the check that a net fits its data."""

from typing import Literal

import torch
from torch import nn

from pocketcnn.data import DataSet, shrink
from pocketcnn.errors import BadData
from pocketcnn.support.modules import device_and_dtype, evaluating
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.engine import pl, quiet_lightning
from pocketcnn.train.module import Classifier


def evaluate(
    model: nn.Module, data: DataSet, *, split: Literal["test", "validation"] = "test", batch_size: int = 256
) -> dict[str, float]:
    """Measures loss and accuracy of a net on the test or validation split, in its own precision, on its own device.

    Returns:
        For the test split `test_loss` and `test_accuracy`, for the validation split `validation_loss` and
        `validation_accuracy`.
    Raises:
        BadData: the net does not fit the images or the classes.
    """
    check_input(model, data)
    module = Classifier(model, data, TrainConfig(batch_size=batch_size, precision="float32", channels_last="off"))
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=next(model.parameters()).device.type, devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        (trainer.test if split == "test" else trainer.validate)(module, verbose=False)
    return module.take(split)


def check_input(model: nn.Module, data: DataSet, *, share: float = 1.0) -> None:
    """Checks that a net accepts the images of a data set and has an output for each class.

    Args:
        model: any net.
        data: the data set.
        share: factor by which the sides of the images are shrunk.
    Raises:
        BadData: the net does not fit.
    """
    channels, height, width = data.input_size
    device, dtype = device_and_dtype(model)
    x = shrink(torch.zeros(1, channels, height, width), share).to(device=device, dtype=dtype)
    height, width = x.shape[2:]
    try:
        with evaluating(model):
            shape = model(x).shape
    except (RuntimeError, ValueError) as error:
        raise BadData(
            f"{data.name}: images are {channels} x {height} x {width} (channels x height x width) and the net cannot take "
            f"them ({error}); make the net with in_channels={channels}, or load the data with channels= or image_size="
        ) from error
    if len(shape) != 2 or shape[1] < len(data.classes):
        raise BadData(
            f"{data.name}: has {len(data.classes)} classes, the net's output for an image is {list(shape[1:])}; make the "
            f"net with num_classes={len(data.classes)}"
        )
