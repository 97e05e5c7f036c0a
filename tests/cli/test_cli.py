import subprocess
import sys

import pytest

from pocketcnn.cli import VERBS, main


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


@pytest.mark.golden
def test_overview(golden, capsys):
    assert run("--help") == 0
    golden("help.txt", capsys.readouterr().out)


@pytest.mark.golden
@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_each_verb(verb, golden, capsys):
    assert run(verb, "--help") in (0, None)
    golden(f"help_{verb}.txt", capsys.readouterr().out)


def test_version_and_module():
    done = subprocess.run([sys.executable, "-m", "pocketcnn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pocketcnn 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["comapre"], "BadUsage: no verb 'comapre'; did you mean 'compare'?"),
        (["train", "--epohcs", "3"], "BadUsage: Unrecognized options: --epohcs, 3; did you mean --epochs"),
        (["train", "--epochs", "many"], "BadUsage: Error parsing --epochs"),
        (["train", "--epochs", "0"], "BadUsage: --epochs must lie in [1, 1000000], got 0"),
        (["train", "--preset", "magic"], "BadUsage: no preset 'magic'; known: default, demo"),
        (["train", "--method", "rong"], "UnknownMethod: no method 'rong'; did you mean 'ring'?"),
        (["train", "--model", "resnet19"], "UnknownModel: no model 'resnet19'; did you mean"),
        (["train", "--data", "cifar11"], "UnknownData: no data set 'cifar11'; did you mean 'cifar10'"),
        (["compare", "--methods", "ring:size=7.5"], "ValueError: ring: size as a fraction must lie in (0, 1]"),
        (["condense", "--method", "ring", "--size", "0"], "BadUsage: size as a length must be at least 1"),
        (["condense", "--method", "ring", "--num-experts", "2"], "BadUsage: Unrecognized options: --num-experts"),
        (["plan", "--include", "layer7"], "ValueError: include pattern 'layer7' matches no convolution"),
        (["measure", "resnet20", "--input-size", "1", "8", "8"], "ValueError: ResNet cannot take an image"),
        (["measure", "gone.safetensors"], "FileNotFoundError: gone.safetensors: no such model file"),
        (["models", "zzz*"], "UnknownModel: no model 'zzz*'"),
        (["measure", "resnet20", "--method", "pde:velocity=True"], "ValueError: pde: velocity must be 'depthwise' or"),
        (["measure", "resnet20", "--method", "pde:dt=-1.0"], "ValueError: pde: dt, dx and dy must be positive numbers"),
        (["measure", "resnet20", "--method", "pde:velocity=9.0"], "UnstableStep: pde: |u| dt/dx + |v| dt/dy is 3.6"),
        (
            ["condense", "--model", "resnet18", "--method", "pde"],
            "NothingToCondense: 'pde' found no run of equal blocks",
        ),
        (["report", "nowhere"], "BadData: nowhere: no finished runs"),
        (["compare", "--methods", "--models", "resnet20"], "ValueError: give at least one model and one method"),
        (["compare", "--models", "resnet18_ring"], "ValueError: resnet18_ring is a recipe, resnet18 condensed by ring"),
        (
            ["measure", "resnet20", "--input-size", "3", "0", "8"],
            "BadUsage: --input-size must lie in [1, 65536], got 0",
        ),
        (["condense", "--input-size", "1", "8", "8", "--output", "new.safetensors"], "ValueError: ResNet cannot take"),
        (["condense", "--output", "/nowhere/at/all.safetensors"], "CannotWrite: /nowhere/at/all.safetensors"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_debug_shows_the_traceback(capsys):
    assert run("measure", "resnet19", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_condense_plan_measure_and_models(tmp_path, capsys):
    path = tmp_path / "small.safetensors"
    assert run("condense", "--model", "resnet20", "--method", "ring", "--size", "0.1", "--output", str(path)) == 0
    assert f"{path}: {path.stat().st_size:,} bytes" in capsys.readouterr().out
    assert run("measure", str(path), "--runs", "2") == 0
    out = capsys.readouterr().out
    assert "depth" in out
    assert "40,813,184" in out
    assert run("measure", str(path), "--width", "0.5") == 2
    assert (
        "small.safetensors: the net in a model file is already built, --width cannot change it; leave --width out"
        in capsys.readouterr().err
    )
    assert run("plan", "--model", "resnet20", "--method", "condconv", "--num-experts", "2", "--include", "layer3") == 0
    assert "7 of 21 convolutions" in capsys.readouterr().out
    assert run("models", "*_ring") == 0
    assert "resnet34_ring" in capsys.readouterr().out


def test_train_report_and_data(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [
        "train",
        "--preset",
        "demo",
        "--epochs",
        "1",
        "--limit",
        "64",
        "--width",
        "0.25",
        "--method",
        "ring:size=0.5",
    ]
    assert run(*words, "--output", str(folder)) == 0
    assert "resnet20 width=0.25 ring:size=0.5" in capsys.readouterr().out
    assert (folder / "result.json").exists()
    assert run("report", str(folder)) == 0
    assert (folder / "report.html").exists()
    assert run("measure", str(folder / "model.safetensors"), "--runs", "2") == 0
    assert "images 1x8x8" in capsys.readouterr().out, "a trained file knows its image size"
    assert run("data", "digits") == 0
    assert "1,295" in capsys.readouterr().out


def test_compare(tmp_path, capsys):
    words = [
        "compare",
        "--preset",
        "demo",
        "--epochs",
        "1",
        "--limit",
        "64",
        "--width",
        "0.25",
        "--methods",
        "plain",
        "ring",
    ]
    assert run(*words, "--output", str(tmp_path / "cmp")) == 0
    out = capsys.readouterr().out
    assert "[2 of 2 runs]" in out
    assert "report.html" in out


def test_measure_counts_the_images_of_a_data_set(capsys):
    assert run("measure", "puppet_plain:width=0.25", "--in-channels", "1", "--data", "digits", "--runs", "1") in (
        0,
        None,
    )
    shown = capsys.readouterr().out
    assert "test images of digits, one at a time" in shown
    rows = [line.split() for line in shown.splitlines()]
    levels = [row for row in rows if row and row[0] in ("0", "1", "2", "3")]
    assert [int(row[5]) for row in levels] == [11, 14, 17, 20]
    assert sum(int(row[1]) for row in levels) == 359
    assert "energy:" in shown
