"""The Lightning module: augments, normalises, classifies and counts, for any net and any number of devices."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pocketcnn.data import DataSet, Images, augment, generator_of, shrink
from pocketcnn.errors import NonFiniteLoss
from pocketcnn.support.layouts import in_layout, to_layout
from pocketcnn.support.modules import device_and_dtype, hooked, maps_of
from pocketcnn.support.protocols import is_condensed
from pocketcnn.surgery.fitting import take_statistics_
from pocketcnn.train.auto import LAYOUTS
from pocketcnn.train.config import TrainConfig, learning_rate_scale
from pocketcnn.train.engine import MeanMetric, MulticlassAccuracy, pl
from pocketcnn.train.features import common_stages, map_distance
from pocketcnn.train.images import Normalize
from pocketcnn.train.loader import Loader, Share
from pocketcnn.train.optimizers import make_optimizer
from pocketcnn.train.rounding import Rounding
from pocketcnn.train.scores import USUAL, Scores, first
from pocketcnn.train.teacher import Teacher

_AT_ONCE = 500  # images that are prepared together
SMALL = 0.75  # factor for the sides of images in small_epochs


class Classifier(pl.LightningModule):
    """Trains `net` on a data set by a configuration, and learns the outputs of `teacher` if there is one.

    With test-time averaging the split `tested` has a second score, `test_tta`.

    All randomness derives from seed, epoch, step and rank.
    """

    def __init__(
        self,
        net: nn.Module,
        data: DataSet,
        config: TrainConfig,
        teacher: Teacher | None = None,
        tested: Literal["test", "validation"] = "test",
        scores: Scores = USUAL,
    ) -> None:
        super().__init__()
        self.net, self.config, self.scores = net, config, scores
        self._data = data
        self._teacher = (teacher,)  # in a tuple, so that checkpoints hold no copy of it
        self._position: dict[str, int] | None = None
        self._norms: tuple[
            nn.Module, ...
        ] = ()  # those that learn, and are not frozen; a tuple, so that they are the net's
        self.augmentation = dataclasses.replace(
            data.augmentation,
            crop=data.augmentation.crop if config.crop is None else config.crop,
            flip=data.augmentation.flip if config.flip == "auto" else config.flip == "on",
            border=config.border,
            cutout=config.cutout,
        )
        self._alternation = _alternation(data, config)
        self.rounding = None if config.bits == "off" else Rounding(net, config.bits, config.sparsity)
        # In a tuple, so that checkpoints hold no second copy of the net.
        self._callable = (torch.compile(net) if config.compile else net,)
        self._dtype = device_and_dtype(net)[1]
        self.normalize = Normalize(data.mean, data.std)
        self.memory_format = LAYOUTS[config.channels_last]
        to_layout(net, self.memory_format)
        self._stages: list[str] = []
        if teacher is not None and config.feature_weight:
            self._stages = common_stages(net, teacher.net, torch.zeros(1, *data.input_size))
        classes, averaged = len(data.classes), (f"{tested}_tta",) if config.tta != "off" else ()
        mean = {"nan_strategy": "disable"}
        right = {"num_classes": classes, "average": "micro", "validate_args": False}
        self.metrics: Any = nn.ModuleDict(
            {
                f"{split}_{name}": metric
                for split in ("train", "validation", "test", *averaged)
                for name, metric in (
                    ("loss", MeanMetric(**mean)),
                    ("accuracy", MeanMetric(**mean) if scores.metric else MulticlassAccuracy(**right)),
                )
            }
        )

    def forward(self, images: Tensor) -> Any:
        return self._callable[0](self._prepared(images))

    def _prepared(self, images: Tensor) -> Tensor:
        # In the dtype of the weights; under autocast the layers convert images themselves.
        x = self.normalize(images).to(self._dtype)
        return in_layout(x, self.memory_format)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        self._norms = self._norms or tuple(m for m in self.net.modules() if isinstance(m, _BatchNorm) and m.training)
        where = (self.config.seed, self.current_epoch, index)
        # For nets that draw random numbers themselves.
        torch.manual_seed(generator_of(*where, self.global_rank, 1).initial_seed())
        if self.config.augment:
            parts = {"part": self.global_rank, "parts": self.trainer.world_size}
            images = augment(
                images, self.augmentation, generator_of(*where), **parts, mirrored=self._mirrored(index, len(images))
            )
        seen = shrink(images, SMALL) if self.current_epoch < self.config.small_epochs else images
        with maps_of(self.net, self._stages) as maps:
            logits = self(seen)
        loss = self._loss(logits, maps, images, labels)
        # All devices decide together: if one stopped alone, the others would wait for its gradients for ever.
        if not self.trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss))):
            found = "of another device is not finite" if torch.isfinite(loss) else f"is {loss.item()}"
            layer = first_not_finite(self.net, self._prepared(seen))
            raise NonFiniteLoss(
                f"epoch {self.current_epoch + 1}, step {index + 1}: the loss {found}; "
                f"{f'the first layer whose output is not finite is {layer}; ' if layer else ''}"
                "the last checkpoint is kept; a lower lr or clip_norm=1 usually helps"
            )
        self._count("train", logits, labels, loss)
        return loss

    def _mirrored(self, index: int, batch: int) -> Tensor | None:
        """Tells which images of a batch are mirrored, if each is in every other epoch."""
        if self._alternation is None:
            return None
        first = (index * self.trainer.world_size + self.global_rank) * batch
        chosen = self._data.train.order(self.config.seed, self.current_epoch)[first : first + batch]
        return self._alternation[chosen] ^ bool(self.current_epoch % 2)

    def _loss(self, logits: Any, maps: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss of a training batch: cross entropy; with a teacher also the distances from its outputs and maps."""
        loss = self.scores.loss_of(logits, labels, label_smoothing=self.config.label_smoothing)
        teacher = self._teacher[0]
        if teacher is None:
            return loss
        with torch.no_grad(), maps_of(teacher.net, self._stages) as wanted_maps:
            wanted = first(teacher.to(images.device)(images)).float()
        share, heat = self.config.teacher_weight, self.config.temperature
        given, wanted = (F.log_softmax(found.float() / heat, dim=1) for found in (first(logits), wanted))
        # Because of the square the size of the gradients does not depend on the temperature (Hinton et al., 2015).
        apart = heat**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        loss = (1 - share) * loss + share * apart
        if not maps:
            return loss
        return loss + self.config.feature_weight * map_distance(maps, wanted_maps)

    def on_validation_epoch_start(self) -> None:
        if self.config.norm_images and self.current_epoch == self.config.epochs - 1:
            self._take_statistics()
        self._share_statistics()  # the callbacks have already put in an averaged net

    def on_test_epoch_start(self) -> None:
        self._share_statistics()

    def _take_statistics(self) -> None:
        """Gives batch norms the statistics of training images as they are."""
        batches = (images for images, _ in self._data.train.sample(self.config.norm_images).in_order(_AT_ONCE))
        prepared = ((self._prepared(images.to(self.device)),) for images in _of_one_size(batches))
        take_statistics_(self.net, prepared, self._norms)

    def _share_statistics(self) -> None:
        """Gives all devices the running statistics of the first one, whose net is kept at the end."""
        if self.trainer.world_size > 1:
            for statistic in self.net.buffers():
                torch.distributed.broadcast(statistic, src=0)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate("validation", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor]) -> None:
        logits = self(batch[0])
        self._count(split, logits, batch[1], self.scores.loss_of(logits, batch[1]))
        if f"{split}_tta_loss" in self.metrics:
            averaged = sum(weight * self(view).float() for weight, view in views(batch[0], self.config.tta))
            assert isinstance(averaged, Tensor)
            self._count(f"{split}_tta", averaged, batch[1], F.cross_entropy(averaged, batch[1]))

    def _count(self, split: str, logits: Any, labels: Tensor, loss: Tensor) -> None:
        # The loss once for each image: with NaNs allowed, torchmetrics ignores weights.
        self.metrics[f"{split}_loss"].update(loss.detach().expand(len(labels)))
        if self.scores.metric is None:
            self.metrics[f"{split}_accuracy"].update(first(logits).detach(), labels)
        else:
            found = self.scores.metric(logits, labels).detach().float().reshape(-1)
            self.metrics[f"{split}_accuracy"].update(found.expand(len(labels)))

    def take(self, split: str) -> dict[str, float]:
        """Returns mean loss and accuracy of a split since the last call, over all devices, and starts counting anew."""
        taken = {}
        for name in ("loss", "accuracy"):
            metric = self.metrics[f"{split}_{name}"]
            taken[f"{split}_{name}"] = float(metric.compute())
            metric.reset()
        return taken

    def configure_optimizers(self) -> Any:
        config, optimizer = self.config, make_optimizer(self.net, self.config, self.rounding)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_scale(step, steps, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.rounding is not None:
            self.rounding.restore_()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        if self.rounding is not None:
            self.rounding.round_(self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches))

    def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **options: Any) -> None:
        """Clips gradients, but not those of what Muon turns: these tell a direction and have lengths of their own."""
        turned = [p for group in optimizer.param_groups if group.get("kind", "rest") != "rest" for p in group["params"]]
        held = [(p, p.grad) for p in turned]
        for p in turned:
            p.grad = None
        super().configure_gradient_clipping(optimizer, *arguments, **options)
        for p, gradient in held:
            p.grad = gradient

    def train_dataloader(self) -> Loader:
        self._loader = Loader(self._data.train, self.config.batch_size, seed=self.config.seed, **self._place())
        if self._position is not None:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> Share:
        return Share(self._data.validation, max(256, self.config.batch_size), **self._place())

    def test_dataloader(self) -> Share:
        return Share(self._data.test, max(256, self.config.batch_size), **self._place())

    def _place(self) -> dict[str, int]:
        return {"rank": self.global_rank, "world": self.trainer.world_size}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counts since the epoch began, summed over the devices, and the position of the next batch."""
        counted = {}
        for name, metric in self.metrics.items():
            with metric.sync_context():
                counted[name] = {key: value.clone() for key, value in metric.metric_state.items()}
        checkpoint |= {"counted": counted, "position": self._loader.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counts on the first device; the others count from zero."""
        self._position = checkpoint["position"]  # Lightning restores it only within an epoch
        if self.global_rank == 0:
            for name, states in checkpoint["counted"].items():
                for key, value in states.items():
                    setattr(self.metrics[name], key, value.to(self.metrics[name].device))


def _of_one_size(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the batches that are as large as the first one."""
    size = 0
    for batch in batches:
        size = size or len(batch)
        if len(batch) == size:
            yield batch


def _alternation(data: DataSet, config: TrainConfig) -> Tensor | None:
    """Draws which images are mirrored in even epochs, if each is in every other."""
    if config.flip != "alternate" or not config.augment:
        return None
    if not isinstance(data.train, Images):
        raise ValueError(
            f"{data.name}: flip 'alternate' takes images in memory, and these are decoded while they are read"
        )
    generator = generator_of(config.seed, 0, 0, 0, 0)
    return torch.randint(0, 2, (len(data.train),), generator=generator).bool()


def views(images: Tensor, tta: str) -> Iterator[tuple[float, Tensor]]:
    """Yields the images that test-time averaging shows to a net, with the weights of the outputs.

    Args:
        images: [batch, channels, height, width].
        tta: `"flip"` for an image and its mirror image; `"flip_shift"` for both, which count for half, and both shifted by
            a pixel up and left, and down and right, with the edges reflected.
    """
    shifts = [(0.5, images)]
    if tta == "flip_shift":
        height, width = images.shape[2:]
        padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect" if min(height, width) > 1 else "replicate")
        shifts += [(0.25, padded[:, :, at : at + height, at : at + width]) for at in (0, 2)]
    total = 2 * sum(weight for weight, _ in shifts)
    for weight, shifted in shifts:
        yield weight / total, shifted
        yield weight / total, shifted.flip(3)


@torch.no_grad()
def first_not_finite(net: nn.Module, x: Tensor) -> str:
    """Finds the first layer whose output for a batch is NaN or infinite, and returns its name and class; "" if none.

    If the layer lies inside a condensed layer, the condensed layer is returned.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(name)

    parts = dict(net.named_modules())
    with hooked(part.register_forward_hook(partial(look, name)) for name, part in parts.items() if name):
        net(x)
    if not found:
        return ""
    names = found[0].split(".")
    prefixes = [".".join(names[: end + 1]) for end in range(len(names))]
    name = next((prefix for prefix in prefixes if is_condensed(parts[prefix])), found[0])
    return f"{name} ({type(parts[name]).__name__})"
