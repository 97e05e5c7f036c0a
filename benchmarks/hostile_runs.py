"""Opens 500 damaged run folders: each must be read rightly or end in one of our errors.

    .venv/bin/python benchmarks/hostile_runs.py        # 500 folders
    .venv/bin/python benchmarks/hostile_runs.py 50

All are copies of one tiny run, trained once, in a folder as `compare` leaves it; one file of each is damaged. It ends with 1 if
any ended in another exception, in a number that is no number, or after more than 5 seconds. All changes follow from the seed.
tests/train/test_hostile_runs.py tries some of them in every run.
"""

import copy
import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

import pocketcnn as pc
from pocketcnn.checkpoint import read_header
from pocketcnn.data import DataSet, load
from pocketcnn.errors import PocketError
from pocketcnn.experiments.compare import compare, folder_of
from pocketcnn.experiments.reproduce.runs import read_runs
from pocketcnn.experiments.speeds import measure_speeds
from pocketcnn.hub.card import record_of, write_card
from pocketcnn.models.spec import NetSpec
from pocketcnn.report import read_curve, read_results, read_speeds, summarize, write_report
from pocketcnn.support.runs import read_environment
from pocketcnn.train import TrainConfig, evaluate, fit

CONFIG = TrainConfig(epochs=2, batch_size=32, precision="float32", channels_last="off")
ROW = NetSpec("resnet20", "plain", {}, {"in_channels": 1, "num_classes": 10, "width": 0.25})
RUN = folder_of(Path(), ROW.label) / "seed0"
LONGEST = 5.0  # seconds of a trial
_DEEP = "@deep@"
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "word", "\x00", "../../etc/passwd", "x" * 100_000, [], {}, [[]],
    {"a": {}}, _DEEP,
)  # fmt: skip
Make = Callable[[Path], None]
Open = Callable[[Path], str]


@cache
def data() -> DataSet:
    return load("digits", limit=64)


@cache
def sound() -> Path:
    """The folder of a comparison with one run."""
    root = Path(tempfile.mkdtemp(prefix="sound-runs-"))
    compare(data(), [ROW], CONFIG, root)
    return root


# Damages, each of the whole content of a file


def anything(content: bytes, draw: random.Random) -> bytes | None:
    """Something else in the place of the file; None for a folder."""
    return draw.choice([
        b"", b"\x00" * 64, draw.randbytes(300), content[: draw.randrange(len(content))], b"[" * 100_000, b"{}", b"[]", b"null",
        b"NaN", b'"word"', b"7", b"\xef\xbb\xbf" + content, content + b"}", content.replace(b'"', b"'"), None,
        content.decode("latin-1").encode("utf-16"), b"\xff\xfe" + content, content[::-1], b'{"a": 1}', b"9" * 5000,
    ])  # fmt: skip


def entry(content: bytes, draw: random.Random) -> bytes:
    """One entry of JSON exchanged, removed or added."""
    record = json.loads(content)
    path = draw.choice(list(_places(record)))
    place = record
    for key in path[:-1]:
        place = place[key]
    if draw.random() < 0.25:
        del place[path[-1]]
    else:
        place[path[-1]] = draw.choice(HOSTILE)
    text = json.dumps(record)
    return text.replace(f'"{_DEEP}"', "[" * 5000 + "]" * 5000).encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from _places(part, (*path, key))


def rows(content: bytes, draw: random.Random) -> bytes:
    """Rows of a table missing, twice, in another order, with other delimiters or other values."""
    text = content.decode()
    lines = text.splitlines()
    return draw.choice([
        lines[0], "\n".join(lines[:-1]), "\n".join([*lines, lines[-1]]), "\n".join([lines[0], *lines[:0:-1]]), text.replace(",", ";"),
        text.replace(",", "\t"), "\n".join(lines[1:]), text.replace("0.", "nan"), text.replace("0.", "-7."), text.replace("0.", "word"),
        text.replace("epoch", "Epoch"), text + ",,,,\n", text + "\x00\n", text.replace("\n", "\r\n"), "\n".join([lines[0], *lines]),
        text + '"', text.replace("validation_accuracy", ""), text + "3," + "9" * 200_000 + "\n",
    ]).encode()  # fmt: skip


def bits(content: bytes, draw: random.Random) -> bytes:
    """Some bytes exchanged."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pocketcnn-was-here",)


def other_checkpoint(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint whose hash is right and whose content is not."""
    kept = torch.load(io.BytesIO(content), weights_only=True)
    kind = draw.randrange(5)
    if kind == 0:
        kept = draw.choice([{}, [], None, {"state_dict": {}}, kept["state_dict"], {"code": _Code()}])
    elif kind == 1:
        del kept[draw.choice(list(kept))]
    elif kind == 2:
        kept[draw.choice(list(kept))] = draw.choice([None, 7, -1, "word", [], {}, float("nan")])
    elif kind == 3:
        name = draw.choice([name for name, value in kept["state_dict"].items() if value.dim()])
        weight = kept["state_dict"][name]
        kept["state_dict"][name] = draw.choice([
            weight[:1].clone(), weight * math.nan, None, "word", weight.to(torch.float64), torch.zeros(1).expand(weight.shape), weight[None],
        ])  # fmt: skip
    else:
        path = draw.choice([path for path in _places(kept) if len(path) > 1 and path[0] != "state_dict"])
        place = kept
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = draw.choice([None, 7, -1, "word", [], {}, float("nan")])
    buffer = io.BytesIO()
    if draw.random() < 0.1:
        pickle.dump(_Code(), buffer)
    else:
        torch.save(kept, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


# Readers: each returns what is wrong with its result, or ""


def _wrong(value: Any) -> str:
    """Says which number in a result is none."""
    if isinstance(value, dict):
        return next(filter(None, map(_wrong, value.values())), "")
    return f"a result holds {value}" if isinstance(value, float) and not math.isfinite(value) else ""


def report(root: Path) -> str:
    write_report(root)
    return ""


def tables(root: Path) -> str:
    results = read_results(root)
    summaries = summarize(results, read_speeds(root))
    for result in results:
        read_environment(result["folder"])
        if not all(0 <= accuracy <= 1 for accuracy in read_curve(result["folder"])):
            return "a curve leaves [0, 1]"
    return next(filter(None, (_wrong(dataclasses.asdict(summary)) for summary in summaries)), "")


def reproduction(root: Path) -> str:
    return next(filter(None, (_wrong({"accuracy": run.accuracy, "epochs": run.epochs}) for run in read_runs(root))), "")


def finished(root: Path) -> str:
    result = _trained(root)
    return _wrong({"accuracy": result["test_accuracy"], "size": result["file_bytes"]})


def unfinished(root: Path) -> str:
    for name in ("result.json", "model.safetensors"):
        (root / RUN / name).unlink()
    result = _trained(root)
    return _wrong(result["cost"]) or ("" if result["epochs"] == CONFIG.epochs else f"{result['epochs']} epochs")


def _trained(root: Path) -> dict[str, Any]:
    identity = {**dataclasses.asdict(ROW), "label": ROW.label}
    return fit(ROW.build(0), data(), CONFIG, root / RUN, name=f"{ROW.label} seed 0", identity=identity)


def comparison(root: Path) -> str:
    return next(filter(None, map(_wrong, compare(data(), [ROW], CONFIG, root).speeds.values())), "")


def speeds(root: Path) -> str:
    return _wrong(measure_speeds({ROW.label: root / RUN}, data(), root, rounds=1)[ROW.label])


def model(root: Path) -> str:
    evaluate(pc.load(root / RUN), data())
    return ""


def card(root: Path) -> str:
    file = root / RUN / "model.safetensors"
    write_card("owner/name", read_header(file), file.stat().st_size, record_of(file), None, "digits", "")
    return ""


RECORD = (anything, entry, entry, entry)
TRIALS: tuple[tuple[str, tuple[Callable, ...], tuple[Open, ...]], ...] = (
    (f"{RUN}/result.json", RECORD, (tables, finished, reproduction, card, comparison)),
    (f"{RUN}/config.json", RECORD, (finished, unfinished, reproduction, speeds)),
    (f"{RUN}/environment.json", RECORD, (tables,)),
    ("comparison.json", RECORD, (tables, report)),
    ("speed.json", RECORD, (tables, tables, comparison)),
    (f"{RUN}/metrics.csv", (anything, rows, rows, rows), (tables, tables, tables, report)),
    (f"{RUN}/last.ckpt", (anything, bits, other_checkpoint, other_checkpoint), (unfinished,)),
    (f"{RUN}/model.safetensors", (anything, bits), (model, finished, card)),
)


def run_trials(seed: int, count: int) -> Iterator[tuple[str, Make, Open]]:
    """Yields trials: a name, a function that makes a damaged folder at a path, and one that opens it.

    The latter returns what is wrong with its result, or "".
    """
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        place, damages, readers = TRIALS[number % len(TRIALS)]
        damage, reader = draw.choice(damages), draw.choice(readers)
        yield (
            f"{number}: {Path(place).name}, {damage.__name__}, {reader.__name__}",
            _making(place, damage, draw),
            reader,
        )


def _making(place: str, damage: Callable, draw: random.Random) -> Make:
    def make(folder: Path) -> None:
        shutil.copytree(sound(), folder, dirs_exist_ok=True)
        path = folder / place
        content = damage(path.read_bytes(), draw)
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)

    return make


def judge(make: Make, read: Open, folder: Path) -> tuple[str, str]:
    """Runs a trial in a folder; returns how it ended, and what was wrong or said."""
    make(folder)
    try:
        wrong = read(folder)
    except (PocketError, FileNotFoundError) as error:
        return (type(error).__name__, str(error)) if "\n" not in str(error) else ("fault", repr(error))
    except ValueError as error:
        return ("ValueError", str(error)) if "give another output folder" in str(error) else ("fault", repr(error))
    except Exception as error:
        return "fault", repr(error)
    return ("fault", wrong) if wrong else ("right", "")


def main(count: int) -> int:
    """Runs all trials and prints how they ended; returns the exit code."""
    ends, faults = Counter(), []
    sound()
    for name, make, read in run_trials(0, count):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            end, words = judge(copy.copy(make), read, Path(folder) / "runs")
        seconds = time.perf_counter() - start
        ends[end] += 1
        if end == "fault" or seconds > LONGEST:
            faults.append(f"{name}: {words or end} ({seconds:.1f} s)")
    print(", ".join(f"{number} {end}" for end, number in ends.most_common()))
    print("\n".join(faults) or f"{count} folders, no fault")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
