"""Distilling: a student learns from a trained net, from any start, with labels or without, and resumes when stopped."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.checkpoint.storage import prune_
from pocketcnn.errors import BadData, BadImage, UnknownModel
from pocketcnn.support.files import read_json
from pocketcnn.support.modules import maps_of
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.distil import distil, pseudo_labelled
from pocketcnn.train.features import common_stages, map_distance

PRESET = TrainConfig(epochs=1, batch_size=48, lr=0.02, precision="float32", channels_last="off", teacher_weight=0.9)


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """A net that knows the digits a little."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    net = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
    fit(net, digits, dataclasses.replace(PRESET, epochs=2, lr=0.1), folder)
    return folder / "model.safetensors"


def test_a_student_starts_from_the_teachers_weights_and_resumes_where_it_was_stopped(teacher, few, tmp_path):
    result = distil(teacher, "condconv:num_experts=2", few, PRESET, tmp_path / "run", images=64)
    known = evaluate(pc.load(teacher), few, split="validation")["validation_accuracy"]
    assert result["start"]["validation_accuracy"] == pytest.approx(known)  # experts begin as the teacher
    assert result["identity"]["method"] == "condconv"
    assert result["identity"]["initialize"] == "fit"
    assert result["train"]["teacher"] == str(teacher)
    trained = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "result.json"):
        (tmp_path / "run" / name).unlink()
    assert (
        distil(teacher, "condconv:num_experts=2", few, PRESET, tmp_path / "run", images=64)["test_accuracy"]
        == result["test_accuracy"]
    )
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == trained
    for changed, message in (
        (dict(initialize="fresh"), "initialize was 'fit', now 'fresh'"),
        (dict(hold_zeros=True), "hold_zeros was False, now True"),
    ):
        with pytest.raises(ValueError, match=f"run: holds a student that began differently .{message}."):
            distil(teacher, "condconv:num_experts=2", few, PRESET, tmp_path / "run", images=64, **changed)
    with pytest.raises(ValueError, match="no initialization 'guess'; known: fit, fresh"):
        distil(teacher, "condconv", few, PRESET, tmp_path / "other", initialize="guess")


def test_a_fresh_student_a_file_and_a_net_by_name(teacher, few, tmp_path):
    fresh = distil(teacher, "ring:size=0.5", few, PRESET, tmp_path / "fresh", initialize="fresh")
    assert fresh["identity"]["label"] == "resnet20 ring:size=0.5 fresh"
    pruned = pc.load(teacher)
    prune_(pruned, 0.5)
    zeros = {name: p == 0 for name, p in pruned.named_parameters() if p.dim() == 4}
    pc.save(pruned, tmp_path / "pruned.safetensors")
    held = distil(teacher, str(tmp_path / "pruned.safetensors"), few, PRESET, tmp_path / "pruned", hold_zeros=True)
    assert (held["identity"]["initialize"], held["identity"]["method"]) == ("file", "plain")
    after = dict(pc.load(tmp_path / "pruned" / "model.safetensors").named_parameters())
    for name, zero in zeros.items():
        assert (after[name][zero] == 0).all()
        assert not torch.equal(after[name], dict(pruned.named_parameters())[name])
    again = distil(teacher, str(tmp_path / "fresh"), few, PRESET, tmp_path / "again")
    assert (again["identity"]["model"], again["identity"]["method"]) == ("resnet20", "ring")
    named = distil(teacher, "resnet20:width=0.125", few, PRESET, tmp_path / "named")
    assert named["identity"]["label"] == "resnet20:width=0.125 fresh"
    assert named["cost"]["trainable_params"] < fresh["cost"]["trainable_params"]
    with pytest.raises(UnknownModel, match="no model 'rings'"):
        distil(teacher, "rings", few, PRESET, tmp_path / "none")


def test_without_labels_a_student_learns_what_the_teacher_says(teacher, digits, tmp_path):
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number in range(40):
        image = Image.fromarray(digits.test.images[number, 0].numpy())
        image.resize((10, 12)).save(folder / ("inner" if number % 2 else "") / f"{number}.png")
    data = pseudo_labelled(teacher, folder)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [29, 3, 8]
    assert (data.mean, data.std, data.classes) == (digits.mean, digits.std, digits.classes)
    net = pc.load(teacher)
    assert evaluate(net, data)["test_accuracy"] == 1  # agreement of the teacher with itself
    result = distil(
        teacher, "ring:size=0.5", data, dataclasses.replace(PRESET, batch_size=8), tmp_path / "run", images=20
    )
    assert result["data"] == f"{folder}, as the teacher sees it"
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"broken\.png: cannot be decoded"):
        pseudo_labelled(teacher, folder)
    assert pseudo_labelled(teacher, folder, skip_bad_images=True).skipped == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="empty: 0 images in it; three or more"):
        pseudo_labelled(teacher, tmp_path / "empty")
    with pytest.raises(BadData, match="nowhere: there is no such folder of images"):
        pseudo_labelled(teacher, tmp_path / "nowhere")


def test_labels_are_not_looked_at_where_the_teacher_is_all(teacher, few, tmp_path):
    config = dataclasses.replace(PRESET, teacher_weight=1.0, augment=False)
    torch.manual_seed(0)
    wrong = pc.data.Images(few.train.images, (few.train.labels + 1) % 10)
    nets = []
    for number, train in enumerate((few.train, wrong)):
        distil(
            teacher, "ring:size=0.5", dataclasses.replace(few, train=train), config, tmp_path / str(number), images=64
        )
        nets.append(pc.load(tmp_path / str(number) / "model.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_a_teacher_of_other_classes(teacher, few, tmp_path):
    other = dataclasses.replace(few, classes=tuple("abcdefghij"))
    with pytest.raises(BadData, match=r"model\.safetensors: knows other classes than digits has"):
        distil(teacher, "ring", other, PRESET, tmp_path / "run")


def test_maps_of_stages_are_compared_by_name_and_shape(teacher, few):
    one = pc.load(teacher)
    other = pc.condense(one, "ring", size=0.3)
    x = torch.randn(4, 1, 8, 8)
    assert common_stages(one, other, x[:1]) == ["layer1", "layer2", "layer3"]
    with maps_of(one, ["layer1", "layer3"]) as maps, torch.no_grad():
        one(x)
    with maps_of(other, ["layer1", "layer3"]) as wanted, torch.no_grad():
        other(x)
    assert not one.layer1._forward_hooks
    by_hand = sum(F.mse_loss(maps[n], wanted[n]) / wanted[n].var() for n in ("layer1", "layer3")) / 2
    torch.testing.assert_close(map_distance(maps, wanted), by_hand)
    assert float(map_distance(maps, maps)) == 0
    with pytest.raises(BadData, match=r"no stage in common: layer1 gives \[4, 8, 8\].*; leave feature_weight out"):
        common_stages(one, pc.create_model("resnet20", in_channels=1, width=0.5), x[:1])


def test_a_student_of_maps_comes_nearer_to_them(teacher, few, tmp_path):
    """The maps of a student come near to its teacher's if it is trained on them, and stay apart if it is not."""
    net = pc.load(teacher)
    x = (few.test.images.float() / 255 - few.mean[0]) / few.std[0]
    apart = {}
    for weight in (0.0, 5.0):
        config = dataclasses.replace(PRESET, epochs=6, augment=False, feature_weight=weight)
        folder = tmp_path / str(weight)
        distil(teacher, "ring:size=0.6", few, config, folder, initialize="fresh")
        student = pc.load(folder / "model.safetensors")
        stages = common_stages(student, net, x[:1])
        with torch.no_grad(), maps_of(student, stages) as maps, maps_of(net, stages) as wanted:
            student(x), net(x)
        apart[weight] = float(map_distance(maps, wanted))
    assert apart[5.0] < 0.8 * apart[0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(feature_weight=-1.0), "feature_weight must be finite and 0 or more, got -1.0"),
        (dict(feature_weight=1.0, compile=True), "leave out compile and small_epochs"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_maps_need_a_teacher(few, tmp_path):
    net = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)
    with pytest.raises(ValueError, match=r"feature_weight 1\.0 needs a teacher"):
        fit(net, few, dataclasses.replace(PRESET, feature_weight=1.0), tmp_path)


def test_a_small_split_without_labels_has_images_in_all_parts(teacher, digits, tmp_path):
    """All parts have images, whichever classes the teacher finds: each image might be the only one of its class."""
    for number in range(6):
        Image.fromarray(digits.test.images[number, 0].numpy()).save(tmp_path / f"{number}.png")
    data = pseudo_labelled(teacher, tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4, 1, 1]
    with pytest.raises(ValueError, match="validation must be a fraction between 0 and 1, not 3"):
        pc.data.load_unlabelled(
            tmp_path, lambda x: x, classes="ab", mean=(0,), std=(1,), input_size=(1, 8, 8), validation=3
        )


def test_the_verb_says_how_the_student_began(teacher, tmp_path, capsys):
    from pocketcnn.cli import main

    flags = [
        "--data",
        "digits",
        "--limit",
        "96",
        "--epochs",
        "1",
        "--batch-size",
        "48",
        "--output",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as leaving:
        main(["distil", "--teacher", str(teacher), "--student", "condconv", *flags])
    assert leaving.value.code == 0
    start = read_json(tmp_path / "run" / "start.json")["validation_accuracy"]
    assert f"on validation images: {100 * start:.2f} %" in capsys.readouterr().out
    for words, message in (
        ([], "distil needs --teacher"),
        (["--teacher", str(teacher), "--unlabelled", str(tmp_path)], "give --data, or --unlabelled"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["distil", "--student", "condconv", *words, *flags])
        assert leaving.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main(["condense", "--model", str(teacher), "--method", "pde", "--initialize", "fit"])
    assert leaving.value.code == 2
    assert "name some with --data" in capsys.readouterr().err


def test_the_verb_condense_shows_what_a_fit_is_worth(teacher, tmp_path, capsys):
    from pocketcnn.cli import main

    words = ["condense", "--model", str(teacher), "--method", "condconv", "--initialize", "fit", "--data", "digits"]
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--images", "64", "--output", str(tmp_path / "small.safetensors")])
    assert leaving.value.code == 0
    shown = {
        line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if "validation" in line
    }
    assert shown["fit"] == pytest.approx(shown["before"], abs=0.5)
    assert shown["fresh"] < shown["before"]
    pc.load(tmp_path / "small.safetensors")
