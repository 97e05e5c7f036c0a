"""`pocketcnn explore` on the command line."""

import json
import re
from pathlib import Path

import pytest

from pocketcnn.cli import main
from pocketcnn.errors import BadData

RESULTS = Path(__file__).parents[2] / "results"


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["explore", *map(str, words)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def facts_of(path):
    return json.loads(re.search(r'id="facts">([^<]*)<', path.read_text())[1])


def test_a_page_of_a_packaged_net_without_its_data(capsys, tmp_path, monkeypatch, unchecked_shapes):
    def nothing(*args, **options):
        raise BadData("mnist: cannot be loaded")

    monkeypatch.setattr("pocketcnn.data.load", nothing)
    code, out, err = run(capsys, "mnist/mnist_net", "--output", tmp_path / "page.html")
    assert code == 0, err
    assert "no test images on the page; name a data set with --data" in err
    assert "open it in a browser" in out
    facts = facts_of(tmp_path / "page.html")
    net = facts["nets"][0]
    assert (net["fileBytes"], net["accuracy"], net["method"]) == (11_440, pytest.approx(0.9873), "pde")
    assert sum(size for _, size in net["ledger"]) == net["fileBytes"]
    assert facts["images"] == {"count": 0, "labels": []}
    assert facts["command"].startswith("pocketcnn explore mnist/mnist_net --output ")
    assert facts["runtime"]["wasm"]["integrity"].startswith("sha384-")
    assert str(tmp_path.parent) not in facts["nets"][0]["name"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cifar10/resnet20", "mnist/mnist_net"), "was trained on other images than"),
        (("resnet20",), "a net by name is not trained"),
        (("mnist/mnist_net", "--data", "digits", "--runtime", "."), "images"),
        (("mnist/mnist_net", "--records", "nowhere", "--data", "nowhere"), "no data set 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, words, message):
    code, _, err = run(capsys, *words, "--output", tmp_path / "page.html")
    assert code == 2
    assert message in err
    assert not (tmp_path / "page.html").exists()


def test_a_folder_that_is_not_there_is_told_at_once(capsys, tmp_path):
    code, _, err = run(capsys, "mnist/mnist_net", "--data", "digits", "--output", tmp_path / "no" / "page.html")
    assert code != 0
    assert err.strip()


def test_the_package_without_its_large_nets():
    from pocketcnn.cli.verbs.explore import packaged

    assert packaged("mnist") == ("mnist/mnist_net",)
    chosen = packaged(None)
    assert {"cifar10/resnet20", "cifar10/speednet_100k", "cifar10/resnet32_4stage"} <= set(chosen)
    assert "cifar10/speednet" not in chosen


def test_records_on_other_data_are_left_out_and_counted(capsys, tmp_path):
    """A mean over runs on other images would say nothing of these nets."""
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.cli.verbs.explore import _recorded

    record = json.loads((RESULTS / "small-files" / "ternary-0.94" / "seed0" / "result.json").read_text())
    for seed, (data, accuracy) in enumerate({"mnist": 0.5, "../data/mnist": 0.7, "cifar10": 0.9}.items()):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        made = {**record, "data": data, "seed": seed, "test_accuracy": accuracy}
        (folder / "result.json").write_text(json.dumps(made))
    notes = ImageNotes.from_notes({"data": "mnist"})
    assert [row["accuracy"] for row in _recorded(tmp_path, notes)] == [0.5, 0.7]
    assert "1 of 3 runs are on other data" in capsys.readouterr().err
    assert _recorded(tmp_path / "seed2", notes) == []
