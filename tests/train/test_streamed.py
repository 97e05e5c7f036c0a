"""Training on shards that are decoded during training."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import pocketcnn as pc
from pocketcnn.cli import main
from pocketcnn.data import open_stream
from pocketcnn.errors import BadData
from pocketcnn.train import TrainConfig, fit
from processes import finish_pair

SHORT = TrainConfig(epochs=2, batch_size=16, precision="float32", channels_last="off")


@pytest.fixture(scope="module")
def shards(tmp_path_factory, digits):
    """240 training digits in 12 row groups of three files, 60 test digits."""
    import datasets

    folder = tmp_path_factory.mktemp("shards") / "digits"
    folder.mkdir()
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})

    def write(name, first, last):
        cells = []
        for pixels in digits.train.images[first:last, 0].numpy().astype(np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        rows = {"image": cells, "label": digits.train.labels[first:last].tolist()}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(folder / name), batch_size=20)

    for part in range(3):
        write(f"train-0000{part}-of-00003.parquet", 80 * part, 80 * (part + 1))
    write("test-00000-of-00001.parquet", 240, 300)
    return folder


def tiny():
    torch.manual_seed(0)
    return pc.create_model("resnet20", in_channels=1, num_classes=10, width=0.25)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_resumes_inside_an_epoch_to_the_same_bits(shards, tmp_path, workers):
    data = open_stream(shards, image_size=8, channels=1, workers=workers)
    fit(tiny(), data, SHORT, tmp_path / "whole")
    steps = []

    def power_cut(module, inputs, output):
        steps.extend([1] * module.training)
        if len(steps) == 18:  # 12 steps an epoch
            raise RuntimeError("the power went out")

    net = tiny()
    net.register_forward_hook(power_cut)
    with pytest.raises(RuntimeError, match="the power went out"):
        fit(net, data, SHORT, tmp_path / "cut", save_every=0.0)
    kept = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert kept["position"] == {"epoch": 1, "step": 5}
    fit(tiny(), data, SHORT, tmp_path / "cut")
    for name in ("model.safetensors",):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_streamed_run_belongs_to_its_number_of_workers(shards, tmp_path):
    config = dataclasses.replace(SHORT, epochs=1)
    fit(tiny(), open_stream(shards, image_size=8, channels=1, workers=1), config, tmp_path / "run")
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"other settings \(workers; workers was 1"):
            fit(tiny(), open_stream(shards, image_size=8, channels=1, workers=workers), config, tmp_path / "run")


def test_each_process_reads_its_own_part(shards, tmp_path):
    before = f"""
from pocketcnn.data import open_stream
data = open_stream({str(shards)!r}, image_size=8, channels=1, workers=1)
seen, original = [], data.train._encoded
def spy(places, at):
    for place, raw in original(places, at):
        os.write(1, f"\\nplace {{os.environ.get('LOCAL_RANK', '0')}} {{place}}\\n".encode())
        yield place, raw
data.train._encoded = spy
"""
    output = finish_pair(
        tmp_path / "run",
        config={"epochs": 1, "batch_size": 20},
        run={"devices": 2, "accelerator": "cpu"},
        before=before,
    )
    seen = [line.split()[1:] for line in output.splitlines() if line.startswith("place")]
    parts = [{place for rank, place in seen if rank == own} for own in "01"]
    assert all(parts), output
    assert not parts[0] & parts[1]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["workers"] == 1


def test_the_command_line_streams(shards, tmp_path, capsys):
    words = ["--data", str(shards), "--stream", "--image-size", "8", "--channels", "1"]
    with pytest.raises(SystemExit) as left:
        main(["train", *words, "--width", "0.25", "--epochs", "1", "--output", str(tmp_path / "run")])
    assert left.value.code == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 1
    with pytest.raises(SystemExit):
        main(["data", str(shards), *words[2:]])
    assert "60" in capsys.readouterr().out
    for wrong, message in (
        (["--data", str(shards), "--stream"], "a stream needs --image-size"),
        (["--data", str(shards), "--workers", "2"], "--workers read a stream"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["train", *wrong, "--output", str(tmp_path / "other")])
        assert left.value.code == 2
        assert message in capsys.readouterr().err


def test_a_folder_without_shards_is_refused(tmp_path):
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "photos" / label / "1.png")
    with pytest.raises(BadData, match="streaming reads a folder of parquet files"):
        open_stream(tmp_path / "photos", image_size=8)
