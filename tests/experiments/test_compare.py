import dataclasses
import json

import pytest

import pocketcnn as pc
from pocketcnn.cost import count_params
from pocketcnn.data.sets import Images
from pocketcnn.errors import BadData, ForeignFile, UnknownMethod
from pocketcnn.experiments.compare import compare, measure_speeds, net_specs, width_of_size
from pocketcnn.models.spec import NetSpec, parse_method
from pocketcnn.report import markdown, read_results, read_speeds, summarize, write_report
from pocketcnn.train import TrainConfig

QUICK = TrainConfig(epochs=1, batch_size=64, precision="float32", channels_last="off")
NARROW = {"in_channels": 1, "num_classes": 10, "width": 0.25}


@pytest.fixture(scope="module")
def few():
    from pocketcnn.data import load

    return load("digits", limit=128)


def test_method_texts():
    assert parse_method("plain") == ("plain", {})
    assert parse_method("ring:size=0.1,seed=3") == ("ring", {"size": 0.1, "seed": 3})
    with pytest.raises(UnknownMethod, match="no method 'rong'; did you mean 'ring'"):
        parse_method("rong")
    with pytest.raises(ValueError, match="option 'size' has no value; write ring:size=VALUE"):
        parse_method("ring:size")
    with pytest.raises(ValueError, match="plain takes no options"):
        parse_method("plain:width=2")


@pytest.mark.parametrize("numbers", [3_000, 30_000, 300_000, 1_000_000])
def test_rivals_have_the_same_stored_numbers(numbers):
    width = width_of_size("resnet20", numbers, {"num_classes": 10})
    found = count_params(pc.create_model("resnet20", num_classes=10, width=width))[1]
    assert found == pytest.approx(numbers, rel=0.12)  # a channel more or less in one stage
    neighbours = [
        count_params(pc.create_model("resnet20", num_classes=10, width=w))[1] for w in (width * 0.97, width * 1.03)
    ]
    assert neighbours[0] <= found <= neighbours[1]


def test_mistakes_show_before_anything_is_trained():
    with pytest.raises(ValueError, match="size as a fraction must lie in"):
        net_specs(["resnet20"], ["plain", "ring:size=3.5"], {}, equal_size=False)


def test_comparison_end_to_end_and_again(few, tmp_path, monkeypatch, one_round):
    rows = net_specs(["resnet20"], ["plain", "ring:size=0.2"], NARROW, equal_size=True)
    assert [row.rival_of for row in rows] == ["", "", rows[1].label]
    seen = []
    outcome = compare(few, rows, QUICK, tmp_path / "cmp", seeds=2, on_result=lambda results: seen.append(len(results)))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not outcome.failures
    page = write_report(tmp_path / "cmp").read_text()
    summaries = summarize(read_results(tmp_path / "cmp"), read_speeds(tmp_path / "cmp"))
    assert [summary.label for summary in summaries] == [row.label for row in rows]
    assert all(summary.seeds == 2 for summary in summaries)
    assert summaries[0].ratios["trainable_params"] == 1
    assert summaries[1].ratios["trainable_params"] < 0.35
    assert summaries[2].values["total_params"] == pytest.approx(summaries[1].values["total_params"], rel=0.15)
    assert summaries[1].label in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("<svg") == 4
    records = page.split('id="records">')[1].split("</script>")[0]
    assert len(json.loads(records.replace("<\\/", "</"))) == 6
    assert markdown(summaries) == (tmp_path / "cmp" / "table.md").read_text()

    import pocketcnn.train.loop as loop

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop.pl, "Trainer", fail)
    again = compare(few, rows, QUICK, tmp_path / "cmp", seeds=2)
    assert again.results == outcome.results


def test_nets_of_one_size_share_their_rival():
    rows = net_specs(["resnet20"], ["ring:size=0.2", "ring:size=0.2,seed=1"], NARROW, equal_size=True)
    assert [bool(row.rival_of) for row in rows] == [False, True, False]


def test_a_diverging_run_does_not_stop_the_others(few, tmp_path):
    rows = [NetSpec("resnet20", model_options=NARROW), NetSpec("resnet20", "ring", {}, NARROW)]
    wild = dataclasses.replace(QUICK, lr=1e9, epochs=3)
    outcome = compare(few, rows, wild, tmp_path / "cmp")
    assert len(outcome.failures) + len(outcome.results) == 2
    assert len(outcome.failures) >= 1
    assert "epoch" in outcome.failures[0]
    assert json.loads((tmp_path / "cmp" / "comparison.json").read_text())["diverged"] == outcome.failures


def test_rows_of_another_comparison_are_left_out(few, tmp_path):
    for method in ("ring:size=0.3", "plain"):
        compare(few, net_specs(["resnet20"], [method], NARROW, equal_size=False), QUICK, tmp_path / "cmp")
    assert [summary.method for summary in summarize(read_results(tmp_path / "cmp"))] == ["plain"]
    stray = tmp_path / "cmp" / "stray"
    stray.mkdir()
    (stray / "result.json").write_text("{}")
    with pytest.raises(ForeignFile, match="not the result of a run"):
        write_report(tmp_path / "cmp")


def test_nets_of_two_data_sets_are_timed_in_one_record(few, tmp_path):
    """One net takes gray images, the other coloured ones; neither runs on the other's."""
    coloured = dataclasses.replace(few, train=Images(few.train.images.repeat(1, 3, 1, 1), few.train.labels))
    data = {"gray": few, "coloured": coloured}
    for name, images in data.items():
        (tmp_path / name).mkdir()
        net = pc.create_model("resnet20", **{**NARROW, "in_channels": images.input_size[0]})
        pc.save(net, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"train": dataclasses.asdict(QUICK)}))
    found = measure_speeds({name: tmp_path / name for name in data}, data, tmp_path, rounds=1)
    assert read_speeds(tmp_path) == found
    assert list(found) == ["gray", "coloured"]
    assert all(speed["train_images_per_second"] > 0 < speed["latency_ms"] for speed in found.values())


def test_reports_of_nothing(tmp_path):
    with pytest.raises(BadData, match="no finished runs"):
        write_report(tmp_path)
