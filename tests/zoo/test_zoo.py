"""Trained nets in the package: adding, finding and using them, and that the shipped files agree with their cards."""

import dataclasses
import hashlib
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import pocketcnn as pc
from pocketcnn import checkpoint, zoo
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.cli import main
from pocketcnn.errors import TamperedFile, UnknownModel, UnknownPretrained
from pocketcnn.support.files import read_json, write_json
from pocketcnn.train import evaluate
from pocketcnn.zoo import add as zoo_add
from pocketcnn.zoo.__main__ import main as zoo_command
from pocketcnn.zoo.add import LARGEST_FILE, LARGEST_ZOO, add

ROOT = Path(__file__).parents[2]
SHIPPED = zoo.cards()
CLASSES = ["plane", "car", "bird", "cat"]
COLOURS = {"data": "cifar10", "classes": CLASSES, "input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


def write_run(folder, net, notes, **result):
    """Writes the files of a finished run that the zoo reads."""
    folder.mkdir()
    pc.save(net, folder / "model.safetensors", notes=notes)
    fields = {"test_accuracy": 0.25, "seed": 7, "epochs": 3, "train": {"epochs": 3, "seed": 7}, **result}
    write_json(folder / "result.json", fields)
    write_json(folder / "config.json", {"train": fields["train"]})
    return folder


def small_net(seed=0, name="resnet20", **options):
    """A very narrow net whose outputs differ clearly between images."""
    torch.manual_seed(seed)
    net = pc.create_model(name, **{"width": 0.25, "in_channels": 1, "num_classes": 10, **options})
    with torch.no_grad():
        for _ in range(20):  # so that its batch norms have statistics
            net(torch.randn(16, net.conv1.in_channels, 8, 8))
        net.fc.weight.mul_(5)
    return net


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty zoo in place of the package's."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def digits_run(tmp_path, digits):
    return write_run(tmp_path / "run", small_net(), {**ImageNotes.of(digits).as_dict(), "data": "/home/me/data/digits"})


@pytest.fixture
def filled(folder, digits_run, digits):
    """A zoo with one net for digits, and two for colour images that are written by hand, because no such data are loaded."""
    add(digits_run, name="resnet20", data="digits", commit="abc", dataset=digits)
    entries = read_json(folder / "index.json")
    (folder / "cifar10").mkdir()
    for number, name in enumerate(("first", "second")):
        path = folder / "cifar10" / f"{name}.safetensors"
        size = pc.save(small_net(number, in_channels=3, num_classes=4), path, notes=COLOURS)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        own = {"name": name, "data": "cifar10", "file": f"cifar10/{name}.safetensors", "sha256": sha256}
        entries.append({**entries[0], **own, "size_bytes": size, "test_accuracy": 0.5 + 0.1 * number})
    write_json(folder / "index.json", entries)
    return folder


# --- adding and finding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_what_is_added_is_found_and_loads_as_it_was_stored(folder, digits_run, digits, tmp_path, storage):
    card = add(
        digits_run, name="resnet20", data="digits", commit="abc", storage=storage, record="results/x", dataset=digits
    )
    path = folder / "digits" / "resnet20.safetensors"
    assert zoo.cards() == (card,)
    assert card == zoo.Card(
        name="resnet20",
        data="digits",
        file="digits/resnet20.safetensors",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size_bytes=path.stat().st_size,
        storage=storage,
        trainable_params=sum(p.numel() for p in small_net().parameters()),
        test_accuracy=card.test_accuracy,
        trained_accuracy=0.25,
        seed=7,
        epochs=3,
        train={"epochs": 3, "seed": 7},
        commit="abc",
        record="results/x",
        note="",
    )
    net = pc.create_model("resnet20", pretrained="digits")
    assert not net.training
    trained = pc.load(digits_run / "model.safetensors")
    pc.save(trained, tmp_path / "packed", storage=storage)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(net(x), pc.load(tmp_path / "packed")(x))
    assert torch.equal(net(x), trained(x)) == (storage == "float32")
    assert card.test_accuracy == evaluate(net, digits)["test_accuracy"]
    assert checkpoint.read_header(path)["notes"] == ImageNotes.of(digits).as_dict(), (
        "the folder of the machine is not told"
    )
    assert b"/home/me" not in path.read_bytes()


def test_a_packed_file_is_added(folder, digits_run, digits, tmp_path):
    card = add(digits_run, name="a", data="digits", commit="abc", storage="int8", norms="folded", dataset=digits)
    trained = pc.load(digits_run / "model.safetensors")
    notes = ImageNotes.of(digits).as_dict()
    size = pc.save(trained, tmp_path / "packed", storage="int8", packed=True, norms="folded", notes=notes)
    assert card.size_bytes == size < pc.save(trained, tmp_path / "whole", storage="int8", notes=notes) - 5000
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(pc.load(zoo.path_of(card))(x), pc.load(tmp_path / "packed")(x))


def test_the_accuracy_is_of_images_as_the_net_was_trained_to_see_them(folder, digits_run, digits):
    """Mean and deviation of a data set depend on its split; those of another split would change the outputs."""
    shifted = dataclasses.replace(digits, mean=(0.9,), std=(0.02,))
    expected = evaluate(pc.load(digits_run / "model.safetensors"), digits)["test_accuracy"]
    assert evaluate(pc.load(digits_run / "model.safetensors"), shifted)["test_accuracy"] != expected
    card = add(digits_run, name="a", data="digits", commit="", storage="float32", dataset=shifted)
    assert card.test_accuracy == expected


def test_adding_again_replaces_and_cards_are_sorted(folder, digits_run, digits):
    for data, name in (("two", "b"), ("two", "a"), ("one", "z"), ("two", "b")):
        add(digits_run, name=name, data=data, commit="abc", note=name, dataset=digits)
    add(digits_run, name="b", data="two", commit="newer", storage="int8", dataset=digits)
    assert [card.title for card in zoo.cards()] == ["one/z", "two/a", "two/b"]
    assert zoo.cards()[-1].commit == "newer"
    assert zoo.path_of(zoo.cards()[-1]).stat().st_size == zoo.cards()[-1].size_bytes
    assert [entry["name"] for entry in json.loads((folder / "index.json").read_text())] == ["z", "a", "b"]
    assert [card.title for card in zoo.cards("[ab]", "two")] == ["two/a", "two/b"]
    assert [card.title for card in zoo.cards("one/*")] == ["one/z"]
    assert zoo.cards("*", "three") == ()


def test_what_is_too_large_or_unfinished_changes_nothing(filled, digits_run, digits, monkeypatch, tmp_path):
    def state():
        return {path: path.read_bytes() for path in filled.rglob("*") if path.is_file()}

    before, size = state(), zoo.find("resnet20", "digits").size_bytes
    total = sum(card.size_bytes for card in zoo.cards())
    given = {"data": "digits", "commit": "", "dataset": digits}
    monkeypatch.setattr(zoo_add, "LARGEST_FILE", size - 1)
    with pytest.raises(ValueError, match=rf"digits/new: {size:,} bytes as float16, a file may have {size - 1:,}"):
        add(digits_run, name="new", **given)
    monkeypatch.setattr(zoo_add, "LARGEST_FILE", 2_000_000)
    monkeypatch.setattr(zoo_add, "LARGEST_ZOO", total)
    with pytest.raises(ValueError, match=rf"digits/new: {total + size:,} bytes with all others, the zoo may have"):
        add(digits_run, name="new", **given)
    for name in ("..", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="cannot be a file's name"):
            add(digits_run, name=name, **given)
    with pytest.raises(FileNotFoundError, match="not the folder of a finished run"):
        add(tmp_path, name="new", **given)
    assert state() == before
    add(digits_run, name="resnet20", **given)  # the file that it replaces does not count


def test_the_limits_are_those_of_the_package():
    assert (LARGEST_FILE, LARGEST_ZOO) == (2_000_000, 8_000_000)


def test_the_command_that_adds(folder, digits_run, capsys):
    words = [digits_run, "--name", "tiny", "--data-name", "numbers", "--data", "digits", "--commit", "abc"]
    words += ["--storage", "int8", "--record", "results/x", "--note", "by hand"]
    tyro.cli(zoo_command, args=[str(word) for word in words])
    (card,) = zoo.cards()
    assert capsys.readouterr().out.startswith(f"numbers/tiny: {card.size_bytes:,} bytes, test accuracy ")
    assert (card.storage, card.commit, card.record, card.note) == ("int8", "abc", "results/x", "by hand")


def test_a_zoo_elsewhere(filled, digits_run, digits, tmp_path):
    known = zoo.cards()
    card = add(digits_run, name="other", data="digits", commit="", folder=tmp_path / "copy", dataset=digits)
    assert [entry["name"] for entry in read_json(tmp_path / "copy" / "index.json")] == ["other"]
    assert (tmp_path / "copy" / card.file).stat().st_size == card.size_bytes
    assert zoo.cards() == known


def test_a_net_without_a_data_set_is_fresh(filled):
    net = pc.create_model("resnet20", width=0.25)
    assert net.training
    assert net.fc.out_features == 10
    assert pc.create_model is zoo.create_model
    with pytest.raises(UnknownModel, match="no model 'resnet19'; did you mean"):
        pc.create_model("resnet19")


@pytest.mark.parametrize("change", ["one byte", "cut", "gone"])
def test_a_file_that_is_not_the_one_of_its_card_is_refused(filled, change, capsys):
    card = zoo.find("resnet20", "digits")
    path = zoo.path_of(card)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    match = rf"resnet20\.safetensors: found \w+, wanted {card.sha256[:12]} \(sha256\); install the package again"
    path.write_bytes(content if change == "one byte" else content[:-9])
    if change == "gone":
        path.unlink()
    with pytest.raises(TamperedFile, match=match):
        pc.create_model("resnet20", pretrained="digits")
    assert run("measure", "digits/resnet20") == 2
    assert capsys.readouterr().err.startswith("TamperedFile: ")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("resnet21", "digits", r"no trained net 'digits/resnet21'; did you mean 'digits/resnet20'\? Known: digits/resnet20\.$"),
        ("resnet20", "cifar10", r"Known: cifar10/first, cifar10/second\. 'resnet20' was trained on: digits\.$"),
        ("resnet20", "digit", r"did you mean 'digits/resnet20'\? Known: .*cifar10/first.* Data sets: cifar10, digits\.$"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_brings_near_ones(filled, name, data, message):
    with pytest.raises(UnknownPretrained, match=message):
        pc.create_model(name, pretrained=data)


def test_an_empty_zoo_says_so(folder):
    assert zoo.cards() == ()
    with pytest.raises(UnknownPretrained, match="Data sets: none"):
        pc.create_model("resnet20", pretrained="cifar10")


def test_options_of_a_trained_net_must_be_its_own(filled):
    own = {"in_channels": 1, "num_classes": 10}
    x = torch.randn(2, 1, 8, 8)
    one, other = (pc.create_model("resnet20", pretrained="digits", **options) for options in ({}, own))
    assert torch.equal(one(x), other(x))
    for option, value, message in (
        ("in_channels", 3, "in_channels=3, its in_channels is 1; leave in_channels out"),
        ("num_classes", 9, "num_classes=9, its num_classes is 10"),
        ("width", 0.25, r"width=0\.25, it is already built; leave width out"),
    ):
        with pytest.raises(ValueError, match=rf"digits/resnet20: a trained net cannot be made with {message}"):
            pc.create_model("resnet20", pretrained="digits", **{**own, option: value})


# --- on the command line ---------------------------------------------------------------------------------------------


def picture(path, mode, size):
    """An image file of random pixels."""
    pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[..., :3], "RGB")
    (image if mode == "RGBA" else image.convert(mode)).save(path)
    return path


def test_models_lists_the_trained_nets(filled, capsys):
    assert run("models", "--pretrained") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["data/name", "accuracy", "bytes", "storage", "trainable", "seed", "epochs"]
    assert [row[0] for row in rows[1:]] == ["cifar10/first", "cifar10/second", "digits/resnet20"]
    card = zoo.find("resnet20", "digits")
    numbers = [f"{100 * card.test_accuracy:.2f}%", f"{card.size_bytes:,}", "float16", f"{card.trainable_params:,}"]
    assert rows[3][1:] == [*numbers, "7", "3"]
    assert run("models", "--pretrained", "cifar10/*") == 0
    assert "digits" not in capsys.readouterr().out
    assert run("models", "--pretrained", "zzz*") == 2
    assert capsys.readouterr().err.startswith("UnknownPretrained: no trained net 'zzz*'")


def test_classify_converts_images_and_prints_what_the_net_says(filled, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"same": ("RGB", (32, 32)), "big": ("RGBA", (64, 48)), "grey": ("L", (32, 32)), "few": ("P", (20, 40))}
    files = [picture(Path(f"{name}.png"), *kind) for name, kind in sizes.items()]
    assert run("classify", *files, "--top", "2") == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "big.png: 64x48 RGBA converted to 32x32 RGB, cropped to a square",
        "grey.png: 32x32 grey converted to 32x32 RGB",
        "few.png: 20x40 P converted to 32x32 RGB, cropped to a square",
    ]
    header, columns, *rows = told.out.splitlines()
    assert header == "cifar10/second: trained on cifar10, images 3x32x32, 4 classes", "the most accurate one"
    assert columns.split() == ["image", "1.", "2."]
    assert [row.split()[0] for row in rows] == [str(file) for file in files]
    assert len({len(row) for row in (columns, *rows)}) == 1, "columns are aligned"

    pixels = torch.from_numpy(np.asarray(Image.open("same.png")).copy()).permute(2, 0, 1)
    x = (pixels / 255 - torch.tensor(COLOURS["mean"])[:, None, None]) / torch.tensor(COLOURS["std"])[:, None, None]
    shares = pc.create_model("second", pretrained="cifar10")(x[None]).detach().softmax(dim=1)[0]
    best = sorted(range(4), key=lambda index: -shares[index])
    words = rows[0].split()
    assert words[1::2] == [CLASSES[index] for index in best[:2]]
    assert [float(word.strip("%")) for word in words[2::2]] == pytest.approx(
        [100 * float(shares[index]) for index in best[:2]], abs=0.051
    )

    assert run("classify", "same.png", "--top", "99", "--model", "cifar10/first") == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert sorted(row[1::2]) == sorted(CLASSES), "there are no more than the classes"
    assert sum(float(word.strip("%")) for word in row[2::2]) == pytest.approx(100, abs=0.2)


def test_classify_by_a_grey_net_from_a_file_and_from_a_run(digits_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture("photo.png", "RGB", (8, 8))
    assert run("classify", "photo.png", "--model", digits_run) == 0
    told = capsys.readouterr()
    assert told.err == "photo.png: 8x8 RGB converted to 8x8 grey\n"
    assert run("classify", "photo.png", "--model", digits_run / "model.safetensors") == 0
    assert capsys.readouterr().out.splitlines()[1:] == told.out.splitlines()[1:]
    picture("grey.png", "L", (8, 8))
    assert run("classify", "grey.png", "--model", digits_run) == 0
    assert capsys.readouterr().err == ""


def test_classify_squares_only_for_square_nets(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pc.save(small_net(in_channels=3, num_classes=4), "wide.safetensors", notes={**COLOURS, "input_size": [3, 8, 16]})
    picture("fits.png", "RGB", (16, 8))
    picture("other.png", "RGB", (16, 16))
    assert run("classify", "fits.png", "--model", "wide.safetensors") == 0
    assert capsys.readouterr().err == ""
    assert run("classify", "other.png", "--model", "wide.safetensors") == 2
    assert capsys.readouterr().err.startswith(
        "BadImage: other.png: 16x16 RGB, the net takes 16x8 RGB, and only squares can be made from other sizes"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fine.png", "gone.png"], "FileNotFoundError: gone.png: no such image file"),
        (["big.png", "text.png"], "BadImage: text.png: cannot be decoded"),
        (["big.png", "deep.png"], "BadImage: deep.png: cannot be decoded (pixels of mode F have no known range"),
        (["fine.png", "--model", "fresh.safetensors"], "BadUsage: fresh.safetensors: not a trained net's file"),
        (["fine.png", "--model", "gone.safetensors"], "FileNotFoundError: gone.safetensors: no such model file"),
        (["fine.png", "--model", "here/gone"], "FileNotFoundError: here/gone: no such model file"),
        (["fine.png", "--model", "here"], "FileNotFoundError: here: no model file (*.safetensors) in this folder"),
        (["fine.png", "--model", "cifar10/frist"], "UnknownPretrained: no trained net 'cifar10/frist'; did you mean"),
        (["fine.png", "--top", "0"], "BadUsage: --top must be at least 1, not 0"),
        ([], "BadUsage: give at least one image file"),
    ],
)
def test_classify_fails_before_it_prints_anything(filled, words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture("fine.png", "RGB", (32, 32))
    picture("big.png", "RGB", (64, 64))
    Path("text.png").write_text("no image")
    Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)).save("deep.tif")
    Path("deep.tif").rename("deep.png")
    Path("here").mkdir()
    pc.save(small_net(), "fresh.safetensors")
    assert run("classify", *words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1


def test_classify_needs_a_model_where_the_zoo_has_none(folder, tmp_path, capsys):
    assert run("classify", picture(tmp_path / "a.png", "RGB", (32, 32))) == 2
    assert capsys.readouterr().err == (
        "BadUsage: the package holds no net that was trained on cifar10; give one with --model\n"
    )


def test_evaluate_a_packaged_net_a_file_and_a_run(filled, digits_run, digits, capsys):
    card = zoo.find("resnet20", "digits")
    expected = evaluate(pc.create_model("resnet20", pretrained="digits"), digits)
    assert run("evaluate", "--model", "digits/resnet20") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"digits/resnet20: {card.size_bytes:,} bytes, on {len(digits.test)} test images of digits",
        f"test accuracy {100 * expected['test_accuracy']:.2f} %",
        f"test loss {expected['test_loss']:.4f}",
    ]
    for model in (digits_run, digits_run / "model.safetensors"):
        assert run("evaluate", "--model", model, "--data", "digits") == 0
        size = (digits_run / "model.safetensors").stat().st_size
        assert capsys.readouterr().out.startswith(f"{model}: {size:,} bytes, on {len(digits.test)} test images")


def test_evaluate_shows_images_as_the_file_says(tmp_path, digits, capsys):
    net = small_net().eval()
    losses = []
    for mean in (digits.mean[0], 0.9):
        notes = {**ImageNotes.of(digits).as_dict(), "mean": [mean]}
        pc.save(net, tmp_path / "net.safetensors", notes=notes)
        assert run("evaluate", "--model", tmp_path / "net.safetensors") == 0
        losses.append(capsys.readouterr().out.split()[-1])
        assert losses[-1] == f"{evaluate(net, dataclasses.replace(digits, mean=(mean,)))['test_loss']:.4f}"
    assert losses[0] != losses[1]


def test_evaluate_on_other_images_and_classes(filled, digits, tmp_path, capsys):
    assert run("evaluate", "--model", "cifar10/first", "--data", "digits") == 2
    assert capsys.readouterr().err == (
        "BadUsage: digits: images are 1x8x8, the net was trained on 3x32x32 (channels x height x width); "
        "--image-size and --channels convert them\n"
    )
    words = ["evaluate", "--model", "cifar10/first", "--data", "digits", "--image-size", "32", "--channels", "3"]
    assert run(*words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "BadData: digits: has 10 classes, the net's output for an image is [4]" in told.err
    letters = {**ImageNotes.of(digits).as_dict(), "classes": list("abcdefghij")}
    pc.save(small_net(), tmp_path / "net.safetensors", notes=letters)
    assert run("evaluate", "--model", tmp_path / "net.safetensors") == 0
    told = capsys.readouterr().err
    assert told == "digits: its classes are 0, 1, 2, ...; the net's are a, b, c, ...; they are compared by number\n"
    pc.save(small_net(), tmp_path / "net.safetensors")
    assert run("evaluate", "--model", tmp_path / "net.safetensors") == 2
    assert "not a trained net's file" in capsys.readouterr().err


def test_other_verbs_take_packaged_nets(filled, tmp_path, capsys):
    assert run("measure", "digits/resnet20", "--runs", "1") == 0
    assert "digits/resnet20, images 1x8x8" in capsys.readouterr().out
    assert run("measure", "digits/resnet20", "--width", "0.5") == 2
    assert (
        "digits/resnet20: the net in a model file is already built, --width cannot change it" in capsys.readouterr().err
    )
    assert run("pack", "digits/resnet20", "--storage", "int8", "--output", tmp_path / "packed.safetensors") == 0
    assert (tmp_path / "packed.safetensors").exists()
    small = tmp_path / "small.safetensors"
    assert run("condense", "--model", "digits/resnet20", "--method", "ring", "--size", "0.5", "--output", small) == 0
    assert checkpoint.read_header(small)["notes"]["input_size"] == [1, 8, 8], "what the file says travels along"


# --- what is shipped -------------------------------------------------------------------------------------------------


def test_the_index_is_readable_and_the_whole_is_small():
    assert isinstance(read_json(zoo.FOLDER / "index.json"), list)
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*/*.safetensors")) <= 8_000_000
    assert len({card.title for card in SHIPPED}) == len(SHIPPED)
    files = {path.relative_to(zoo.FOLDER).as_posix() for path in zoo.FOLDER.rglob("*.safetensors")}
    assert files == {card.file for card in SHIPPED}, "each file has a card, each card a file"


def test_the_wheel_holds_every_file_of_the_zoo():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package = ROOT / "src" / "pocketcnn"
    taken = {
        path for glob in settings["tool"]["setuptools"]["package-data"]["pocketcnn"] for path in package.glob(glob)
    }
    files = {path for path in (package / "zoo").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert package / "zoo" / "index.json" in files
    assert files <= taken


@pytest.mark.parametrize("card", SHIPPED, ids=lambda card: card.title)
def test_a_shipped_net_is_what_its_card_says(card):
    path = zoo.path_of(card)
    assert path.stat().st_size == card.size_bytes <= 2_000_000
    header = checkpoint.read_header(path)
    notes = header["notes"]
    assert notes["data"] == card.data, "and no folder of a machine"
    assert header.get("storage", {}).get("weights") == card.storage
    net = pc.create_model(card.name, pretrained=card.data)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == card.trainable_params
    with torch.no_grad():
        logits = net(torch.zeros(2, *notes["input_size"]))
    assert logits.shape == (2, len(notes["classes"]))
    assert torch.isfinite(logits).all()
    assert abs(card.test_accuracy - card.trained_accuracy) < 0.02, "what the storage costs"
    assert card.train["epochs"] == card.epochs
    assert card.train["seed"] == card.seed
    assert card.commit
    if card.record:
        result = read_json(ROOT / card.record / "result.json")
        assert (result["test_accuracy"], result["seed"]) == (card.trained_accuracy, card.seed)
