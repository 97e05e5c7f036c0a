"""Weights that are whole multiples are stored in a byte each, and the outputs stay."""

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import pocketcnn as pc
from pocketcnn.export import export
from pocketcnn.export._int8 import whole_multiples

NUMBERS = arrays.arrays(
    np.int8, arrays.array_shapes(min_dims=1, max_dims=4, max_side=6), elements=st.integers(-127, 127)
)


@given(numbers=NUMBERS, scale=st.floats(1e-6, 1e3), seed=st.integers(0, 99))
def test_whole_multiples_are_found_for_rows_and_columns(numbers, scale, seed):
    scales = scale * (1 + np.random.default_rng(seed).random(len(numbers)))
    rows = scales.reshape(-1, *[1] * (numbers.ndim - 1))
    by_row = (numbers * rows, np.moveaxis(numbers * rows, 0, -1)) if numbers.ndim > 1 else ()
    for weight in (numbers * scale, *by_row):
        weight = weight.astype(np.float32)
        found, steps, axis = whole_multiples(weight)
        shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
        again = found * (steps.reshape(shape) if steps.ndim else steps)
        assert np.abs(again - weight).max() <= 2e-6 * np.abs(weight).max()


def test_other_weights_stay():
    assert whole_multiples(np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)) is None


@pytest.mark.parametrize("method", [None, "ring:scheme=windows,size=0.3"])
def test_the_file_of_a_net_in_int8_is_as_small(method, tmp_path):
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 16, 3), *(nn.Conv2d(16 << n, 32 << n, 3, padding=1) for n in range(3))]
    parts = [part for conv in convs for part in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    plain = net
    if method is not None:
        name, options = pc.models.spec.parse_method(method)
        net = pc.condense(net, name, **options).eval()
    length = pc.save(net, tmp_path / "net.safetensors", storage="int8")
    stored = pc.load(tmp_path / "net.safetensors", base=copy.deepcopy(plain))
    small = export(stored, tmp_path / "net.onnx", format="onnx_compact", input_size=(1, 16, 16), timed=False)
    assert small.size_bytes < 1.15 * length
    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) >= 256}
    assert onnx.TensorProto.FLOAT not in kinds
