"""Runs command lines with hostile words, and checks that each ends in one line: `python benchmarks/hostile_lines.py [COUNT] [SEED]`.

A grammar makes the lines: a verb, its own flags, and for each flag values that no sane command has. Every line has at least one
word that must be refused before anything heavy begins. A line may end with code 0, 1 or 2; it must not print a traceback, call
itself a bug, take longer than five seconds, or complain in several lines.
"""

import contextlib
import dataclasses
import importlib
import io
import random
import sys
import tempfile
import time
from collections.abc import Iterator

from pocketcnn.cli import main
from pocketcnn.cli.verbs import VERBS

NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "1e-400",
    "٣",
    "−1",
    "1\u200b",
    "0x10",
    "1,5",
    "1__0",
    "--1",
    "1 2",
    "9" * 400,
]
HUGE = ["2147483648", "9223372036854775808", "1000000000000000000000"]
WORDS = [
    "", " ", "\0", "a\udc80b", "\ud800", "💥", "é́", "\u202e", "x" * 5000, "../" * 40, "'", '"', "a b", "a\nb", "\x1b[31m", "%s%n",
    "{}", "{0.__class__}", "None", "True", "-", "--", "@x", "*", "[", "~", "/dev/null", "/dev/full", "/", ".", "/proc/self/mem", "file:///etc",
    "http://127.0.0.1:9/x", "a:b:c",
]  # fmt: skip
SPECS = [
    "ring:size=nan", "ring:size=0.5,size=0.2", "ring:size=", "ring:size=-1", "ring:size=1e999", "ring:=1", "ring:size", "ring::", "ring:,",
    "ring:size={", "ring:size=" + "(" * 300, "ring:seed=-1", "ring:seed=99999999999999999999", "ring:scheme=\u0000", "ring:level=", "rong",
    "plain:size=1", "pde:dt=nan", "pde:num_steps=0", "pde:velocity=inf", "condconv:num_experts=0", "condconv:temperature=nan",
    "involution:kernel_size=2", "involution:reduction=0", "puppet:levels=0", "puppet:size=inf", "puppet:horizon=nan", "ring:size=[1]",
    "ring:size=True", "ring:size='a'", "RING", "ring:size=0.1;rm", "ring:subnets=[",
]  # fmt: skip
MODELS = [
    "resnet20:width=", "resnet20:width=nan", "resnet20:width=1e9", "resnet20:width=-1", "resnet20:num_classes=1.5", "resnet20:in_channels=0",
    "resnet20:in_channels=99999999999", "resnet20:width=1,width=2", "resnet20:wdth=1", "resnet20:stem=no", "resnet20:stem=None0",
    "resnet20:num_classes='ten'", "resnet19", "resnet20 ", "mnist_net:feature=no", "mnist_net:width=inf", "equilibrium:tolerance=-1",
    "cifar10/none", "none.safetensors", "x.onnx", ".", "/dev/null",
]  # fmt: skip
# A line of each verb that a wrong value is put into: what it needs beside the value, so that it is refused for its value.
FLAGS = {
    "numbers": ["epochs", "lr", "batch-size", "momentum", "weight-decay", "warmup", "clip-norm", "ema-decay", "seed", "crop", "cutout",
                "temperature", "width", "in-channels", "num-classes", "image-size", "limit", "validation", "workers", "num-nodes",
                "save-minutes", "decay", "label-smoothing", "feature-weight", "small-epochs", "teacher-weight", "devices"],
}  # fmt: skip
VALUES: dict[str, dict[str, list[str]]] = {
    "train": {f"--{flag}": NUMBERS for flag in FLAGS["numbers"]}
    | {"--method": SPECS, "--model": MODELS[:19], "--preset": WORDS},
    "compare": {f"--{flag}": NUMBERS for flag in FLAGS["numbers"]}
    | {"--seeds": NUMBERS, "--preset": WORDS, "--milestones": NUMBERS},
    "distil": {f"--{flag}": NUMBERS for flag in FLAGS["numbers"][:12]} | {"--teacher": WORDS, "--images": NUMBERS},
    "search": {
        "--trials": NUMBERS,
        "--max-bytes": NUMBERS + WORDS,
        "--max-macs": NUMBERS,
        "--max-ms": NUMBERS,
        "--preset": WORDS,
    },
    "shrink": {
        "": WORDS + MODELS,
        "--max-bytes": NUMBERS + WORDS,
        "--minutes": NUMBERS,
        "--method": SPECS,
        "--storage": WORDS,
        "--mean": NUMBERS,
    },
    "sensitivity": {"": WORDS + MODELS, "--method": SPECS, "--images": NUMBERS},
    "evaluate": {"--model": WORDS + MODELS, "--image-size": NUMBERS + HUGE, "--channels": NUMBERS},
    "classify": {"--top": NUMBERS, "--model": WORDS + MODELS, "": WORDS},
    "measure": {
        "": WORDS + MODELS,
        "--method": SPECS,
        "--batch": NUMBERS + HUGE,
        "--runs": NUMBERS,
        "--threads": NUMBERS + HUGE,
    },
    "bench": {"--only": WORDS},
    "condense": {
        "--method": SPECS,
        "--model": MODELS + WORDS,
        "--size": NUMBERS[:-1],
        "--seed": NUMBERS,
        "--images": NUMBERS,
    },
    "plan": {
        "--method": SPECS,
        "--model": MODELS + WORDS,
        "--include": WORDS,
        "--num-classes": NUMBERS + HUGE,
        "--width": NUMBERS,
    },
    "pack": {"": WORDS + MODELS, "--prune": NUMBERS, "--storage": WORDS, "--lock": WORDS},
    "publish": {"": WORDS + MODELS, "--output": ["", "\0"], "--record": WORDS},
    "export": {"": WORDS + MODELS, "--format": WORDS, "--opset": NUMBERS, "--batch": NUMBERS, "--entropy": NUMBERS},
    "models": {"": [word for word in WORDS if word not in ("*", "-")]},
    "data": {
        "": [word for word in WORDS if not word.startswith(("http", "/", ".", "~"))],
        "--image-size": NUMBERS + HUGE,
    },
    "report": {"": [word for word in WORDS if word not in ("/", ".", "~", "../" * 40)]},
    "reproduce": {"": WORDS, "--budget": NUMBERS, "--seeds": NUMBERS, "--recipe": WORDS},
    "picture": {"": WORDS + MODELS, "--images": NUMBERS, "--channel": NUMBERS},
    "explore": {"": WORDS + MODELS, "--images": NUMBERS, "--runtime": WORDS},
    "similarity": {"": WORDS + MODELS, "--threshold": NUMBERS, "--images": NUMBERS},
}
NEEDS = {"shrink": ["x.safetensors", "--max-bytes", "9k"], "sensitivity": ["x.safetensors"], "measure": ["resnet20"], "pack": ["resnet20"], "export": ["resnet20"], "classify": ["x.png"], "picture": ["x.safetensors"],
         "explore": ["x.safetensors"], "similarity": ["x.safetensors"], "data": ["digits"], "reproduce": ["ring_curve"], "publish": ["x.safetensors"],
         "distil": ["--teacher", "x.safetensors"], "evaluate": ["--model", "x.safetensors"]}  # fmt: skip


def lines(count: int, seed: int) -> Iterator[list[str]]:
    """Command lines, each with a word that is to be refused."""
    drawn = random.Random(seed)
    for _ in range(count):
        verb = drawn.choice(list(VERBS))
        flag = drawn.choice(list(VALUES[verb]))
        value = drawn.choice(VALUES[verb][flag])
        needed = NEEDS.get(verb, [])
        if flag in needed or (flag == "" and needed and not needed[0].startswith("--")):
            needed = []
        form = drawn.randrange(8)
        said = [value] if flag == "" else [f"{flag}={value}"] if form < 3 else [flag, value]
        if flag and form == 3:
            said = [*said, *said]  # twice
        if form == 4:
            said.append(
                drawn.choice(
                    ["--unknown", "--", "--no", "-x", "\u2014epochs", "--épochs", "extra\udcff", "--json=maybe"]
                )
            )
        yield [verb, *needed, *said] if drawn.random() < 0.7 else [verb, *said, *needed]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a line ended."""

    words: list[str]
    code: object
    seconds: float
    out: str
    complaint: str

    @property
    def fault(self) -> str:
        """What is wrong with the end; empty if nothing is."""
        if self.code not in (0, 1, 2, None):
            return f"ends with {self.code!r}"
        if "Traceback" in self.complaint or "this is a bug" in self.complaint:
            return "calls itself a bug"
        if self.code == 2 and not 1 <= self.complaint.count("\n") <= 2:
            return "complains in more lines than one"
        return f"takes {self.seconds:.1f} s" if self.seconds > 5 else ""


def outcome(words: list[str]) -> Outcome:
    """Runs a line in this process."""
    out, complaint = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    start, code = time.perf_counter(), "no exit"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
        try:
            main(words)
        except SystemExit as left:
            code = left.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    texts = [stream.buffer.getvalue().decode() for stream in (out, complaint)]  # type: ignore[attr-defined]
    return Outcome(words, code, time.perf_counter() - start, *texts)


def campaign(count: int, seed: int) -> list[Outcome]:
    """Runs lines in an empty folder, and returns those that end badly."""
    for module in (
        "lightning",
        "sklearn.datasets",
        "pocketcnn.experiments.search.study",
        "pocketcnn.experiments.compare",
    ):
        importlib.import_module(module)  # not to be counted as the time of a line
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        return [found for words in lines(count, seed) if (found := outcome(words)).fault]


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]]
    count, seed = (*asked, *(2000, 0)[len(asked) :])
    bad = campaign(count, seed)
    for found in bad:
        print(ascii(found.words)[:200], "->", found.fault, ascii(found.complaint)[:300])
    print(f"{count} lines, {len(bad)} end badly")
    sys.exit(bool(bad))
