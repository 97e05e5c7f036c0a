"""`evaluate`: loss and accuracy of a net on a split."""

from typing import Literal

from torch import nn

from pocketcnn.data import DataSet
from pocketcnn.support.modules import device_and_dtype
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.engine import pl, quiet_lightning
from pocketcnn.train.module import Classifier
from pocketcnn.train.outputs import check_input
from pocketcnn.train.scores import Loss, Metric, Scores


def evaluate(
    model: nn.Module,
    data: DataSet,
    *,
    split: Literal["test", "validation"] = "test",
    batch_size: int = 256,
    tta: Literal["off", "flip", "flip_shift"] = "off",
    loss: Loss | None = None,
    metric: Metric | None = None,
) -> dict[str, float]:
    """Measures loss and accuracy of a net on the test or validation split, in its own precision, on its own device.

    With `tta`, scores of averaged outputs stand beside the ordinary ones: over an image and its mirror image, or over both
    also shifted by a pixel. `loss` and `metric` are as in `fit`.

    Returns:
        For the test split `test_loss` and `test_accuracy`, for the validation split `validation_loss` and
        `validation_accuracy`. With `tta` also `test_tta_loss` and so on.
    Raises:
        BadData: the net does not fit the images or the classes, or returns several outputs.
    """
    scores = Scores(loss, metric)
    check_input(model, data, scores=scores)
    config = TrainConfig(batch_size=batch_size, precision="float32", channels_last="off", tta=tta)
    module = Classifier(model, data, config, tested=split, scores=scores)
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=device_and_dtype(model)[0].type, devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        (trainer.test if split == "test" else trainer.validate)(module, verbose=False)
    return {**module.take(split), **(module.take(f"{split}_tta") if tta != "off" else {})}
