"""Settings of a run: shapes, batches and times."""

from dataclasses import dataclass

Shape = tuple[int, int, int, int]  # batch, channels, height, width
SECTIONS = ("layers", "nets", "goals")


@dataclass(frozen=True)
class Settings:
    """The amount that is measured, and the time that it may take.

    `shapes` are the inputs of the layers; the solver has `solver_shape` as one more. `deep_batch` images go through the
    ResNet32s, `wide_batch` through the ResNet18s, `ring_batch` through the training step of which the ring's share is
    measured, `puppet_batches` through the net of mixed depth. A case of a layer is timed for `layer_seconds`, a group of
    nets for `net_seconds`, and each for three rounds at least. Once a section has taken its `..._minutes`, it compiles
    nothing more, and its records say so: on a machine that has compiled nothing before, compiling takes most of a run.
    """

    shapes: tuple[Shape, ...]
    solver_shape: Shape
    deep_batch: int
    wide_batch: int
    ring_batch: int
    puppet_batches: tuple[int, ...]
    image_side: int = 32
    width: float = 1.0
    compiled: bool = True
    first_use: bool = True
    layer_seconds: float = 1.0
    net_seconds: float = 12.0
    layers_minutes: float = 6.0
    nets_minutes: float = 9.0


_SHAPES = ((64, 32, 32), (128, 16, 16), (256, 8, 8))
FULL = Settings(
    shapes=(*((32, *shape) for shape in _SHAPES), *((1, *shape) for shape in _SHAPES)),
    solver_shape=(128, 16, 32, 32),
    deep_batch=128,
    wide_batch=32,
    ring_batch=128,
    puppet_batches=(64, 256),
)
QUICK = Settings(
    shapes=((4, 64, 16, 16), (1, 64, 16, 16)),
    solver_shape=(16, 16, 32, 32),
    deep_batch=16,
    wide_batch=4,
    ring_batch=8,
    puppet_batches=(32,),
    width=0.5,
    compiled=False,
    first_use=False,
    layer_seconds=0.1,
    net_seconds=0.5,
)
