import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pocketcnn.experiments.bench import QUICK
from pocketcnn.experiments.bench.cases import LAYOUTS, conv_work
from pocketcnn.experiments.bench.cases.condconv import condconv_work
from pocketcnn.experiments.bench.cases.involution import involution_work
from pocketcnn.experiments.bench.cases.pde import pde_work
from pocketcnn.experiments.bench.cases.puppet import puppet_work
from pocketcnn.experiments.bench.cases.ring import ring_work
from pocketcnn.experiments.bench.layers import layers_timed
from pocketcnn.experiments.bench.limits import Work
from pocketcnn.methods import METHODS
from pocketcnn.methods.puppet import PuppetStage
from pocketcnn.models.resnet import BasicBlock

TIMED = {layer.name: layer.case for layer in layers_timed()}
SHAPE = (2, 16, 4, 4)  # 512 numbers; a 3x3 kernel of 16 to 16 channels has 2,304


@pytest.mark.parametrize("layer", TIMED)
@pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
def test_sides_compute_the_same(layer, layout):
    sides = TIMED[layer](SHAPE, torch.float32, layout, False).sides
    with torch.inference_mode():
        torch.testing.assert_close(sides["obvious"].call(), sides["ours"].call(), rtol=1e-4, atol=1e-4)
        if layer == "puppet":
            torch.testing.assert_close(sides["conv"].call(), sides["ours"].call(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", TIMED)
def test_everything_that_learns_gets_a_gradient_on_every_side(layer):
    sides = TIMED[layer](SHAPE, torch.bfloat16, torch.channels_last, True).sides
    for name, side in sides.items():
        if name != "compiled":
            y = side.call()
            grads = torch.autograd.grad(y, side.learns, torch.ones_like(y))
            assert len(grads) >= 2
            assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("works", "forward", "backward"),
    [
        # 2 * 512 + 2,304 numbers, 9 * 512 * 16 products; 3 * 512 + 2 * 2,304 and twice.
        (conv_work(SHAPE, 4), Work(13_312, 73_728), Work(24_576, 147_456)),
        (conv_work(SHAPE, 2), Work(6_656, 73_728), Work(12_288, 147_456)),
        # 6 * 512 numbers, (6 * 5 + 9) * 512; 11 * 512 numbers, (19 * 5 + 18) * 512.
        (pde_work(SHAPE, 4), Work(12_288, elementwise=19_968), Work(22_528, elementwise=57_856)),
        # 2 * 512 + 9 * 512 / 16 numbers, 9 * 512; 3 * 512 + 2 * 288 numbers and twice.
        (involution_work(SHAPE, 4, 3), Work(5_248, elementwise=4_608), Work(8_448, elementwise=9_216)),
        # 4 experts: 1,024 + 9,216 numbers, 73,728 + 2 * 9,216; 1,536 + 2 * 9,216 numbers and twice.
        (condconv_work(SHAPE, 4), Work(40_960, 92_160), Work(79_872, 184_320)),
        # Ring of 230: 1,024 + 230 numbers and 4 * 2,304 bytes; 1,536 + 230 numbers and the same bytes.
        (ring_work(SHAPE, 4), Work(14_232, 73_728), Work(16_280, 147_456)),
    ],
)
def test_work_worked_out_by_hand(works, forward, backward):
    assert works == (forward, backward)


def test_work_of_a_puppet_by_hand():
    """The stage has 8 convolutions. Served: 4 * (5 * 512 + 2 * 2,304) numbers. Trained: 4 * 12 * 512 numbers and twice
    4 * 8 * 2,304 bytes of tables; a state of 2x2 kernels moves 7 times, with 18 * 8 products each."""
    served, trained = puppet_work(SHAPE, 4, 2)
    assert served == Work(114_688, 589_824)
    assert trained == Work(98_304 + 147_456, 3 * (589_824 + 1_008))


def test_products_of_a_moving_state_are_those_that_run():
    puppeteer = PuppetStage([BasicBlock(16, 16, 1) for _ in range(4)], depth="fixed").puppeteer
    with FlopCounterMode(display=False) as counter:
        puppeteer.kernels(0)
    served, trained = puppet_work(SHAPE, 4, puppeteer.rows)
    assert trained.products == 3 * (served.products + counter.get_total_flops() // 2)


def test_every_method_has_layers_and_one_without_a_file_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "pocketcnn")
    assert list(TIMED) == ["condconv", "involution K3", "involution K7", "pde", "puppet", "ring"]
    assert not caplog.messages
    monkeypatch.setitem(METHODS, "sixth", METHODS["ring"])
    assert [layer.name for layer in layers_timed()] == list(TIMED)
    assert caplog.messages == [
        "bench has no layer cases for method 'sixth'; add experiments/bench/cases/sixth.py",
    ]  # fmt: skip


def test_only_the_solver_has_a_shape_of_its_own():
    shapes = {layer.name: tuple(layer.more_shapes(QUICK)) for layer in layers_timed()}
    assert {name: own for name, own in shapes.items() if own} == {"pde": (QUICK.solver_shape,)}
