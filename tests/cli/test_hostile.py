"""Whatever is typed ends in one line: hostile words, streams that are closed, narrow terminals, and errors in the words of flags."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pocketcnn.cli import main
from pocketcnn.cli.printing import FLAGS, spoken

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "hostile_lines.py"


@pytest.fixture(scope="module")
def hostile():
    """The campaign in benchmarks/, of which the tests run a short form."""
    found = importlib.util.spec_from_file_location("hostile_lines", BENCHMARK)
    module = importlib.util.module_from_spec(found)
    sys.modules["hostile_lines"] = module
    found.loader.exec_module(module)
    return module


def test_hostile_lines_end_in_one_line(hostile):
    bad = hostile.campaign(120, seed=3)
    assert [(found.words, found.fault, found.complaint) for found in bad if "takes" not in found.fault] == []


def test_the_lines_are_always_the_same(hostile):
    assert list(hostile.lines(50, 1)) == list(hostile.lines(50, 1))
    assert {line[0] for line in hostile.lines(500, 1)} == set(hostile.VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --clip-norm nan", "Error parsing --clip-norm: a finite number is needed, not 'nan'"),
        ("train --image-size 2147483648", "--image-size must lie in [1, 16384], got 2147483648"),
        ("train --in-channels 2147483648", "--in-channels must lie in [1, 65536], got 2147483648"),
        ("train --batch-size 1000000000000", "--batch-size must lie in [1, 1000000]"),
        ("train --width 1e-9", "--width must lie in [0.001, 1000], got 1e-09"),
        ("train --epochs 1 --epochs 2", "--epochs is given twice; give it once"),
        ("train --augment --no-augment", "--augment is given twice"),
        ("train --epochs=1 --epochs 2", "--epochs is given twice"),
        ("train --image_size 8 --image-size 9", "--image-size is given twice"),
        ("train --limit 0.5", "{None}|INT is needed, not ['0.5']"),
        ("train --devices 99999", "--devices 99999: this machine has"),
        ("measure resnet20 --batch 900000 --runs 1", "a pass of 900,000 images of 3x32x32: "),
        ("measure resnet20:width=999.0", "GB, this machine has"),
        ("measure resnet20:num_classes=1.5", "resnet20: --num-classes must be int, not 1.5"),
        ("condense --method ring:size=nan", "ring: size must be int or float or a mapping"),
        ("report ''", "'' is no path"),
    ],
)
def test_each_fault_is_named(words, message, capsys):
    import shlex

    with pytest.raises(SystemExit) as left:
        main(shlex.split(words))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["train", "measure", "compare", "search", "pack"])
def test_help_states_the_ranges(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in {"measure": ["1 or more", "1 to 1,024"], "pack": ["in [0, 1)"]}.get(
        verb, ["1 or more", "more than 0", "in [0, 1)"]
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("a.png: 3 x 4 pixels; pass image_size= to bring all to one size", "a.png: 3 x 4 pixels; pass --image-size to bring all to one size"),
        ("lr must be positive, got nan", "--lr must be positive, got nan"),
        ("runs and threads must be at least 1", "--runs and --threads must be at least 1"),
        ("d: make the net with in_channels=1, or in_channels='x'.", "d: make the net with --in-channels 1, or --in-channels x."),
        ("d: load it with input_size=(3, 8, 8)", "d: load it with --input-size 3 8 8"),
        ("d: pass skip_bad_images (--skip-bad-images)", "d: pass --skip-bad-images"),
        ("devices=9: too many", "--devices 9: too many"),
        ("resnet20 lr=0.5 plain: lower lr", "resnet20 lr=0.5 plain: lower lr"),
        ("a/lr=3/in_channels: the path 'lr=3' and ring:lr=3 stay", "a/lr=3/in_channels: the path 'lr=3' and ring:lr=3 stay"),
        ("two\nlines\x1b[31m\u200b", "two lines\\x1b[31m\\u200b"),
    ],
)  # fmt: skip
def test_arguments_are_spelled_as_flags(message, said, monkeypatch):
    names = ("image_size", "lr", "runs", "threads", "in_channels", "input_size", "skip_bad_images", "devices")
    for name in names:
        monkeypatch.setitem(FLAGS, name, f"--{name.replace('_', '-')}")
    assert spoken(message) == said


def shell(line, **settings):
    """Runs a shell line in which POCKET stands for the command."""
    line = line.replace("POCKET", f"{sys.executable} -m pocketcnn")
    return subprocess.run(["bash", "-c", line], capture_output=True, env={**os.environ, **settings}, check=False)


@pytest.mark.parametrize(
    ("line", "settings", "code", "error"),
    [
        ("POCKET --help >&-", {}, 0, b""),
        ("POCKET train --epochs no 2>&- >&- <&-", {}, 2, b""),
        ("POCKET --help | head -c 1; exit ${PIPESTATUS[0]}", {}, 0, b""),
        ("POCKET --help > /dev/full", {}, 1, b"CannotWrite: standard output: No space left on device"),
        ("POCKET train --data $'a\\x80b' --epochs no", {"PYTHONIOENCODING": "ascii"}, 2, b"BadUsage: Error parsing --epochs"),
        ("POCKET $'tr\\x80in'", {"LC_ALL": "C", "PYTHONUTF8": "0"}, 2, b"BadUsage: no verb 'tr\\udc80in'"),
        ("POCKET report --help", {"NO_COLOR": "1", "COLUMNS": "1"}, 0, b""),
    ],
)  # fmt: skip
def test_streams_that_cannot_be_written(line, settings, code, error):
    done = shell(line, **settings)
    assert done.returncode == code
    assert done.stderr.startswith(error)
    assert done.stderr.count(b"\n") <= 1
    assert b"Traceback" not in done.stderr
