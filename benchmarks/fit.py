"""Makes the table of docs/fit.md: every method from the trained resnet20, fitted or fresh, beside pruned and int8 plain files.

Each run has a folder in results/distil, made by `pocketcnn distil` with the commands of that page.

    python benchmarks/fit.py --data cifar10     # measures each run's net as float32 and int8 files, then prints the table
    python benchmarks/fit.py                    # prints the table from the records
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "distil"
HEADER = (
    "| net | start | epochs | before training, validation % | test % | points to the plain net | trainable numbers | bytes | "
    "int8 bytes | int8 test % |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def measure(data_name: str, results: Path) -> dict[str, Any]:
    """Measures bytes and test accuracy of the plain net and of every run's net, stored as float32 and as int8.

    Nets that are in files.json already are not measured again.
    """
    import pocketcnn as pc
    from pocketcnn import checkpoint
    from pocketcnn.data import load
    from pocketcnn.support.files import read_json
    from pocketcnn.train import evaluate
    from pocketcnn.zoo import find, path_of

    data = load(data_name)
    plain = path_of(find("resnet20", "cifar10"))
    files = {"plain": plain, **{path.parent.name: path for path in sorted(results.glob("*/model.safetensors"))}}
    known = results / "files.json"
    found: dict[str, Any] = read_json(known) if known.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for title in sorted(files.keys() - found.keys()):
            path = files[title]
            net, notes = pc.load(path), checkpoint.read_header(path)["notes"]
            found[title] = {}
            for storage in ("float32", "int8"):
                stored = Path(folder) / "stored.safetensors"
                size = pc.save(net, stored, notes=notes, storage=storage)
                accuracy = evaluate(pc.load(stored), data)["test_accuracy"]
                found[title][storage] = {"bytes": size, "test_accuracy": accuracy}
    return found


def table(results: Path) -> str:
    """Table as Markdown, the most accurate net first."""
    from pocketcnn.support.files import read_json

    files = read_json(results / "files.json")
    plain = files["plain"]["float32"]["test_accuracy"]
    numbers = {"plain": read_json(results / "plain.json")["trainable_params"]}
    rows = [("plain, as it was trained", "", "", "", "plain")]
    for path in results.glob("*/result.json"):
        run, start = read_json(path), read_json(path.parent / "start.json")
        numbers[path.parent.name] = run["cost"]["trainable_params"]
        started = run["identity"]["initialize"] if run["identity"]["method"] != "plain" else "pruned"
        before = f"{100 * start['validation_accuracy']:.2f}"
        rows.append((named(run, path.parent.name), started, str(run["epochs"]), before, path.parent.name))
    rows.sort(key=lambda row: -files[row[-1]]["float32"]["test_accuracy"])
    lines = [HEADER]
    for name, started, epochs, before, key in rows:
        whole, small = files[key]["float32"], files[key]["int8"]
        accuracy = whole["test_accuracy"]
        apart = "" if key == "plain" else f"{100 * (accuracy - plain):+.2f}"
        lines.append(
            f"| {name} | {started} | {epochs} | {before} | {100 * accuracy:.2f} | {apart} | {numbers[key]:,} | "
            f"{whole['bytes']:,} | {small['bytes']:,} | {100 * small['test_accuracy']:.2f} |"
        )
    return "\n".join(lines)


def named(run: dict[str, Any], folder: str) -> str:
    """Short description of a run's net."""
    if run["identity"]["method"] == "plain":
        return f"plain, {folder.removeprefix('pruned')} % of its weights zero"
    return f"`{run['identity']['student']}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="first measure the nets of the runs on the test images of this data set")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs")
    given = parser.parse_args()
    if given.data:
        from pocketcnn.support.files import write_json
        from pocketcnn.zoo import find

        write_json(given.results / "files.json", measure(given.data, given.results))
        write_json(given.results / "plain.json", {"trainable_params": find("resnet20", "cifar10").trainable_params})
    print(table(given.results))


if __name__ == "__main__":
    main()
