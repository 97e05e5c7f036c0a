"""Compares rings of many sizes with what an engineer would use instead: plain nets, narrowed, stored as int8 or pruned.

    python examples/ring_sweep.py --data cifar10 --output runs/ring-sweep
    python examples/ring_sweep.py --table results/ring/sweep

All nets are trained alike. The rivals of each ring are the plain net narrowed to as many stored parameters, and the plain net
whose int8 file has as many bytes as the ring's float32 file. A third rival is the plain net, pruned by magnitude and trained
for some epochs more, which the others do not get. After training, every net is stored as float32, float16 and int8, and every
ring is also pruned without further training. Each file's accuracy is measured on the test images. Finished runs are read, not
repeated.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

import pocketcnn as pc
from pocketcnn import compare, storage
from pocketcnn.cost import count_params
from pocketcnn.data import load
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.models.spec import NetSpec
from pocketcnn.numerics import log_linear_fit
from pocketcnn.pictures import draw_law, write_figure
from pocketcnn.support.files import read_json, write_atomically, write_json
from pocketcnn.train import TrainConfig, evaluate, fit

MODEL = "resnet20"
SIZES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STORAGES = ("float32", "float16", "int8")
RING_PRUNED = (0.2, 0.4, 0.6, 0.8)  # shares of each ring's parameters set to zero, without further training
PRUNED = (0.8, 0.9, 0.95)  # shares of the plain net's weights set to zero, with further training
WIDTHS = 64  # widths of int8 rivals are multiples of 1/64


def stored_bytes(net, **how):
    """Bytes of the file that `pc.save` writes for a net."""
    with tempfile.TemporaryDirectory() as folder:
        return pc.save(net, Path(folder) / "net.safetensors", **how)


def width_of_bytes(wanted, options):
    """Width at which the plain net's int8 file is nearest to the wanted number of bytes."""

    def size(step):
        return stored_bytes(pc.create_model(MODEL, **options, width=step / WIDTHS), storage="int8")

    low, high = 1, 4 * WIDTHS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= wanted else (low, middle)
    return min((low, high), key=lambda step: abs(size(step) - wanted)) / WIDTHS


def net_specs(data, sizes, widest):
    """Makes the rows of the sweep, and maps each ring's label to the labels of its rivals.

    A ring has two rivals: the plain net of as many parameters, and the plain net whose int8 file has as many bytes.

    Args:
        data: the training data.
        sizes: the sizes of the rings.
        widest: int8 rivals wider than this are left out, with None in their place.
    """
    options = {"in_channels": data.input_size[0], "num_classes": len(data.classes)}
    methods = ["plain", *(f"ring:size={size}" for size in sizes)]
    rows = compare.net_specs([MODEL], methods, options, equal_size=True)
    rivals = {}
    for ring in [row for row in rows if row.method == "ring"]:
        width = width_of_bytes(stored_bytes(ring.build(0)), options)
        row = NetSpec(MODEL, "plain", {}, {**options, "width": width})
        if width <= widest and row.label not in {other.label for other in rows}:
            rows.append(row)
        narrow = compare.width_of_size(MODEL, count_params(ring.build(0))[1], options)
        rivals[ring.label] = {
            "numbers": NetSpec(MODEL, "plain", {}, {**options, "width": narrow}).label,
            "bytes": row.label if width <= widest else None,
            "width": width,
        }
    return rows, rivals


def files_of(small, data, kinds=STORAGES, **entry):
    """Stores a net in each number format; returns records of file bytes, ring bytes, test accuracy and the given `entry`."""
    found = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.safetensors"
            size = pc.save(small, path, storage=kind)
            accuracy = evaluate(pc.load(path), data)["test_accuracy"]
        rings = {f"{n}.values": m.values for n, m in small.named_modules() if isinstance(m, ParameterRing)}
        packed = storage.pack(rings, small, kind)[0]
        found.append(
            {**entry, "numbers": count_params(small)[1], "storage": kind, "bytes": size,
             "ring_bytes": sum(tensor.nbytes for tensor in packed.values()), "accuracy": accuracy}
        )  # fmt: skip
    return found


def measure(output, data, rows):
    """Adds every finished net in every number format, and its rings pruned, to `files.json`."""
    path = output / "files.json"
    found = read_json(path) if path.exists() else []
    for row in rows:
        file = compare.folder_of(output, row.label) / "seed0" / "model.safetensors"
        if not file.exists() or row.label in {entry["net"] for entry in found}:
            continue
        entry = {"net": row.label, "kind": row.method, "pruned": 0.0}
        found += files_of(pc.load(file), data, **entry)
        for fraction in RING_PRUNED if row.method == "ring" else ():
            net = pc.load(file)
            storage.prune_(net, fraction, [n for n in storage.weights_of(net) if n.endswith("ring.values")])
            found += files_of(net, data, ["int8"], **{**entry, "pruned": fraction})
        write_json(path, found)
        print(row.label, *(f"{e['storage']} {100 * e['accuracy']:.2f}" for e in found if e["net"] == row.label))


def key(output, data, row, passphrases=("a wrong one", "another", "and a third")):
    """Writes to `key.json` the accuracy of a net's file with the right passphrase and with wrong ones."""
    net = pc.load(compare.folder_of(output, row.label) / "seed0" / "model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        pc.save(net, path, passphrase="the right one")
        right = pc.load(path, passphrase="the right one")
        equal = all(map(torch.equal, net.state_dict().values(), right.state_dict().values()))
        wrong = [evaluate(pc.load(path, passphrase=words), data)["test_accuracy"] for words in passphrases]
    found = {"net": row.label, "equal_bits": equal, "right": evaluate(right, data)["test_accuracy"], "wrong": wrong}
    write_json(output / "key.json", found)
    return found


def prune(output, data, config):
    """Prunes the plain net to each share of zeros, trains it further, and adds it to `files.json`."""
    path = output / "files.json"
    found = read_json(path)
    for fraction in PRUNED:
        if fraction in {entry["pruned"] for entry in found if entry["kind"] == "pruned"}:
            continue
        net = pc.load(compare.folder_of(output, f"{MODEL} plain") / "seed0" / "model.safetensors")
        storage.prune_(net, fraction)
        before = evaluate(net, data)["test_accuracy"]
        storage.hold_zeros_(net.train())
        with tempfile.TemporaryDirectory() as folder:
            fit(net, data, config, folder, name=f"{MODEL} pruned by {fraction}")
        entry = {"net": f"{MODEL} pruned", "kind": "pruned", "pruned": fraction, "before": before}
        found += files_of(net.eval(), data, **entry, train=dataclasses.asdict(config))
        write_json(path, found)


def law(folder, axis="numbers"):
    """Fits the rings' accuracy to the parameters stored in all, or to the ring alone (`"ring_bytes"`): slope per decade, R²."""
    points = [(entry[axis], entry["accuracy"]) for entry in _rings(folder)]
    return log_linear_fit(*zip(*points, strict=True))


def _rings(folder):
    """Records of the rings as they were trained, the smallest first."""
    entries = [e for e in read_json(folder / "files.json") if e["kind"] == "ring" and not e["pruned"]]
    return sorted((e for e in entries if e["storage"] == "float32"), key=lambda e: e["numbers"])


def figures(folder):
    """Draws accuracy over stored parameters with the rings' law, and over bytes of the file; returns the paths."""
    entries = read_json(folder / "files.json")
    numbers, sizes = {}, {}
    for entry in sorted(entries, key=lambda entry: entry["bytes"]):
        kind = {"ring": "ring", "plain": "plain, narrower", "pruned": "plain, pruned and trained on"}[entry["kind"]]
        if entry["storage"] == "float32" and entry["kind"] != "pruned":
            numbers.setdefault(kind, []).append((entry["numbers"], entry["accuracy"]))
        if entry["storage"] != "float16" and (entry["kind"] == "pruned" or not entry["pruned"]):
            sizes.setdefault(f"{kind}, {entry['storage']}", []).append((entry["bytes"], entry["accuracy"]))
    sizes.pop("plain, pruned and trained on, float32", None)
    return [
        *write_figure(draw_law(numbers, fitted=("ring",)), folder, "law"),
        *write_figure(draw_law(sizes, unit="bytes of the file"), folder, "bytes"),
    ]


def tables(folder):
    """Tables as Markdown: each ring beside its rivals, in each number format, pruned; plain nets pruned."""
    entries, rivals = read_json(folder / "files.json"), read_json(folder / "rivals.json")
    found = {(entry["net"], entry["storage"], entry["pruned"]): entry for entry in entries}

    def cell(net, kind, pruned=0.0):
        entry = found.get((net, kind, pruned))
        return f"{100 * entry['accuracy']:.2f} ({entry['bytes']:,})" if entry else "not run"

    rings = [entry["net"] for entry in _rings(folder)]
    of_size = {net: net.split("size=")[1] for net in rings}
    rows = [["ring of size", "numbers", "ring", "plain of equal numbers", "int8 plain of equal bytes", "int8 ring",
             "int8 plain of equal numbers"]]  # fmt: skip
    for net in rings:
        rival = rivals[net]
        numbers = f"{found[net, 'float32', 0.0]['numbers']:,}"
        rows.append([of_size[net], numbers, cell(net, "float32"), cell(rival["numbers"], "float32"),
                     cell(rival["bytes"], "int8"), cell(net, "int8"), cell(rival["numbers"], "int8")])  # fmt: skip
    files = [["ring of size", *STORAGES, "int8 / float32 bytes of the ring", "of the file"]]
    for net in rings:
        full, small = found[net, "float32", 0.0], found[net, "int8", 0.0]
        ratios = [f"{small[key] / full[key]:.3f}" for key in ("ring_bytes", "bytes")]
        files.append([of_size[net], *(cell(net, kind) for kind in STORAGES), *ratios])
    pruned = [["int8 ring of size", *(f"{100 * share:.0f} % pruned" for share in (0.0, *RING_PRUNED))]]
    pruned += [[of_size[net], *(cell(net, "int8", share) for share in (0.0, *RING_PRUNED))] for net in rings]
    plain = [["plain net pruned by", "before training on", "float32", "int8"]]
    for share in PRUNED:
        if (entry := found.get((f"{MODEL} pruned", "int8", share))) is not None:
            kinds = [cell(f"{MODEL} pruned", kind, share) for kind in ("float32", "int8")]
            plain.append([f"{100 * share:.0f} %", f"{100 * entry['before']:.2f}", *kinds])
    return "\n".join(_markdown(rows) for rows in (rows, files, pruned, plain) if len(rows) > 1)


def _markdown(rows):
    ruled = [rows[0], ["---:"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data set, as for pocketcnn train")
    parser.add_argument("--epochs", type=int, default=5, help="number of epochs of each net")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, metavar="SIZE", help="sizes of the rings")
    parser.add_argument("--widest", type=float, default=4.0, help="leave out int8 rivals wider than this")
    parser.add_argument(
        "--prune-epochs", type=int, default=1, help="further epochs for the pruned plain net; 0 leaves it out"
    )
    parser.add_argument("--limit", type=int, help="use at most this many training images")
    parser.add_argument("--output", type=Path, default=Path("runs/ring-sweep"), help="folder for the runs and records")
    parser.add_argument(
        "--table", type=Path, metavar="FOLDER", help="print the tables of finished runs; trains nothing"
    )
    given = parser.parse_args()
    if given.table:
        print(tables(given.table))
        return
    data = load(given.data, limit=given.limit)
    rows, rivals = net_specs(data, given.sizes, given.widest)
    config = TrainConfig(epochs=given.epochs, precision="bfloat16", channels_last="on")
    compare.compare(data, rows, config, given.output)
    write_json(given.output / "rivals.json", rivals)
    measure(given.output, data, rows)
    print(key(given.output, data, next(row for row in rows if row.method == "ring")))
    if given.prune_epochs:
        prune(given.output, data, dataclasses.replace(config, epochs=given.prune_epochs, lr=0.02))
    write_atomically(given.output / "table.md", tables(given.output))
    laws = [f"over {axis}: {law(given.output, axis)}" for axis in ("numbers", "ring_bytes")]
    print(tables(given.output), *laws, *figures(given.output), sep="\n")


if __name__ == "__main__":
    main()
