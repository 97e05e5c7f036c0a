"""Measures the exported files of each method's net, in size, exactness and speed: makes the table of docs/export.md.

    .venv/bin/python benchmarks/export.py

The nets are resnet20 on 32x32 images, with batch norms warmed up on random images. Each is written and checked in every format
that is installed. Bytes are of the model file, of dense and compact ONNX, and of ExecuTorch's file. Differences are the largest
over batches of 1, 3 and 17 in onnxruntime, dense and compact. Times are medians in turns with the net itself in PyTorch.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch

import pocketcnn as pc
from pocketcnn.errors import MissingExtra
from pocketcnn.export import export
from pocketcnn.export._check import ordinary_images
from pocketcnn.export.onnx import session
from pocketcnn.methods.puppet import gauge_of

SIZE = (3, 32, 32)
NOTES = {"mean": [0.5] * 3, "std": [0.25] * 3}
NETS = {
    "plain": ("resnet20", None, {}, None),
    "ring 10 % affine": ("resnet20", "ring", {"size": 0.1, "scheme": "affine"}, None),
    "ring 10 % random": ("resnet20", "ring", {"size": 0.1}, None),
    "ring 10 % block": ("resnet20", "ring", {"size": 0.1, "scheme": "block"}, None),
    "ring of 15,500, windows": ("resnet20", "ring", {"size": 15_500, "scheme": "windows", "gain": True}, None),
    "puppet, 5 bits": ("resnet20", "puppet", {}, 5.0),
    "puppet by channels, 5 bits": ("resnet20", "puppet", {"read": "channels"}, 5.0),
    "puppet, decides in the file": ("resnet20", "puppet", {}, None),
    "pde": ("resnet20", "pde", {}, None),
    "condconv": ("resnet20", "condconv", {}, None),
    "involution": ("resnet20", "involution", {}, None),
}
HEADER = (
    "net", "model file", "dense ONNX", "compact ONNX", "ExecuTorch", "difference dense", "compact", "compact loads in ms",
    "ms, 1 image: PyTorch", "dense ONNX", "compact ONNX", "ms, 17 images: PyTorch", "dense ONNX", "compact ONNX",
)  # fmt: skip


def made(name, method, options):
    """Makes a net whose batch norms, and gauge if it has one, have seen images."""
    torch.manual_seed(0)
    net = pc.create_model(name)
    if method is not None:
        net = pc.condense(net, method, **options)
    images = ordinary_images(256, SIZE, NOTES)
    if (gauge := gauge_of(net)) is not None:
        gauge.calibrate_([images], **NOTES)
    with torch.no_grad():
        for batch in images.split(64) * 4:  # fewer leave the running statistics of an involution far from its features
            net.train()(batch)
    return net.eval()


def row(title, folder):
    """Cells of a net's row."""
    name, method, options, entropy = NETS[title]
    net = made(name, method, options)
    stored = pc.save(net, folder / "net.safetensors")
    given = {"input_size": SIZE, "notes": NOTES, "entropy": entropy}
    dense, compact = (export(net, folder / f"{f}.onnx", format=f, **given) for f in ("onnx", "onnx_compact"))
    try:
        small = f"{export(net, folder / 'net.pte', format='executorch', timed=False, **given).size_bytes:,}"
    except MissingExtra:
        small = "not installed"
    except pc.errors.CannotExport as error:
        logging.warning("%s: %s", title, error)
        small = "cannot"
    start = time.perf_counter()
    session((folder / "onnx_compact.onnx").read_bytes(), torch.get_num_threads())
    loading = 1e3 * (time.perf_counter() - start)
    cells = [title, f"{stored:,}", f"{dense.size_bytes:,} ({dense.size_bytes / stored:.2f}x)"]
    same = " (dense)" if compact.dense else ""
    cells += [f"{compact.size_bytes:,} ({compact.size_bytes / stored:.2f}x){same}", small]
    cells += [f"{dense.max_difference:.1e}", f"{compact.max_difference:.1e}", f"{loading:.0f}"]
    for one, other in zip(dense.speeds, compact.speeds, strict=True):
        cells += [f"{one.net_ms:.2f}", *(f"{s.file_ms:.2f} ({s.ratio:.2f}x)" for s in (one, other))]
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", choices=[*NETS, []], help="nets to measure; all by default")
    given = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n|---|{'---:|' * (len(HEADER) - 1)}")
    for title in given.nets or NETS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(row(title, Path(folder)))} |", flush=True)
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
