"""Opens damaged and hostile files and folders by the thousand: each must load rightly or end in one of our errors.

    .venv/bin/python benchmarks/hostile_files.py        # 2,000 headers, 2,000 changed bytes, 500 runs, 500 folders of images
    .venv/bin/python benchmarks/hostile_files.py 100    # 100 of the former two, 25 of the others

A group is a list of trials; a trial makes one damaged thing and opens it. The script prints how the trials of each group
ended, the longest time and the peak of memory. It ends with 1 if any trial ended in another exception or in a wrong result,
took more than 5 seconds, or if memory grew by more than twice the largest file and 300 MB. All changes follow from the seed.
"""

import json
import logging
import math
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.checkpoint.header import FORMAT
from pocketcnn.checkpoint.sealed import CHECKSUM, seal
from pocketcnn.errors import PocketError

OURS = (PocketError, FileNotFoundError)
SETTINGS_DIFFER = "give another output folder"  # words of the ValueError about a folder that holds another run
LONGEST, SPARE = 5.0, 300 << 20  # seconds of a trial; bytes beside twice the largest file
_PATIENCE = 60  # seconds after which a trial is stopped


@dataclass(frozen=True)
class Trial:
    """One damaged thing: `make` writes it at a path, `open` reads it and returns what is wrong with the result, or ""."""

    name: str
    make: Callable[[Path], None]
    open: Callable[[Path], str]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: in a right result, in an error of ours, or in a fault."""

    trial: str
    kind: str
    fault: bool
    seconds: float
    words: str = ""


def judge(trial: Trial, path: Path) -> Outcome:
    """Runs a trial at a path."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {_PATIENCE} s")

    trial.make(path)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_PATIENCE)
    start = time.perf_counter()
    try:
        wrong = trial.open(path)
        kind, fault, words = ("a wrong result", True, wrong) if wrong else ("a right result", False, "")
    except OURS as error:
        kind, fault, words = type(error).__name__, "\n" in str(error), str(error)
    except ValueError as error:
        kind, fault, words = "ValueError", SETTINGS_DIFFER not in str(error), str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind, fault, words = type(error).__name__, True, str(error)
    finally:
        seconds = time.perf_counter() - start
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(trial.name, kind, fault, seconds, words)


# Model files


@dataclass(frozen=True)
class Sample:
    """A sound model file, and what loading it needs and gives."""

    name: str
    content: bytes
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """Offset of the tensors."""
        return 8 + struct.unpack("<Q", self.content[:8])[0]

    @property
    def head(self) -> dict[str, Any]:
        """The JSON before the tensors."""
        return json.loads(self.content[8 : self.start])


def plain(width: float = 0.25) -> nn.Module:
    return pc.create_model("resnet20", width=width)


@cache
def samples() -> list[Sample]:
    """Model files of all methods, storages and forms; small, so that many can be opened."""
    torch.manual_seed(0)
    ring = pc.condense(plain(), "ring", seed=2**40)
    nets: list[tuple[str, nn.Module, dict[str, Any], dict[str, Any]]] = [
        ("plain", plain(), {}, {}),
        ("ring", ring, {}, {}),
        ("ring as int8", ring, {"storage": "int8"}, {}),
        ("ring with a passphrase", ring, {"passphrase": "p"}, {"passphrase": "p"}),
        ("ring in a larger net", nn.Sequential(ring, nn.Linear(10, 3)), {}, {"base": nn.Sequential(plain(), nn.Linear(10, 3))}),
        ("two steps", pc.condense(pc.condense(plain(), "involution", include="layer3"), "ring", include="layer2"), {}, {}),
        ("condconv", pc.condense(plain(), "condconv"), {}, {}),
        ("pde", pc.condense(plain(), "pde"), {}, {}),
        ("puppet", pc.condense(plain(), "puppet"), {}, {}),
        ("mnist_net", pc.create_model("mnist_net", feature="pde"), {}, {}),
    ]  # fmt: skip
    sparse = plain(0.5)
    pc.storage.prune_(sparse, 0.7)
    nets.append(("without zeros", sparse, {"storage": "float16"}, {}))
    notes = {"data": "pets", "classes": ["cat", "dog"], "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for name, net, saving, loading in nets:
            pc.save(net, file := Path(folder) / "sample", notes=notes, **saving)
            made.append(Sample(name, file.read_bytes(), loading))
    return made


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path to every entry of nested JSON, containers included."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(entry, (*path, key))


_DEEP = "@deep@"
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 10**4, 10**6, 10**7, 10**9, 2**31, 2**32, 2**63, 2**64, 10**12, 10**18, 10**400, -(10**12),
    0.0, 0.5, -0.5, 1.5, 1e-300, 1e18, 1e308, math.nan, math.inf, -math.inf, "", "x", "resnet20", "resnet110", "resnet18_ring", "net.onnx",
    "../x", "ring", "puppet", "layer1", "layer1.0.conv1", "*", "[", "é\u0000\ud800", "x" * 10**5, [], {}, [[]], [1], [-1, 0, 2], ["x"],
    [None], {"": 1}, {"*": 1}, {"x": {}}, {"seed": -1}, list(range(10**4)), ["x"] * 10**4, _DEEP,
)  # fmt: skip


def changed(sample: Sample, dice: random.Random) -> tuple[str, bytes]:
    """Changes one entry of a sample's header; the checksum fits the change, as in a file made on purpose."""
    header = json.loads(sample.head["__metadata__"][FORMAT])
    path = dice.choice(list(places(header)))
    parent = header
    for key in path[:-1]:
        parent = parent[key]
    key, how = path[-1], dice.choice(["value"] * 8 + ["removed", "doubled", "moved"])
    value = dice.choice(HOSTILE)
    if how == "removed":
        del parent[key]
    elif how == "doubled" and isinstance(parent, list):
        parent.append(parent[key])
    elif how == "moved" and isinstance(parent, dict):
        parent[dice.choice(["x", "seed", "name", "levels"])] = parent.pop(key)
    else:
        how, parent[key] = repr(value)[:40], value
    text = json.dumps(header)
    if how == "doubled":
        text = text[:-1] + f", {json.dumps(str(path[0]))}: {json.dumps(value)}}}"  # the same name twice
    text = text.replace(f'"{_DEEP}"', "[" * 10**5 + "]" * 10**5)
    return f"{sample.name}: {'.'.join(map(str, path))} {how}", seal(sample.content, {FORMAT: text})


def damaged(sample: Sample, dice: random.Random) -> tuple[str, bytes]:
    """Changes bytes of a sample."""
    content, start, size = bytearray(sample.content), sample.start, len(sample.content)
    how = dice.choice(
        ["flip", "flip in the head", "cut", "insert", "delete", "zeros", "nan", "length", "swap", "double"]
    )
    place = dice.randrange(start, size)
    if how == "flip":
        content[place] ^= 1 << dice.randrange(8)
    elif how == "flip in the head":
        content[dice.randrange(start)] ^= 1 << dice.randrange(8)
    elif how == "cut":
        del content[dice.randrange(size) :]
    elif how == "insert":
        content[place:place] = dice.randbytes(dice.choice([1, 4, 8, 1000]))
    elif how == "delete":
        del content[place : place + dice.choice([1, 4, 8, 1000])]
    elif how == "zeros":
        content[place : place + 64] = bytes(min(64, size - place))
    elif how == "nan":
        place -= (place - start) % 4
        content[place : place + 4] = struct.pack("<f", dice.choice([math.nan, math.inf, 1e38]))[: size - place]
    elif how == "length":
        content[:8] = struct.pack(
            "<Q", dice.choice([0, 1, start, size, 2**24, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
        )
    elif how == "swap":
        one, other = (start + 4 * dice.randrange((size - start) // 4 - 16) for _ in range(2))
        content[one : one + 64], content[other : other + 64] = content[other : other + 64], content[one : one + 64]
    else:
        content += content[place:]
    return f"{sample.name}: {how} at {place}", bytes(content)


def reshaped(sample: Sample, dice: random.Random) -> tuple[str, bytes]:
    """Changes names, types, shapes or offsets in a sample's head, or exchanges tensors; the checksum is gone, as in old files."""
    head = sample.head
    names = [name for name in head if name != "__metadata__"]
    one, other = dice.choice(names), dice.choice(names)
    del head["__metadata__"][CHECKSUM]
    how = dice.choice(["dtype", "shape", "offsets", "exchange", "rename", "remove", "entry", "metadata"])
    if how == "dtype":
        head[one]["dtype"] = dice.choice(
            ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X", 1]
        )
    elif how == "shape":
        head[one]["shape"] = dice.choice(
            [[], [0], [1], [-1], [2**31], [2**63], head[one]["shape"][::-1], [1, *head[one]["shape"]]]
        )
    elif how == "offsets":
        head[one]["data_offsets"] = dice.choice(
            [[0, 0], [0, 4], [4, 0], [-1, 3], [0, 2**63], head[other]["data_offsets"]]
        )
    elif how == "exchange":
        head[one], head[other] = head[other], head[one]
    elif how == "rename":
        head[dice.choice(["", "x", f"{one}.weight", "storage.masks", "\ud800"])] = head.pop(one)
    elif how == "remove":
        del head[one]
    elif how == "entry":
        head[one] = dice.choice([None, 1, [], {}, "x"])
    else:
        head["__metadata__"] = dice.choice([None, {}, [], "x", {"a": 1}, {FORMAT: 1}, {FORMAT: "{}"}, {FORMAT: "\x00"}])
    encoded = json.dumps(head).encode()
    content = struct.pack("<Q", len(encoded)) + encoded + sample.content[sample.start :]
    return f"{sample.name}: {how} of {one}", content


def model_trials(
    make: Callable[[Sample, random.Random], tuple[str, bytes]], count: int, folder: Path, *, sealed: bool
) -> list[Trial]:
    """Trials with model files; `sealed` ones keep their checksum, and so must load as the sample does or not at all."""
    known, dice, trials = samples(), random.Random(0), []
    sound: dict[str, dict[str, torch.Tensor]] = {}

    def state_of(sample: Sample, path: Path) -> dict[str, torch.Tensor]:
        given = dict(sample.arguments)
        if "key" not in pc.checkpoint.read_header(path):
            given.pop("passphrase", None)
        return pc.load(path, **given).state_dict()

    def open_(sample: Sample, path: Path) -> str:
        state = state_of(sample, path)
        if sealed:
            if sample.name not in sound:
                (folder / "sound").write_bytes(sample.content)
                sound[sample.name] = state_of(sample, folder / "sound")
            if not all(torch.equal(state[name], tensor) for name, tensor in sound[sample.name].items()):
                return "loads with other tensors"
        odd = [name for name, tensor in state.items() if not torch.isfinite(tensor.double()).all()]
        return f"{odd[0]} is not finite" if odd else ""

    for number in range(count):
        sample = known[number % len(known)]
        name, content = make(sample, dice)
        trials.append(Trial(
            name,
            lambda path, content=content: path.write_bytes(content) and None,
            lambda path, sample=sample: open_(sample, path),
        ))  # fmt: skip
    return trials


def byte_trials(count: int, folder: Path) -> list[Trial]:
    """Changed bytes, and changed heads of files without a checksum."""
    half = count // 2
    return [
        *model_trials(damaged, count - half, folder, sealed=True),
        *model_trials(reshaped, half, folder, sealed=False),
    ]


def header_trials(count: int, folder: Path) -> list[Trial]:
    """Changed descriptions of nets."""
    return model_trials(changed, count, folder, sealed=False)


def run_folder_trials(count: int, folder: Path) -> list[Trial]:
    """Damaged folders of runs."""
    from hostile_runs import run_trials, sound

    sound()  # trained once
    return [Trial(*trial) for trial in run_trials(0, count)]


def image_folder_trials(count: int, folder: Path) -> list[Trial]:
    """Layouts of folders of images, usual and hostile ones."""
    from hostile_folders import folder_trials

    def trial(name: str, fill: Callable[[Path], object], check: Callable[[Path], object]) -> Trial:
        def make(path: Path) -> None:
            path.mkdir()
            fill(path)

        return Trial(ascii(name), make, lambda path: str(check(path) or ""))

    return [trial(*each) for each in folder_trials(0, count)]


GROUPS: dict[str, Callable[[int, Path], list[Trial]]] = {
    "headers": header_trials,
    "bytes": byte_trials,
    "runs": run_folder_trials,
    "folders": image_folder_trials,
}


def run(group: str, count: int, folder: Path) -> list[Outcome]:
    """Runs the trials of a group, each in an empty folder of its own."""
    outcomes = []
    for trial in GROUPS[group](count, folder):
        (place := folder / "trial").mkdir()
        outcomes.append(judge(trial, place / "thing"))
        shutil.rmtree(place)
    return outcomes


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(count: int) -> int:
    logging.getLogger("pocketcnn").setLevel(logging.CRITICAL)
    faults = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        largest = max(len(sample.content) for sample in samples())
        for group in GROUPS:
            run(group, 20, folder)  # imports and compilations
            before = peak()
            outcomes = run(group, count if group in ("headers", "bytes") else count // 4, folder)
            grown, slowest = peak() - before, max(outcomes, key=lambda outcome: outcome.seconds)
            print(
                f"{group}: {len(outcomes):,} trials; slowest {slowest.seconds:.2f} s ({slowest.trial}); memory grew by {grown / 1e6:.0f} MB"
            )
            for kind, number in Counter(outcome.kind for outcome in outcomes).most_common():
                print(f"    {number:6,}  {kind}")
            wrong = [outcome for outcome in outcomes if outcome.fault or outcome.seconds > LONGEST]
            for outcome in wrong[:40]:
                print(f"    FAULT  {outcome.trial}: {outcome.kind} {outcome.words[:300]} ({outcome.seconds:.1f} s)")
            faults += len(wrong) + (grown > 2 * largest + SPARE)
    print(f"{faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
