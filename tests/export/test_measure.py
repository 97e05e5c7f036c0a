"""ONNX files that are damaged, reach out or ask for too much end in one of our errors."""

import contextlib
import random

import pytest

from pocketcnn.errors import BrokenFile
from pocketcnn.export import measure_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, FLOAT, INT = onnx.helper, 1, 7


def file_of(nodes, initializers=(), size=("batch", 1, 8, 8), outputs=("y",), kind=FLOAT, domains=("",)):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, list(size))],
        [helper.make_tensor_value_info(name, FLOAT, ["n", "c", "h", "w"]) for name in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid(domain, 20 if not domain else 1) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


WEIGHT = helper.make_tensor("w", FLOAT, [4, 1, 3, 3], [0.1] * 36)
CONV = helper.make_node("Conv", ["x", "w"], ["y"])


def outside():
    weight = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4, 1, 3, 3], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "../../etc/passwd"), ("length", "144")):
        weight.external_data.add(key=key, value=value)
    return weight


def constant(tensor):
    return helper.make_node("Constant", [], ["w"], value=tensor)


def filled(*shape):
    return [
        helper.make_tensor("shape", INT, [len(shape)], list(shape)),
        helper.make_tensor("zero", INT, [1], [0]),
    ], [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["s"]),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "v"], ["u"])],
        "body",
        [
            helper.make_tensor_value_info(*args)
            for args in (("i", INT, []), ("c", 9, []), ("v", FLOAT, ["n", "c", "h", "w"]))
        ],
        [helper.make_tensor_value_info("d", 9, []), helper.make_tensor_value_info("u", FLOAT, ["n", "c", "h", "w"])],
    )
    return helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)


FILES = {
    "empty": (b"", "not an ONNX file|inputs are not"),
    "text": (b"this is no net" * 50, "not an ONNX file"),
    "weights outside": (file_of([CONV], [outside()]), "in another file, which is not opened"),
    "constant outside": (file_of([constant(outside()), CONV]), "in another file, which is not opened"),
    "declared huge": (
        file_of([CONV], [onnx.TensorProto(name="w", data_type=FLOAT, dims=[1 << 30, 1, 3, 3], raw_data=b"1234")]),
        "longer than the file",
    ),
    "image huge": (file_of([CONV], [WEIGHT], size=("batch", 1, 1 << 30, 1 << 30)), "more than fit in memory"),
    "batch huge": (file_of([CONV], [WEIGHT], size=(1 << 40, 1, 8, 8)), "more than fit in memory"),
    "value huge": (file_of(*reversed(filled(1 << 20, 1 << 20))), "more than fits in memory here"),
    "loop": (file_of([loop()], [helper.make_tensor("count", INT, [], [10**12])]), "a Loop, whose work nothing bounds"),
    "custom operator": (
        file_of([helper.make_node("Magic", ["x"], ["y"], domain="secret")], domains=("", "secret")),
        "onnxruntime cannot run it",
    ),
    "no operators": (file_of([CONV], [WEIGHT], domains=("other",)), "not an ONNX file|cannot run it"),
    "integers": (file_of([helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], kind=INT), "inputs are not"),
    "negative side": (file_of([CONV], [WEIGHT], size=("batch", 1, -8, 8)), "inputs are not"),
    "a vector": (file_of([CONV], [WEIGHT], size=("batch", 8)), "onnxruntime cannot run it"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_cannot_be_measured(tmp_path, kind):
    content, message = FILES[kind]
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(BrokenFile, match=message) as refused:
        measure_onnx(tmp_path / "net.onnx", runs=1, warmup=0)
    assert "\n" not in str(refused.value)


def test_a_whole_file_is_measured(tmp_path):
    (tmp_path / "net.onnx").write_bytes(file_of([CONV], [WEIGHT]))
    cost = measure_onnx(tmp_path / "net.onnx", runs=1, warmup=0)
    assert (cost.macs, cost.stored_numbers, cost.opset) == (4 * 36 * 9, 36, 20)


def test_changed_bytes_end_in_our_errors(tmp_path):
    content, draw = file_of([CONV], [WEIGHT]), random.Random(0)
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        (tmp_path / "net.onnx").write_bytes(bytes(changed[: draw.choice([len(changed), draw.randrange(len(changed))])]))
        with contextlib.suppress(BrokenFile):
            measure_onnx(tmp_path / "net.onnx", runs=1, warmup=0, threads=1)
