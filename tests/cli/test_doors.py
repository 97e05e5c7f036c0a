"""Every verb takes every net, and uses what the net's file knows; what is given and contradicts that is refused or said."""

import dataclasses
import re

import pytest
import torch

import pocketcnn as pc
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.cli import main
from pocketcnn.data import load
from pocketcnn.train import TrainConfig, evaluate, fit


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code or 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of colour images of many sizes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("data") / "photos"
    for place, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            colour = (20 * number, 200 * place, 90)
            image.new("RGB", (20 + number, 18), colour).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def grey_run(photos, tmp_path_factory):
    """A run whose images were made grey and small."""
    folder = tmp_path_factory.mktemp("runs") / "grey"
    data = load(photos, image_size=8, channels=1, cache=tmp_path_factory.mktemp("cache"))
    net = pc.create_model("resnet20", width=0.1, in_channels=1, num_classes=2)
    fit(net, data, TrainConfig(epochs=1, batch_size=8, precision="float32", channels_last="off"), folder)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--model", "RUN"],
        ["evaluate", "--model", "RUN", "--data", "PHOTOS"],
        ["pack", "RUN", "--storage", "int8", "--data", "PHOTOS"],
        ["picture", "RUN", "--images", "0", "--output", "out"],
        ["similarity", "RUN", "--output", "out"],
        ["publish", "RUN", "--data", "PHOTOS", "--output", "out"],
        ["condense", "--model", "RUN", "--method", "ring:size=0.5", "--data", "PHOTOS"],
        ["classify", "PHOTOS/cat/0.png", "--model", "RUN"],
        ["measure", "RUN", "--runs", "1"],
        ["plan", "--model", "RUN"],
        ["measure", "RUN/model.safetensors", "--runs", "1"],
        ["measure", "cifar10/resnet20", "--runs", "1"],
        ["plan", "--model", "cifar10/resnet20"],
        ["plan", "--model", "resnet18_ring", "--method", "condconv", "--include", "conv1"],
        ["pack", "resnet20:width=0.1"],
    ],
    ids=" ".join,
)
def test_what_a_net_knows_is_not_asked_for(words, grey_run, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("RUN", str(grey_run)).replace("PHOTOS", str(photos)) for word in words]
    assert run(*words) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--model", "RUN", "--image-size", "16"], "which --image-size 16 contradicts; leave --image-size 16"),
        (["evaluate", "--model", "RUN", "--channels", "3"], "was trained on images of 1x8x8 .* which --channels 3 contradicts"),
        (["measure", "RUN", "--input-size", "3", "8", "8"], "takes images of 1x8x8 .*, not 3x8x8; leave --input-size out"),
        (["measure", "RUN", "--in-channels", "3"], "already built, --in-channels cannot change it"),
        (["measure", "resnet20:width=0.5", "--width", "0.25"], "resnet20:width=0.5 and --width 0.25 differ; give one"),
        (["evaluate", "--model", "resnet20"], "a net by name is not trained; give its weights with --weights, or give a model file"),
        (["plan", "--method", "ring:size=0.1", "--size", "0.2"], "says --size 0.1, and --size says 0.2; give one of them"),
        (["plan", "--method", "ring:size=0.1,size=0.2"], "gives size twice; give it once"),
        (["measure", "HALF"], "the run in this folder is not finished; repeat its command"),
        (["measure", "TWO"], "holds 2 nets; give one of them: .*a.safetensors, .*b.safetensors"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(words, message, grey_run, tmp_path, capsys):
    for name in ("half", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    pc.save(pc.create_model("resnet20", width=0.1), tmp_path / "half" / "start.safetensors")
    for name in "ab":
        pc.save(pc.create_model("resnet20", width=0.1), tmp_path / "two" / f"{name}.safetensors")
    places = {"RUN": grey_run, "HALF": tmp_path / "half", "TWO": tmp_path / "two"}
    assert run(*(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_another_size_of_image_is_said(grey_run, capsys):
    assert run("measure", grey_run, "--runs", "1", "--input-size", "1", "16", "16") == 0
    assert "trained on images of 1x8x8; images of 1x16x16 are used, as --input-size says" in capsys.readouterr().err


def test_the_method_may_have_its_options_after_its_name(capsys):
    shown = []
    for words in (["ring:size=0.1,include=layer3.*"], ["ring:size=0.1", "--include", "layer3.*"], ["ring", "--size", "0.1", "--include", "layer3.*"],
                  ["ring:size=0.1", "--size", "0.1", "--include", "layer3.*"]):  # fmt: skip
        assert run("plan", "--method", *words) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1
    assert "7 of 21 convolutions" in shown[0]


def test_classes_are_matched_by_name(digits, capsys, tmp_path):
    turned = ImageNotes.of(digits).as_dict() | {"classes": list("9876543210")}
    net = pc.create_model("resnet20", width=0.1, in_channels=1).eval()
    pc.save(net, tmp_path / "net.safetensors", notes=turned)
    assert run("evaluate", "--model", tmp_path / "net.safetensors", "--data", "digits") == 0
    told = capsys.readouterr()
    turned_test = dataclasses.replace(digits.test, labels=9 - digits.test.labels)
    expected = evaluate(net, dataclasses.replace(digits, test=turned_test))
    assert f"test accuracy {100 * expected['test_accuracy']:.2f} %" in told.out
    assert "its 10 classes are matched by name with the net's 10" in told.err
    pc.save(net, tmp_path / "net.safetensors", notes=turned | {"classes": [*"01234", *"abcde"]})
    assert run("evaluate", "--model", tmp_path / "net.safetensors", "--data", "digits") == 2
    assert "has classes that the net does not know (5, 6, 7), beside those that it knows" in capsys.readouterr().err


def test_names_of_classes_in_any_unicode_form_are_alike(digits):
    notes = ImageNotes(classes=("caf\u00e9", "th\u00e9"))
    assert notes.knows(["the\u0301", "x"]) == (["the\u0301"], ["x"])
    data = dataclasses.replace(digits, classes=("the\u0301", "cafe\u0301"), **{
        name: dataclasses.replace(getattr(digits, name), labels=getattr(digits, name).labels % 2)
        for name in ("train", "validation", "test")
    })  # fmt: skip
    numbered = notes.numbered(data)
    assert numbered.classes == notes.classes
    assert torch.equal(numbered.test.labels, 1 - data.test.labels)


def test_distil_takes_the_data_of_its_teacher(grey_run, photos, tmp_path, capsys):
    words = ["distil", "--teacher", grey_run, "--epochs", "1", "--batch-size", "8", "--precision", "float32",
             "--channels-last", "off", "--output", tmp_path / "small"]  # fmt: skip
    assert run(*words, "--image-size", "16") == 2
    assert "which --image-size 16 contradicts" in capsys.readouterr().err
    assert run(*words) == 0
    assert ImageNotes.read(tmp_path / "small").input_size == (1, 8, 8)


def test_runs_of_a_comparison_are_told_apart(grey_run, tmp_path, capsys):
    for name in ("plain", "ring"):
        (tmp_path / name / "seed0").mkdir(parents=True)
        (tmp_path / name / "seed0" / "model.safetensors").write_bytes((grey_run / "model.safetensors").read_bytes())
    words = ["similarity", tmp_path / "plain" / "seed0", tmp_path / "ring" / "seed0"]
    assert run(*words, "--output", tmp_path / "out") == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"plain", "ring"} <= set(rows)
