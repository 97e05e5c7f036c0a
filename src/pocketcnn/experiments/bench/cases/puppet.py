"""The timed layer of puppet: a stage of basic blocks."""

from typing import Any

import torch

from pocketcnn.experiments.bench.cases import NUM_BLOCKS, Case, Layer, Side, leaf
from pocketcnn.experiments.bench.limits import Work
from pocketcnn.experiments.bench.settings import Shape
from pocketcnn.methods.puppet import PuppetStage
from pocketcnn.models.resnet import BasicBlock


def puppet_work(shape: Shape, itemsize: int, side: int) -> tuple[Work, Work]:
    """Work of a stage of basic blocks with N numbers in the map: served, and trained with generating its kernels.

    Served, kernels are kept, and a block is two convolutions that read their kernels. With norm and ReLU done on the way,
    it reads its input, writes and reads the map in the middle, reads its input again for the shortcut, and writes its
    output: 5 N.

    In training a block moves as much forward, and 7 N backward: two backward passes and the shortcut's gradient. All
    kernels are generated. The state of side^2 3x3 kernels moves once before each kernel but the first, with 18 side^3
    products. Each number read from it takes 4 bytes for place and sign. Backward takes twice the products, and the 4 bytes
    again.
    """
    batch, channels, height, width = shape
    numbers, weights = batch * channels * height * width, 9 * channels**2
    products = 2 * NUM_BLOCKS * 9 * numbers * channels
    moves = (2 * NUM_BLOCKS - 1) * 18 * side**3
    tables = 4 * 2 * NUM_BLOCKS * weights
    served = Work(itemsize * NUM_BLOCKS * (5 * numbers + 2 * weights), products)
    trained = Work(itemsize * NUM_BLOCKS * 12 * numbers + 2 * tables, 3 * (products + moves))
    return served, trained


def puppet_case(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    x = leaf(shape, dtype, layout)
    blocks = [BasicBlock(shape[1], shape[1], 1) for _ in range(NUM_BLOCKS)]
    stage: Any = PuppetStage(blocks, depth="fixed").to(dtype)
    stage.to(memory_format=layout).train(backward)
    served, trained = puppet_work(shape, dtype.itemsize, stage.puppeteer.rows)
    plain = stage.dense()
    sides = {
        "ours": Side(lambda: stage(x), (x, *stage.parameters())),
        "conv": Side(lambda: plain(x), (x, *plain.parameters())),
    }
    if not backward:  # `eval` discards the kernels that were kept
        sides = {"obvious": Side(lambda: stage.eval()(x), ()), **sides}
    note = f"a stage of {NUM_BLOCKS} basic blocks; conv is the ordinary stage that it equals, obvious generates its kernels anew"
    return Case(sides, trained if backward else served, note)


LAYERS = (Layer("puppet", puppet_case),)
