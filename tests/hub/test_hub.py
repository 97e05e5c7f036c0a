"""Repositories of the hub: nets come back bit for bit, cards agree with records, uploads are recorded.

A folder plays the hub: uploads are copied into it, and downloads come from it.
"""

import dataclasses
import importlib
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, errors, hub_mixin
from torch import nn

import pocketcnn as pc
from pocketcnn import hub
from pocketcnn.cli import main
from pocketcnn.errors import BrokenFile, CannotReach, CannotWrite, ForeignFile, MissingBase, MissingExtra
from pocketcnn.hub import repository
from pocketcnn.support.files import read_json
from pocketcnn.train import TrainConfig, evaluate, fit


def own_net():
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def small_net(**options):
    return pc.create_model("resnet20", width=0.25, **options).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory, few):
    """The folder of a run of an epoch."""
    folder = tmp_path_factory.mktemp("hub") / "ring"
    net = pc.condense(pc.create_model("resnet20", width=0.25, in_channels=1), "ring", size=0.5)
    fit(net, few, TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off"), folder)
    return folder


class Hub:
    """A hub of one repository, in a folder."""

    def __init__(self, folder):
        self.folder, self.downloaded = folder, []

    def create_repo(self, repo_id, private, exist_ok):
        self.private = private
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id, filename, revision):
        return (self.folder / repo_id / filename).is_file()

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **_):
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.folder / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def download(self, repo_id, filename, **_):
        self.downloaded.append(filename)
        return str(self.folder / repo_id / filename)


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Plays the hub."""
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(repository._hub, "HfApi", lambda token: found)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda repo_id, filename, **_: found.download(repo_id, filename))
    monkeypatch.setattr(repository._hub, "hf_hub_download", found.download)
    return found


@pytest.mark.parametrize(
    ("make", "base", "storage"),
    [
        (small_net, None, None),
        (lambda: pc.condense(small_net(), "ring", size=0.2).eval(), None, None),
        (lambda: pc.condense(own_net(), "ring").eval(), own_net, None),
        (lambda: pc.condense(small_net(), "ring", size=0.2).eval(), None, "int8"),
    ],
    ids=["plain", "ring", "foreign", "int8"],
)
def test_a_folder_gives_back_the_net_that_a_file_would(make, base, storage, tmp_path):
    net = make()
    folder = hub.save_pretrained(net, tmp_path / "net", storage=storage, notes={"seen": [1, 2]})
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    pc.save(net, tmp_path / "net.safetensors", storage=storage)
    x = torch.randn(2, 3, 12, 12)
    expected = pc.load(tmp_path / "net.safetensors", base=base and base())(x)
    assert storage or torch.equal(expected, net(x))
    assert torch.equal(hub.from_pretrained(folder, base=base and base())(x), expected)
    assert torch.equal(pc.load(folder, base=base and base())(x), expected)
    assert read_json(folder / "config.json")["notes"] == {"seen": [1, 2]}


def test_a_card_says_what_the_record_says(run, tmp_path):
    result = read_json(run / "result.json")
    folder = hub.save_pretrained(run, tmp_path / "rings", license="mit")
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license, card.data.tags) == ("pocketcnn", "mit", ["pocketcnn", "ring"])
    (found,) = card.data.eval_results
    assert (found.metric_type, found.dataset_name) == ("accuracy", "digits")
    assert found.metric_value == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert f"| test accuracy of this file, on digits | {100 * result['test_accuracy']:.2f} % |" in card.text
    assert f"| trained parameters | {result['cost']['trainable_params']:,} |" in card.text
    assert f"| file | {(run / 'model.safetensors').stat().st_size:,} bytes, weights as they were trained |" in card.text
    assert "1. `ring(size=0.5)` replaces 20 of its parts, layer1.0.conv1 to layer3.2.conv2" in card.text
    assert "epochs=1 batch_size=32" in card.text
    assert "```python\nimport pocketcnn as pc\n\nnet = pc.from_pretrained('rings')\n```" in card.text
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(hub.from_pretrained(run)(x), pc.load(run / "model.safetensors")(x))


def test_a_packed_file_has_no_accuracy_but_what_was_measured(run, digits, tmp_path):
    packed = tmp_path / "packed.safetensors"
    notes = pc.checkpoint.read_header(run / "model.safetensors")["notes"]
    pc.save(pc.load(run), packed, storage="int8", notes=notes)
    record = read_json(run / "result.json")
    card = ModelCard.load(hub.save_pretrained(packed, tmp_path / "one", record=record) / "README.md")
    assert card.data.eval_results is None
    assert f"before the weights were stored as int8 | {100 * record['test_accuracy']:.2f} %" in card.text
    assert f"{packed.stat().st_size:,} bytes, weights as int8" in card.text
    words = ["publish", str(packed), "--record", str(run), "--data", "digits", "--output", str(tmp_path / "two")]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    (found,) = ModelCard.load(tmp_path / "two" / "README.md").data.eval_results
    seen = dataclasses.replace(digits, mean=tuple(notes["mean"]), std=tuple(notes["std"]))
    measured = evaluate(pc.load(packed), seen)
    assert found.metric_value == pytest.approx(measured["test_accuracy"], abs=1e-6)


def test_a_card_of_a_locked_foreign_net_says_what_loading_needs(tmp_path):
    net = pc.condense(own_net(), "ring", seed=(1 << 63) + 3)
    pc.save(net, tmp_path / "locked.safetensors", passphrase="open")
    folder = hub.save_pretrained(tmp_path / "locked.safetensors", tmp_path / "locked")
    text = (folder / "README.md").read_text()
    assert "pc.from_pretrained('locked', base=YourNet(), passphrase=...)" in text
    assert "seed=" not in text
    x = torch.randn(1, 3, 6, 6)
    again = hub.from_pretrained(folder, base=own_net(), passphrase="open")
    assert torch.equal(again(x), net.eval()(x))


def test_a_card_that_is_there_stays(tmp_path):
    folder = hub.save_pretrained(small_net(), tmp_path / "net")
    (folder / "README.md").write_text("mine")
    hub.save_pretrained(small_net(), folder)
    assert (folder / "README.md").read_text() == "mine"


def test_a_folder_whose_files_would_be_lost_is_refused(run, tmp_path):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(
        ValueError, match="ring: the model file lies there, and the files beside it would be overwritten"
    ):
        hub.save_pretrained(run, run)
    with pytest.raises(
        ValueError, match=r"ring/config\.json: not the configuration of a net of the hub, and would be overwritten"
    ):
        hub.save_pretrained(small_net(), run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(
        ValueError, match=r"config\.json: not the configuration of a net of the hub, and would be overwritten"
    ):
        hub.save_pretrained(small_net(), tmp_path)


def test_a_path_of_images_is_not_published(tmp_path):
    net, path = small_net(), tmp_path / "net.safetensors"
    pc.save(net, path, notes={"data": "/home/me/photos/birds", "classes": ["wren"]})
    folder = hub.save_pretrained(path, tmp_path / "net")
    assert not [file for file in folder.iterdir() if b"/home/me" in file.read_bytes()]
    assert read_json(folder / "config.json")["notes"] == {"data": "birds", "classes": ["wren"]}
    published = (folder / "model.safetensors").read_bytes()
    tensors = sum(8 * -(-tensor.nbytes // 8) for tensor in net.state_dict().values())
    assert published[-tensors:] == path.read_bytes()[-tensors:]
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(hub.from_pretrained(folder)(x), net(x))
    pc.save(net, path, notes={"data": "owner/birds"})
    hub.save_pretrained(path, folder)
    assert (folder / "model.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("notes", "record", "shown", "hidden"),
    [
        ({"classes": ["a", "b"]}, {}, "| classes | 2: a, b |", "mean"),
        ({"input_size": [3, 8, 8]}, {}, "| images | 3x8x8 (channels x height x width) |", "classes"),
        ({}, {"train": {"lr": 0.1}}, "## Training\n\n    lr=0.1", "epochs"),
        ({}, {"cost": {"macs": 1234}}, "| multiply-adds an image | 1,234 |", "trained parameters"),
        ({}, {"latency": {"median_ms": 1.0}}, "| file |", "latency"),
        ({}, {"data": "digits", "test_accuracy": 0.5}, "| test accuracy of this file, on digits | 50.00 % |", "images"),
    ],
)
def test_a_card_shows_what_is_known(notes, record, shown, hidden, tmp_path):
    text = (hub.save_pretrained(small_net(), tmp_path / "net", notes=notes, record=record) / "README.md").read_text()
    assert shown in text
    assert hidden not in text


def test_the_card_of_a_repository_stays_unless_a_folder_brings_another(played, tmp_path):
    hub.push_to_hub(small_net(), "me/small")
    card = played.folder / "me" / "small" / "README.md"
    card.write_text("theirs")
    hub.push_to_hub(small_net(), "me/small")
    assert card.read_text() == "theirs"
    folder = hub.save_pretrained(small_net(), tmp_path / "net")
    (folder / "README.md").write_text("mine")
    (folder / "thoughts.txt").write_text("not to be read")
    hub.push_to_hub(small_net(), "me/small", folder=folder)
    assert card.read_text() == "mine"
    assert not card.with_name("thoughts.txt").exists()


def test_what_cannot_be_saved_makes_no_repository(played, tmp_path):
    net = pc.fold_norm(small_net())
    with pytest.raises(CannotWrite, match="has batch norms folded"):
        hub.push_to_hub(net, "me/small")
    assert not (played.folder / "me" / "small").exists()


@pytest.mark.parametrize("notes", [{"data": {"a": 1}}, {"classes": 5}, {"mean": [None], "std": [0]}, {"input_size": 7}])
def test_the_card_leaves_out_damaged_notes(notes, tmp_path):
    pc.save(small_net(), tmp_path / "file", notes=notes)
    card = (hub.save_pretrained(tmp_path / "file", tmp_path / "net") / "README.md").read_text()
    assert not any(f"| {row} |" in card for row in ("classes", "images", "mean, deviation"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_configuration_is_named(content, tmp_path):
    folder = hub.save_pretrained(small_net(), tmp_path / "net")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BrokenFile, match=r"net: its config\.json is damaged"):
        hub.from_pretrained(folder)


def test_an_error_of_this_machine_is_none_of_the_hub(played, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(hub_mixin, "hf_hub_download", refuse)
    with pytest.raises(PermissionError, match="cache"):
        hub.from_pretrained("me/small")


def test_pushes_and_downloads_two_files(played, tmp_path):
    net = pc.condense(small_net(), "ring").eval()
    assert hub.push_to_hub(net, "me/small", private=True) == "https://hub/me/small/commit/1"
    assert played.private
    assert {path.name for path in (played.folder / "me" / "small").iterdir()} == {
        "model.safetensors", "config.json", "README.md",
    }  # fmt: skip
    assert "pc.from_pretrained('me/small')" in (played.folder / "me" / "small" / "README.md").read_text()
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(hub.from_pretrained("me/small")(x), net(x))
    assert sorted(played.downloaded) == ["config.json", "model.safetensors"]


def response(status):
    return SimpleNamespace(headers={}, request=SimpleNamespace(url="", method="GET"), status_code=status)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            errors.RepositoryNotFoundError("", response=response(404)),
            CannotReach,
            "me/gone: the hub has no such repository, or you may not see it; there is no such folder here either",
        ),
        (
            errors.RevisionNotFoundError("", response=response(404)),
            CannotReach,
            "me/gone: the repository has no revision",
        ),
        (
            errors.RemoteEntryNotFoundError("", response=response(404)),
            FileNotFoundError,
            "me/gone: no model.safetensors in",
        ),
        (
            errors.HfHubHTTPError("", response=response(503)),
            CannotReach,
            r"gave no valid answer \(HfHubHTTPError 503",
        ),
        (
            errors.OfflineModeIsEnabled(),
            CannotReach,
            r"gave no valid answer \(OfflineModeIsEnabled\); there is no such folder here",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_does_not_give_is_said_in_one_line(raised, expected, message, played, monkeypatch):
    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr(repository._hub, "hf_hub_download", refuse)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", refuse)
    with pytest.raises(expected, match=message) as told:
        hub.from_pretrained("me/gone")
    assert "\n" not in str(told.value)


def test_an_upload_that_fails_is_said_in_one_line(played, monkeypatch):
    def refuse(*_, **__):
        raise errors.HfHubHTTPError("", response=response(403))

    monkeypatch.setattr(played, "create_repo", refuse)
    with pytest.raises(CannotReach, match=r"me/small: the hub gave no valid answer \(HfHubHTTPError 403\)"):
        hub.push_to_hub(small_net(), "me/small")


def test_mistakes(tmp_path):
    with pytest.raises(CannotReach, match=r"me/never: the hub gave no valid answer \(LocalEntryNotFoundError\)"):
        hub.from_pretrained("me/never", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="'a/b/c' is no existing folder, and cannot be a repository"):
        hub.from_pretrained("a/b/c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/model\.safetensors: no such model file"):
        hub.from_pretrained(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty/model\.safetensors: no such model file"):
        hub.save_pretrained(tmp_path / "empty", tmp_path / "other")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"some words, no tensors")
    with pytest.raises(ForeignFile, match="not a safetensors file"):
        hub.from_pretrained(tmp_path / "empty")
    folder = hub.save_pretrained(pc.condense(own_net(), "ring"), tmp_path / "own")
    with pytest.raises(MissingBase, match="pass a fresh plain one as base=net, to which 1 condensing"):
        hub.from_pretrained(folder)
    with pytest.raises(ValueError, match="a model file is published unchanged; leave out notes and storage"):
        hub.save_pretrained(folder, tmp_path / "again", storage="int8")


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "pocketcnn.hub.repository")
    with pytest.raises(
        MissingExtra, match=r"the hub needs huggingface_hub, which is not installed; pip install 'pocketcnn\[hub\]'"
    ):
        importlib.import_module("pocketcnn.hub.repository")
    importlib.import_module("pocketcnn.hub.timm")  # which does without


def published(*words):
    with pytest.raises(SystemExit) as left:
        main(["publish", *words])
    return left.value.code


def test_publishes_a_net_of_the_package(played, tmp_path, capsys):
    folder = tmp_path / "net"
    assert published("cifar10/resnet20_ring28", "--output", str(folder), "--repo", "me/ring") == 0
    assert capsys.readouterr().out.splitlines() == [f"folder: {folder}", "https://hub/me/ring/commit/1"]
    (card,) = pc.zoo.cards("resnet20_ring28")
    data = ModelCard.load(played.folder / "me" / "ring" / "README.md").data
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.eval_results[0].metric_value == pytest.approx(card.test_accuracy, abs=1e-6)
    assert played.private is None
    assert data.eval_results[0].dataset_name == "cifar10"
    assert f"| trained parameters | {card.trainable_params:,} |" in (folder / "README.md").read_text()
    assert published("cifar10/resnet20") == 2
    assert capsys.readouterr().err == "BadUsage: say where to: --output FOLDER, --repo OWNER/NAME, or both\n"
    assert published(str(tmp_path / "gone.safetensors"), "--output", str(folder)) == 2
    assert "no such model file" in capsys.readouterr().err


def test_publishes_no_accuracy_on_images_of_another_size(run, tmp_path, capsys):
    assert published("cifar10/resnet20", "--data", "digits", "--output", str(tmp_path / "net")) == 2
    told = capsys.readouterr().err
    assert "images are 1x8x8, the net was trained on 3x32x32 (channels x height x width)" in told
    assert not (tmp_path / "net").exists()
    model = pc.load(run)
    notes = {
        **pc.checkpoint.read_header(run / "model.safetensors")["notes"],
        "data": "own",
        "classes": list("abcdefghij"),
    }
    pc.save(model, tmp_path / "own.safetensors", notes=notes)
    assert published(str(tmp_path / "own.safetensors"), "--data", "digits", "--output", str(tmp_path / "net")) == 0
    assert "they are compared by number" in capsys.readouterr().err
    card = ModelCard.load(tmp_path / "net" / "README.md")
    assert card.data.eval_results[0].dataset_name == "digits"
    assert "| test accuracy of this file, on digits |" in card.text
    assert "| images | own, 1x8x8" in card.text


def test_publishes_with_the_record_of_a_finished_run_only(tmp_path, capsys):
    assert published("cifar10/resnet20", "--record", str(tmp_path), "--output", str(tmp_path / "net")) == 2
    assert "not the folder of a finished run: there is no result.json" in capsys.readouterr().err


def test_publishes_of_a_folder_the_file_that_loads(tmp_path, capsys):
    folder = hub.save_pretrained(small_net(), tmp_path / "net")
    (folder / "earlier.safetensors").write_bytes(b"of another time")
    assert published(str(folder), "--output", str(tmp_path / "again")) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
