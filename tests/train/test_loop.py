import csv
import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.errors import BadData, CannotWrite, ForeignFile, NonFiniteLoss
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.config import learning_rate_scale
from pocketcnn.train.module import Classifier, views

QUICK = TrainConfig(epochs=2, batch_size=32, precision="float32", channels_last="off")


def tiny(seed=0):
    torch.manual_seed(seed)
    return pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_is_complete(few, tmp_path):
    net = tiny()
    result = fit(net, few, QUICK, tmp_path / "run", name="tiny", identity={"model": "resnet20"})
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "config.json",
        "environment.json",
        "metrics.csv",
        "result.json",
        "model.safetensors",
        "last.ckpt",
        "previous.ckpt",
    }
    assert [int(row["epoch"]) for row in rows(tmp_path / "run")] == [1, 2]
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["file_bytes"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    assert result["identity"] == {"model": "resnet20"}
    loaded = pc.load(tmp_path / "run" / "model.safetensors")
    scores = evaluate(loaded, few)
    assert scores["test_accuracy"] == pytest.approx(result["test_accuracy"])
    assert scores["test_loss"] == pytest.approx(result["test_loss"], rel=1e-4)


def test_it_learns(digits, tmp_path):
    config = dataclasses.replace(QUICK, epochs=6, lr=0.1, batch_size=64)
    result = fit(
        pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.5), digits, config, tmp_path / "run"
    )
    assert result["test_accuracy"] > 0.9


def test_a_finished_run_is_read_not_repeated(few, tmp_path):
    first = fit(tiny(), few, QUICK, tmp_path / "run")
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert fit(tiny(), few, QUICK, tmp_path / "run") == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp


def test_equal_seeds_give_equal_bits(few, tmp_path):
    for name in ("a", "b"):
        fit(tiny(), few, QUICK, tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    fit(tiny(1), few, dataclasses.replace(QUICK, seed=1), tmp_path / "c")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "clip_norm": 1.0, "optimizer": "adamw", "lr": 1e-3}])
def test_resuming_after_an_epoch_gives_the_uninterrupted_runs_bits(few, tmp_path, options, monkeypatch):
    config = dataclasses.replace(QUICK, epochs=3, **options)
    whole = fit(tiny(), few, config, tmp_path / "whole")
    from pocketcnn.train.callbacks import EpochLog

    original = EpochLog.on_train_epoch_start

    def stop_in_epoch_3(self, trainer, module):
        if trainer.current_epoch == 2:
            raise RuntimeError("the power went out")
        original(self, trainer, module)

    with monkeypatch.context() as patched:
        patched.setattr(EpochLog, "on_train_epoch_start", stop_in_epoch_3)
        with pytest.raises(RuntimeError, match="the power went out"):
            fit(tiny(), few, config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = fit(tiny(), few, config, tmp_path / "cut")
    assert resumed["test_loss"] == whole["test_loss"]
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert [row["epoch"] for row in rows(tmp_path / "cut")] == ["1", "2", "3"]


def test_another_configuration_in_the_same_folder_is_refused(few, tmp_path):
    fit(tiny(), few, QUICK, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with other settings \(epochs; epochs was 2, now 3\)"):
        fit(tiny(), few, dataclasses.replace(QUICK, epochs=3), tmp_path / "run")


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(few, tmp_path, monkeypatch):
    config = dataclasses.replace(QUICK, epochs=3)
    net = tiny()
    steps = []

    def poison(module, inputs, output):
        if module.training:
            steps.append(1)
            if len(steps) == 5:  # three steps an epoch: the second step of epoch 2
                return output * float("nan")
        return None

    net.register_forward_hook(poison)
    with pytest.raises(NonFiniteLoss, match="epoch 2, step 2: the loss is nan; the last checkpoint is kept"):
        fit(net, few, config, tmp_path / "run")
    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert fit(tiny(), few, config, tmp_path / "run")["epochs"] == 3, "training resumes from it"


def test_divergence_names_the_layer(few, tmp_path):
    """An enormous velocity overflows in the solver; the message names the layer, not a norm inside it."""
    net = pc.condense(pc.create_model("resnet20", in_channels=1, width=0.25), "pde", velocity="identity", num_steps=60)
    for norm in (net.layer2[1].velocity_x[1], net.layer2[1].velocity_y[1]):
        torch.nn.init.constant_(norm.bias, 1e4)
    with pytest.raises(
        NonFiniteLoss, match=r"first layer whose output is not finite is layer2\.1 \(GlobalLayer\); the"
    ):
        fit(net, few, QUICK, tmp_path / "run")


def test_a_net_that_does_not_fit_the_data_is_refused(few, tmp_path):
    with pytest.raises(
        BadData, match=r"images are 1 x 8 x 8 .*the net cannot take them .*make the net with in_channels=1"
    ):
        fit(pc.create_model("resnet20"), few, QUICK, tmp_path / "run")
    with pytest.raises(
        BadData, match=r"has 10 classes, the net's output for an image is \[4\]; make the net with num_classes=10"
    ):
        fit(pc.create_model("resnet20", in_channels=1, num_classes=4), few, QUICK, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir()), "nothing was written"


def test_unusual_nets_that_fit_are_taken(few, tmp_path):
    """A stem on the ring, and a fully convolutional net with routers: only the output must fit."""
    ring = pc.condense(tiny(), "ring", include="conv1")
    assert fit(ring, few, dataclasses.replace(QUICK, epochs=1), tmp_path / "ring")["epochs"] == 1
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    routed = pc.condense(net, "condconv")
    assert fit(routed, few, dataclasses.replace(QUICK, epochs=1), tmp_path / "routed")["epochs"] == 1


def test_a_folder_belongs_to_one_run(few, tmp_path):
    fit(tiny(), few, QUICK, tmp_path / "run")
    wider = pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.5)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(net"):
        fit(wider, few, QUICK, tmp_path / "run")
    with pytest.raises(ValueError, match=r"the data digits changed since this run began"):
        fit(tiny(), dataclasses.replace(few, fingerprint="another"), QUICK, tmp_path / "run")
    again = tiny(5)
    fit(again, few, QUICK, tmp_path / "run")
    trained = pc.load(tmp_path / "run" / "model.safetensors")
    assert torch.equal(again.conv1.weight, trained.conv1.weight), "afterwards the given net is the trained one"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[1, 2]")
    with pytest.raises(ForeignFile, match="not written by a run of pocketcnn"):
        fit(tiny(), few, QUICK, tmp_path / "other")


def test_trackers_get_every_epoch(few, tmp_path, monkeypatch):
    import lightning.pytorch as pl

    import pocketcnn.train.loop as loop

    logger = pl.loggers.CSVLogger(tmp_path, name="tracker", version="")
    monkeypatch.setattr(loop, "tracker", lambda kind, folder: logger)
    fit(tiny(), few, QUICK, tmp_path / "run", logger="tensorboard")
    logger.save()
    with open(tmp_path / "tracker" / "metrics.csv", newline="") as file:
        logged = [row["validation_accuracy"] for row in csv.DictReader(file)]
    assert [float(value) for value in logged] == pytest.approx(
        [float(r["validation_accuracy"]) for r in rows(tmp_path / "run")], rel=1e-4
    )


def test_evaluate_takes_any_precision(few):
    assert 0 <= evaluate(tiny().double(), few)["test_accuracy"] <= 1


def test_the_loss_is_that_of_all_images_though_the_last_batch_is_smaller(digits):
    net = tiny()
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(
            net.eval()((digits.test.images / 255 - digits.mean[0]) / digits.std[0]), digits.test.labels
        )
    assert len(digits.test) % 256
    assert evaluate(net, digits)["test_loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_a_net_that_was_loaded_is_trained_and_frozen_parts_stay_frozen(few, tmp_path):
    one_epoch = dataclasses.replace(QUICK, epochs=1)
    fit(tiny(), few, one_epoch, tmp_path / "first")
    loaded = pc.load(tmp_path / "first" / "model.safetensors")
    before = loaded.bn1.running_mean.clone()
    fit(loaded, few, one_epoch, tmp_path / "second")
    assert not torch.equal(loaded.bn1.running_mean, before)
    frozen = tiny().train()
    frozen.bn1.eval()
    with pytest.warns(UserWarning, match="module.* in eval mode"):
        fit(frozen, few, one_epoch, tmp_path / "third")
    assert torch.equal(frozen.bn1.running_mean, torch.zeros_like(before))


def test_a_folder_that_is_not_writable_is_refused(few, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWrite, match="cannot write there"):
        fit(tiny(), few, QUICK, tmp_path / "file" / "run")


def test_label_smoothing_cutout_and_bfloat16_run(few, tmp_path):
    config = dataclasses.replace(
        QUICK,
        epochs=1,
        label_smoothing=0.1,
        precision="bfloat16",
        channels_last="on",
        schedule="cosine",
        cutout=3,
        crop=2,
        flip="on",
    )
    assert fit(tiny(), few, config, tmp_path / "run")["train"]["precision"] == "bfloat16"


def test_auto_is_resolved_and_recorded(few, tmp_path):
    config = TrainConfig(epochs=1, batch_size=32)
    result = fit(tiny(), few, config, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert written["precision"] in ("float32", "bfloat16")
    assert written["channels_last"] in ("on", "off")
    assert result["train"] == written


def test_schedules_rise_and_fall():
    for schedule in ("one_cycle", "cosine"):
        scale = [learning_rate_scale(step, 100, TrainConfig(schedule=schedule)) for step in range(101)]
        assert max(scale) == pytest.approx(1, abs=0.01)
        assert scale.index(max(scale)) in range(23, 27)
        assert scale[-1] == pytest.approx(0)
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(scale[:24]))
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(scale[26:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epochs=0), r"epochs must lie in \[1, 1000000\], got 0"),
        (dict(lr=-1.0), "lr must be finite and more than 0, got -1.0"),
        (dict(momentum=1.0), r"momentum must lie in \[0, 1\)"),
        (dict(optimizer="lion"), "no optimizer 'lion'; known: sgd, adamw"),
        (dict(weight_decay=-1.0), "weight_decay must be finite and 0 or more, got -1.0"),
        (dict(seed=-1), "seed must lie in"),
    ],
)
def test_configurations_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_an_ordinary_module_trains_too(few, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert fit(net, few, QUICK, tmp_path / "run")["cost"]["depth"] == 1


# --- the recipe of the speed runs ------------------------------------------------------------------------------------


def test_each_image_is_mirrored_every_other_epoch(few, tmp_path, monkeypatch):
    seen = []

    def look(images, how, generator, *, part, parts, mirrored):
        seen.append((images.clone(), mirrored))
        return images

    monkeypatch.setattr("pocketcnn.train.module.augment", look)
    fit(tiny(), few, dataclasses.replace(QUICK, flip="alternate"), tmp_path / "run")
    epochs = [{}, {}]
    half = len(seen) // 2
    for step, (images, mirrored) in enumerate(seen):
        for image, mirror in zip(images, mirrored, strict=True):
            epochs[step // half][image.numpy().tobytes()] = bool(mirror)
    both = epochs[0].keys() & epochs[1].keys()
    assert len(both) > 50
    assert all(epochs[0][image] is not epochs[1][image] for image in both)
    assert 0.2 < sum(epochs[0].values()) / len(epochs[0]) < 0.8


@pytest.mark.parametrize(("tta", "count"), [("flip", 2), ("flip_shift", 6)])
def test_averaged_scores_stand_beside_the_ordinary_ones(few, tmp_path, tta, count):
    net = tiny()
    result = fit(net, few, dataclasses.replace(QUICK, tta=tta), tmp_path / "run")
    plain = fit(tiny(), few, QUICK, tmp_path / "plain")
    assert result["test_accuracy"] == plain["test_accuracy"]
    assert result["test_tta_loss"] != result["test_loss"]
    x = (few.test.images / 255 - few.mean[0]) / few.std[0]
    shown = list(views(x, tta))
    assert len(shown) == count
    assert sum(weight for weight, _ in shown) == 1
    with torch.no_grad():
        averaged = sum(weight * net.eval()(view) for weight, view in shown)
    accuracy = float((averaged.argmax(1) == few.test.labels).float().mean())
    assert result["test_tta_accuracy"] == pytest.approx(accuracy)
    again = evaluate(net, few, tta=tta)
    assert again["test_tta_accuracy"] == pytest.approx(accuracy)
    assert evaluate(net, few, split="validation", tta=tta).keys() == {
        "validation_loss", "validation_accuracy", "validation_tta_loss", "validation_tta_accuracy",
    }  # fmt: skip


def test_shifted_views_have_reflected_edges():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    shifted = [view[0, 0].tolist() for weight, view in views(x, "flip_shift") if weight == 0.125]
    up = [[5, 4, 5, 6], [1, 0, 1, 2], [5, 4, 5, 6]]
    down = [[5, 6, 7, 6], [9, 10, 11, 10], [5, 6, 7, 6]]
    assert shifted == [up, [row[::-1] for row in up], down, [row[::-1] for row in down]]


def test_validation_images_may_be_trained_on_in_the_end(few, tmp_path):
    every = few.with_all_images()
    assert len(every.train) == len(few.train) + len(few.validation)
    fit(tiny(), few, dataclasses.replace(QUICK, all_images=True), tmp_path / "run")
    steps = len(every.train) // 32
    assert int(rows(tmp_path / "run")[0]["step"]) == steps
    with pytest.raises(ValueError, match=r"other settings \(train_images, all_images"):
        fit(tiny(), few, QUICK, tmp_path / "run")
    streamed = dataclasses.replace(few, train=object())
    with pytest.raises(ValueError, match="all_images takes images in memory"):
        streamed.with_all_images()
    with pytest.raises(ValueError, match="flip 'alternate' takes images in memory"):
        Classifier(tiny(), streamed, dataclasses.replace(QUICK, flip="alternate"))


def test_a_linear_schedule():
    config = TrainConfig(schedule="linear", warmup=0.25)
    assert [learning_rate_scale(step, 8, config) for step in range(9)] == pytest.approx(
        [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    )
