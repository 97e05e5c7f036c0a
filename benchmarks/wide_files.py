"""Makes a table of files of the wide net: small by a ring, by fewer channels, by zeros and by fewer bits.

The runs are those of `pocketcnn reproduce speednet`, whose model files stay on the machine that trained them.

    python benchmarks/wide_files.py --data cifar10 --prune    # prunes trained plain nets, trains them further, measures all files
    python benchmarks/wide_files.py                           # prints the table from the records
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[1] / "results"
RUNS, RESULTS = ROOT / "reproduce" / "speedrun_all", ROOT / "speednet-files"
STORAGES = ("float32", "float16", "int8")
ZEROS = (0.9,)
HEADER = "| net | seeds | float32 bytes | test % | float16 bytes | test % | int8 bytes | test % |\n|---|---:|---:|---:|---:|---:|---:|---:|"


def prune(data: Any, share: float, folder: Path, plain: Path) -> None:
    """Sets a share of a trained plain net's kernels to zero and trains the others for four epochs."""
    import pocketcnn as pc
    from pocketcnn.checkpoint.storage import hold_zeros_, prune_, weights_of
    from pocketcnn.train import PRESETS, fit

    net = pc.load(plain / "model.safetensors")
    prune_(net, share, [name for name in weights_of(net) if name.startswith("layer")])
    hold_zeros_(net)
    config = dataclasses.replace(
        PRESETS["speedrun"], epochs=4, small_epochs=0, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4,
        norm_bias_factor=1.0, batch_size=250, all_images=True, seed=int(plain.name.removeprefix("seed")),
    )  # fmt: skip
    identity = {"model": "speednet", "method": "plain", "label": f"speednet, {share:.0%} of its kernels zero"}
    fit(net, data, config, folder, name=identity["label"], identity=identity)


def files(runs: Path, results: Path) -> Iterator[tuple[str, str, Path]]:
    """Yields label, seed and folder of every run whose net is at hand."""
    from pocketcnn.support.files import read_json

    for path in sorted([*runs.glob("*/seed*/model.safetensors"), *results.glob("*/seed*/model.safetensors")]):
        yield read_json(path.parent / "result.json")["identity"]["label"], path.parent.name, path.parent


def measure(data: Any, runs: Path, results: Path) -> dict[str, Any]:
    """Measures bytes and test accuracy of every run's net in each storage; nets in files.json are not measured again."""
    import pocketcnn as pc
    from pocketcnn import checkpoint
    from pocketcnn.support.files import read_json
    from pocketcnn.train import evaluate

    known = results / "files.json"
    found: dict[str, Any] = read_json(known) if known.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for label, seed, run in files(runs, results):
            if seed in found.setdefault(label, {}):
                continue
            net, notes = pc.load(run / "model.safetensors"), checkpoint.read_header(run / "model.safetensors")["notes"]
            found[label][seed] = {}
            for storage in STORAGES:
                stored = Path(folder) / "stored.safetensors"
                size = pc.save(net, stored, notes=notes, storage=storage)
                found[label][seed][storage] = {
                    "bytes": size,
                    "test_accuracy": evaluate(pc.load(stored), data)["test_accuracy"],
                }
    return found


def table(results: Path) -> str:
    """Table as Markdown, the largest float32 file first: means over the seeds, with standard deviations."""
    from pocketcnn.support.files import read_json

    found = read_json(results / "files.json")
    rows = sorted(found.items(), key=lambda item: -_mean(item[1], "float32", "bytes"))
    lines = [HEADER]
    for label, seeds in rows:
        cells = []
        for storage in STORAGES:
            accuracies = [100 * seed[storage]["test_accuracy"] for seed in seeds.values()]
            spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
            cells += [f"{_mean(seeds, storage, 'bytes'):,.0f}", f"{mean(accuracies):.2f}{spread}"]
        lines.append(f"| {label} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(seeds: Mapping[str, Any], storage: str, key: str) -> float:
    return mean(seed[storage][key] for seed in seeds.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="first measure the nets of the runs on the test images of this data set")
    parser.add_argument("--prune", action="store_true", help="before that, prune the plain nets and train them further")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    given = parser.parse_args()
    if given.data:
        from pocketcnn.data import load
        from pocketcnn.support.files import make_folder, write_json

        data = load(given.data)
        for plain in sorted((given.runs / "speednet-plain").glob("seed*")) if given.prune else ():
            for share in ZEROS:
                prune(data, share, given.results / f"zeros{100 * share:.0f}" / plain.name, plain)
        write_json(make_folder(given.results) / "files.json", measure(data, given.runs, given.results))
    print(table(given.results))


if __name__ == "__main__":
    main()
