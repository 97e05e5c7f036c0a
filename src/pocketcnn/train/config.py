"""Training settings: one frozen record, whose fields are also the command line's flags, and the presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from pocketcnn.support.ranges import Count, Fraction, NotNegative, Number, Positive, Seed, Share, out_of_range


@dataclass(frozen=True)
class TrainConfig:
    """Training settings: every choice that changes the result; written to the run's `config.json`."""

    epochs: Count = 20
    """Passes over the training images, 1 or more."""
    batch_size: Count = 128
    """Images per step and device, 1 or more."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """SGD with momentum, AdamW, or Muon for kernels with SGD for what is left."""
    lr: Positive = 0.1
    """Highest learning rate of the schedule, more than 0; of Muon, the length of a step as a share of the kernel's norm."""
    momentum: Fraction = 0.9
    """Momentum of SGD or Muon, in [0, 1)."""
    state_lr: Positive = 0.06
    """Highest learning rate of Muon for what shared kernels are read off (a ring, a puppeteer): a step as a share of its norm."""
    rest_lr: Positive = 0.1
    """Highest learning rate of what Muon leaves to SGD, more than 0."""
    rest_momentum: Fraction = 0.85
    """Momentum of what Muon leaves to SGD, in [0, 1)."""
    norm_bias_factor: Positive = 1.0
    """Factor for the learning rate of the biases of norms, more than 0; their weight decay is divided by it."""
    nesterov: bool = True
    """Use Nesterov momentum in SGD."""
    weight_decay: NotNegative = 5e-4
    """Strength of the decay of all parameters towards zero, 0 or more."""
    schedule: Literal["one_cycle", "cosine", "linear", "steps"] = "one_cycle"
    """Course of the learning rate: one_cycle rises and falls; cosine and linear warm up, then fall along a cosine or a line; steps falls at milestones."""
    warmup: Fraction = 0.25
    """Share of the training during which the rate rises, in [0, 1); unused by schedule steps."""
    milestones: tuple[Count, ...] = ()
    """Epochs after which schedule steps lowers the learning rate, each 1 or more."""
    decay: Share = 0.1
    """Factor for the learning rate at each milestone, in (0, 1]."""
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread evenly over all classes, in [0, 1)."""
    teacher: str = ""
    """Model file of a trained net; its outputs are learnt as well as the labels."""
    teacher_weight: Share = 0.7
    """Share of the loss that compares the outputs with the teacher's, in (0, 1]; the labels get the rest."""
    temperature: Positive = 3.0
    """Divisor of both nets' outputs before they are compared, more than 0; a higher one gives wrong classes more weight."""
    feature_weight: NotNegative = 0.0
    """Weight of the feature loss, 0 or more: mean squared distance between student and teacher feature maps after each stage, where shapes agree."""
    clip_norm: NotNegative = 0.0
    """Largest norm of the gradients; larger ones are scaled down to it; 0 for no limit."""
    ema_decay: Fraction = 0.0
    """Decay per step of a moving average of the weights, which is evaluated and kept, in [0, 1); 0 for no average."""
    augment: bool = True
    """Shift and mirror training images as suits the data set."""
    crop: Number | None = None
    """Largest shift of training images in pixels; None for what suits the data set."""
    flip: Literal["auto", "on", "off", "alternate"] = "auto"
    """Mirror training images left to right at random, or each one every other epoch; auto for what suits the data set."""
    border: Literal["black", "reflect"] = "black"
    """Pixels that enter a shifted training image: black, or those inside, reflected."""
    cutout: Number = 0
    """Side in pixels of a black square at a random place in each training image; 0 for none."""
    small_epochs: Number = 0
    """First epochs in which images are shrunk to three quarters of their side, for speed; 0 for none."""
    all_images: bool = False
    """Train on the validation images too, once nothing is left to choose; validation scores are those of seen images then."""
    tta: Literal["off", "flip", "flip_shift"] = "off"
    """Test also with outputs averaged over an image and its mirror image, and over both shifted by a pixel; scores of their own."""
    bits: Literal["off", "8", "4", "3", "2", "ternary", "1"] = "off"
    """Bits of each weight, rounded in every step while exact weights are trained; the first and the last layer have 8."""
    sparsity: Fraction = 0.0
    """Share of the weights that become zero, in [0, 1); the first and the last layer keep theirs; needs bits."""
    norm_images: Number = 0
    """About how many training images, neither shifted nor mirrored, batch norms take their statistics from in the end; 0 keeps the running ones."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the forward pass; auto measures which is faster for this net on this device."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Store images and kernels with channels last; auto measures which layout is faster, together with the precision."""
    compile: bool = False
    """Compile the net with torch.compile: a slow start, then faster steps."""
    seed: Seed = 0
    """Seed of the initial weights, the order of images and the augmentation, below 2**32."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list, where it was read from a file
        bad = out_of_range(self)
        if self.small_epochs > self.epochs:
            bad.append(f"small_epochs must lie between 0 and epochs, got {self.small_epochs} of {self.epochs}")
        if self.feature_weight > 0 and (self.compile or self.small_epochs):
            bad.append("feature_weight reads feature maps at full image size; leave out compile and small_epochs")
        for field in dataclasses.fields(self):
            choices = get_args(field.type) if get_origin(field.type) is Literal else ()
            if choices and getattr(self, field.name) not in choices:
                known = ", ".join(map(str, choices))
                bad.append(f"no {field.name} {getattr(self, field.name)!r}; known: {known}")
        if self.bits != "off" and self.ema_decay:
            bad.append("an average of weights (ema_decay) has more bits than the weights; leave out ema_decay or bits")
        if self.norm_images == 1:
            bad.append("norm_images must be 0, or 2 or more: one image has no variance")
        if self.sparsity and self.bits in ("off", "1"):
            bad.append("sparsity takes weights that are rounded and can be zero; give bits 8, 4, 3, 2 or ternary")
        if bad:
            raise ValueError("; ".join(bad))


PRESETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    # 1,295 digits of 8x8 pixels: small batches for enough steps, seconds per run.
    "demo": TrainConfig(epochs=12, batch_size=64, lr=0.1, precision="float32", channels_last="off"),
    # Ours, for the best accuracy in a quarter of an hour on two cores, chosen on validation images; see docs/training.md.
    "quick": TrainConfig(epochs=24, small_epochs=14, lr=0.2, warmup=0.2, precision="bfloat16", channels_last="on"),
    # For wide nets in a few epochs, after the CIFAR-10 speed runs; rates found on validation images, see docs/training.md.
    "speedrun": TrainConfig(
        epochs=20,
        small_epochs=8,
        batch_size=1000,
        optimizer="muon",
        lr=0.2,
        momentum=0.6,
        rest_lr=1.5,
        norm_bias_factor=64.0,
        weight_decay=2e-3,
        schedule="linear",
        warmup=0.0,
        label_smoothing=0.2,
        flip="alternate",
        crop=4,
        border="reflect",
        cutout=8,
        tta="flip_shift",
        precision="bfloat16",
        channels_last="on",
    ),
    # Ours, for the best accuracy in the end; give it a teacher where there is one.
    "best": TrainConfig(epochs=200, lr=0.2, schedule="cosine", warmup=0.05, cutout=8, ema_decay=0.999, temperature=4.0),
    # Ours, for a net that starts from a trained net's weights and learns from that net; see docs/fit.md.
    "distil": TrainConfig(
        epochs=5, lr=0.05, warmup=0.1, teacher_weight=0.9, temperature=4.0, precision="bfloat16", channels_last="on"
    ),
    # Ours, for a trained wide net that becomes ternary and sparse; see docs/small_files.md.
    "few_bits": TrainConfig(
        epochs=24,
        small_epochs=12,
        batch_size=500,
        lr=0.1,
        warmup=0.1,
        teacher_weight=0.9,
        temperature=4.0,
        flip="alternate",
        crop=4,
        border="reflect",
        bits="ternary",
        sparsity=0.94,
        norm_images=5000,
        precision="bfloat16",
        channels_last="on",
    ),
    # Mukherjee's second table.
    "report": TrainConfig(epochs=200, batch_size=32, lr=1e-2, nesterov=False, schedule="cosine", warmup=0.0),
    # Kag & Saligrama, CVPR 2022, on CIFAR.
    "paper_pde": TrainConfig(epochs=300, batch_size=32, schedule="steps", milestones=(150, 225), weight_decay=6e-5),
    # Kao's comparison of ResNet-18s.
    "compare30": TrainConfig(epochs=30, batch_size=64),
}


def learning_rate_scale(step: int, steps: int, config: TrainConfig) -> float:
    """Computes the learning rate at a step, of `steps` in all, as a share of the highest.

    `one_cycle` starts at 1/25 and rises along a cosine; `cosine` and `linear` start near 0 and rise along a line. They rise
    for `warmup * steps` steps, then fall to 0, `linear` along a line and the others along a cosine. `steps` starts at 1 and
    is multiplied by `decay` after each epoch in `milestones`.

    Example:
        >>> [round(learning_rate_scale(s, 8, TrainConfig(schedule="cosine")), 2) for s in range(9)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07, 0.0]
        >>> [learning_rate_scale(s, 8, TrainConfig(epochs=4, schedule="steps", milestones=(1, 3))) for s in (1, 2, 6)]
        [1.0, 0.1, 0.010000000000000002]
    """
    if config.schedule == "steps":
        return config.decay ** sum(step * config.epochs >= milestone * steps for milestone in config.milestones)
    rising = round(config.warmup * steps)
    if step < rising:
        if config.schedule in ("cosine", "linear"):
            return (step + 1) / rising
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * step / rising)) / 2
    gone = min(1.0, (step - rising) / max(1, steps - rising))
    return 1 - gone if config.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
