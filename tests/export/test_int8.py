"""Weights that are whole multiples are stored in a byte each, and the outputs stay."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import pocketcnn as pc
from pocketcnn.export import export
from pocketcnn.export._int8 import runs_of, store_int8, whole_multiples
from pocketcnn.train.rounding import Rounding

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


def slow_decoded(runs, count):
    """The numbers that bytes of `runs_of` stand for, one byte at a time."""
    numbers = []
    for byte in runs.tolist():
        numbers += [0] * (byte // 2) + ([] if byte == 254 else [-1 if byte % 2 else 1])
    return numbers + [0] * (count - len(numbers))


TERNARY = arrays.arrays(np.int8, st.integers(1, 900), elements=st.sampled_from([0] * 60 + [-1, 1]), fill=st.just(0))


@given(numbers=TERNARY)
def test_runs_stand_for_their_numbers(numbers):
    assert slow_decoded(runs_of(numbers), len(numbers)) == numbers.tolist()
    assert runs_of(2 * numbers) is None or not numbers.any()


@pytest.mark.parametrize("density", [0.003, 0.05, 0.4])
def test_runtimes_decode_runs(density):
    """Beside the same graph with its weight in float32; the longest runs are of more than 127 zeros."""
    generator = np.random.default_rng(0)
    weight = (generator.random((40, 500)) < density) * generator.choice([-0.7, 0.7], (40, 500))
    weight = (weight * generator.uniform(1, 2, (40, 1))).astype(np.float32)
    helper = onnx.helper
    given, made = (helper.make_tensor_value_info(name, 1, [3, side]) for name, side in (("x", 500), ("y", 40)))
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    graph = helper.make_graph([node], "g", [given], [made], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    x, plain = generator.standard_normal((3, 500)).astype(np.float32), model.SerializeToString()
    store_int8(model, helper, onnx.numpy_helper)
    coded = model.SerializeToString()
    assert len(coded) < 2500 + 40 * 4 + 20_000 * density * 1.1 + 20_000 / 127
    onnx.checker.check_model(model, full_check=True)
    sessions = [onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]) for content in (plain, coded)]
    wanted, found = (session.run(None, {"x": x})[0] for session in sessions)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_file_of_a_sparse_ternary_net_is_small(tmp_path):
    torch.manual_seed(0)
    net = pc.create_model("speednet", width=0.3).eval()
    rounding = Rounding(net, "ternary", 0.9)
    rounding.restore_()
    rounding.round_()
    pc.save(net, tmp_path / "net.safetensors", storage="int8", packed=True)
    stored = pc.load(tmp_path / "net.safetensors")
    small = export(stored, tmp_path / "net.onnx", format="onnx", input_size=(3, 32, 32), timed=False)
    assert small.size_bytes < 0.15 * sum(weight.numel() for weight in net.parameters())


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
