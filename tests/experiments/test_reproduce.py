"""Published figures beside ours: which records count, what the page tells of them, what is run."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from pocketcnn.cli import main
from pocketcnn.cost import count_params
from pocketcnn.errors import BrokenFile, CannotWrite, UnknownTable
from pocketcnn.experiments import reproduce as package
from pocketcnn.experiments.compare import folder_of
from pocketcnn.experiments.reproduce import measure_rates, published, read_tables, reproduce
from pocketcnn.experiments.reproduce.page import Rates, hours
from pocketcnn.experiments.reproduce.published import comparable_settings, net_of
from pocketcnn.experiments.reproduce.runs import Run, is_of, read_runs, runs_of
from pocketcnn.experiments.reproduce.verdicts import order, rank_correlation, verdict
from pocketcnn.support.intervals import difference, interval
from pocketcnn.train import TrainConfig
from pocketcnn.train.config import PRESETS

ROOT = Path(__file__).parents[2]
LONG = TrainConfig(epochs=3, batch_size=64, precision="float32", channels_last="off")
BRIEF = dataclasses.replace(LONG, epochs=1)
MODEL = "resnet20:width=0.25"
TABLES = {
    "sources": {"paper": "A paper, 2020"},
    "data": {"digits": {"input_size": [1, 8, 8], "classes": 10, "train_images": 1438, "test_images": 10000}},
    "recipes": {},
    "tables": {
        "sizes": {
            "title": "Rings of digits", "source": "paper", "data": "digits", "recipe": "long", "quick": "brief",
            "about": "Smaller rings.", "figure": "law",
            "rows": [
                {"key": "plain", "label": "plain net", "model": MODEL, "published": {"paper": 90.0, "poster": 80.0}, "printed": "17K"},
                {"key": "half", "label": "ring of half", "model": MODEL, "method": "ring:size=0.5", "published": {"paper": 88.0},
                 "goal": {"of_first": -1.0, "text": "within a point of plain"}},
                {"key": "tenth", "label": "ring of a tenth", "model": MODEL, "method": "ring:size=0.1", "published": {"paper": 85.0},
                 "goal": {"percent": 84.5, "text": "at least 84.5 %"}},
            ],
        },
        "by_hand": {
            "title": "Made elsewhere", "source": "paper", "data": "digits", "recipe": "long", "about": "By a script.", "figure": "macs",
            "rows": [{"key": "scripted", "label": "scripted", "model": MODEL, "method": "condconv", "command": "python script.py"}],
        },
    },
}  # fmt: skip
RIVAL = ("plain", {}, {"width": 0.25})
HALF = ("ring", {"size": 0.5}, {"width": 0.25})


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Two tables of the tests instead of the published ones, and their presets."""
    path = tmp_path / "published.json"
    path.write_text(json.dumps(TABLES))
    monkeypatch.setattr(published, "FILE", path)
    monkeypatch.setitem(PRESETS, "long", LONG)
    monkeypatch.setitem(PRESETS, "brief", BRIEF)
    return read_tables()


@pytest.fixture
def presets(monkeypatch):
    """All presets that the real file names; those that do not exist are replaced by the default."""
    content = json.loads(published.FILE.read_text())
    for table in content["tables"].values():
        for holder in (table, *table["rows"]):
            for name in (holder.get("recipe"), holder.get("quick")):
                if name and name not in content["recipes"] and name not in PRESETS:
                    monkeypatch.setitem(PRESETS, name, TrainConfig())


def record(
    folder,
    net,
    accuracy,
    train,
    seed=0,
    *,
    model="resnet20",
    data="../there/digits",
    scale=1.0,
    images=1295,
    shape=True,
):
    """Writes the files that a run leaves, except the net."""
    method, options, given = net
    shown = ",".join(f"{k}={v}" for k, v in options.items())
    label = f"{model} width=0.25 {method}{':' if shown else ''}{shown}"
    train = train if isinstance(train, dict) else dataclasses.asdict(train)
    numbers = round(17_000 * scale)
    cost = {
        "trainable_params": numbers,
        "total_params": numbers + 400,
        "depth": 20,
        "macs": 160_000,
        "size_bytes": 4 * numbers,
    }
    identity = {"model": model, "method": method, "options": options, "label": label, "rival_of": ""}
    identity["model_options"] = {"in_channels": 1, "num_classes": 10, **given} if shape else given
    result = {
        "name": label, "identity": identity, "data": data, "seed": seed, "test_accuracy": accuracy / 100,
        "epochs": train["epochs"], "train": {**train, "seed": seed}, "cost": cost, "file_bytes": 4 * numbers + 900,
        "latency": {"median_ms": 2.0 * scale}, "train_images_per_second": 1000.0,
    }  # fmt: skip
    environment = {"gpu": None, "processor": "Abacus", "threads": 2, "packages": {"torch": "2.13.0"}}
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.json").write_text(json.dumps({"train_images": images, "train": train}))
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [f"{epoch},{(accuracy - 10 / epoch) / 100}" for epoch in range(1, train["epochs"] + 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,validation_accuracy", *lines]) + "\n")
    return folder


def page(tmp_path, name="all", **options):
    found = reproduce(name, results=tmp_path / "results", docs=tmp_path / "docs" / "results.md", **options)
    return found, (tmp_path / "docs" / "results.md").read_text()


def row(found, label, table="sizes"):
    """The cells of a row by their titles."""
    titles, *lines = found.cells[table]
    return next(dict(zip(titles, line, strict=True)) for line in lines if line[0] == label)


# --- the data file ---------------------------------------------------------------------------------------------------


def test_every_row_builds_and_hits_its_exact_count(presets):
    counted = 0
    for table in read_tables().values():
        for item in table.rows:
            with torch.device("meta"):
                found = count_params(item.spec().build(0))[0]
            assert item.trainable in (None, found), f"{table.name}: {item.key}"
            counted += item.trainable is not None
    assert counted == 21


def test_published_figures_are_typed_nowhere_else():
    tables = json.loads(published.FILE.read_text(), parse_float=str)["tables"]
    figures = {f for table in tables.values() for r in table["rows"] for f in r.get("published", {}).values()}
    assert len(figures) == 24
    source = ROOT / "src" / "pocketcnn"
    typed = {path: path.read_text(encoding="utf-8") for path in [*source.rglob("*.py"), *source.rglob("*.jinja")]}
    for figure in figures:
        pattern = re.compile(rf"(?<![\d.]){re.escape(figure)}(?!\d)")
        assert pattern.search(published.FILE.read_text())
        assert not [path for path, text in typed.items() if pattern.search(text)], figure


@pytest.mark.usefixtures("tables")
def test_a_recipe_may_be_like_a_preset():
    content = json.loads(published.FILE.read_text())
    content["recipes"] = {"all": {"like": "long", "all_images": True, "lr": 0.07}}
    content["tables"]["sizes"]["recipe"] = "all"
    published.FILE.write_text(json.dumps(content))
    preset = read_tables()["sizes"].preset
    assert preset.train == dataclasses.replace(LONG, all_images=True, lr=0.07)
    assert preset.images(read_tables()["sizes"].data) == content["data"]["digits"]["train_images"]
    content["recipes"]["all"]["like"] = "longer"
    published.FILE.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sizes is made by preset 'longer', which does not exist"):
        read_tables()


def test_a_missing_preset_is_named(tables, monkeypatch):
    monkeypatch.delitem(PRESETS, "long")
    with pytest.raises(ValueError, match="sizes is made by preset 'long', which does not exist; known: default"):
        read_tables()


def test_the_illustrative_records_of_the_repository_are_read(presets):
    table = read_tables()["report_table1"]
    runs = read_runs(ROOT / "results" / "mnist-illustrative")
    seeds = {item.key: len(runs_of(item, item.preset, runs)) for item in table.rows}
    assert set(seeds.values()) == {3, 5}, seeds
    first = runs_of(table.rows[0], table.preset, runs)[0]
    written = json.loads((ROOT / "results" / "mnist-illustrative" / "conv_w1" / "result.json").read_text())
    assert first.accuracy == pytest.approx(100 * written["test_accuracy"][0])


# --- which records count ---------------------------------------------------------------------------------------------


def test_one_net_under_several_names():
    spelled = net_of(
        "resnet32_4stage", "pde", {"last_stage": "drop"}, {"num_classes": 10, "in_channels": 3, "width": 1.0}
    )
    assert spelled == net_of("resnet32_global", model_options={"num_classes": 10})
    assert spelled == net_of("resnet32_4stage", "pde", {"velocity": "depthwise", "last_stage": "drop"})
    assert spelled != net_of("resnet32_global_identity")
    assert spelled != net_of("resnet32_global", model_options={"width": 0.5})
    assert net_of("resnet18_ring", model_options={"size": 0.1}) == net_of("resnet18", "ring", {"size": 0.1})
    layers = ("layer1", "layer2")
    assert net_of("resnet20", "ring", {"include": layers}) == net_of("resnet20", "ring", {"include": list(layers)})
    assert net_of("resnet20", "ring", {"include": "fc"}) == net_of("resnet20", "ring", {"include": ["fc"]})
    assert net_of("resnet20", "ring", {"gone": 1}) is None


def test_presets_are_equal_but_for_what_a_run_chooses():
    old = {"epochs": 3, "batch_size": 64, "seed": 7, "precision": "bfloat16", "channels_last": "on", "compile": True}
    assert comparable_settings(old) == comparable_settings(
        LONG
    )  # fields that are younger than the record have their defaults
    assert comparable_settings({**old, "lr": 0.05}) != comparable_settings(LONG)
    assert comparable_settings({**old, "from_the_future": 1}) != comparable_settings(LONG)
    assert comparable_settings({"milestones": [1]}) == comparable_settings(TrainConfig(milestones=(1,)))


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        (1, {}),
        (1, {"data": "digits"}),
        (1, {"train": {"epochs": 3, "batch_size": 64}}),
        (1, {"shape": False}),
        (0, {"data": "mnist"}),
        (0, {"images": 200}),  # --limit
        (0, {"net": ("ring", {"size": 0.4}, {"width": 0.25})}),
        (0, {"net": ("ring", {"size": 0.5}, {})}),
        (0, {"model": "resnet32"}),
        (0, {"train": dataclasses.replace(LONG, lr=0.05)}),
        (0, {"train": BRIEF}),
    ],
)
def test_a_record_counts_if_net_data_and_preset_are_the_rows(counts, changes, tables, tmp_path):
    record(tmp_path / "any" / "where", **{"net": HALF, "accuracy": 87.0, "train": LONG, **changes})
    (tmp_path / "any" / "result.json").write_text('{"mode": "not a run"}')
    item = tables["sizes"].rows[1]
    assert len(runs_of(item, item.preset, read_runs(tmp_path / "any"))) == counts


def test_a_seed_counts_once(tables, tmp_path):
    for name, accuracy, seed in (("b", 80.0, 0), ("a", 81.0, 0), ("c", 82.0, 1)):
        record(tmp_path / name, HALF, accuracy, LONG, seed)
    item = tables["sizes"].rows[1]
    assert [run.accuracy for run in runs_of(item, item.preset, read_runs(tmp_path))] == pytest.approx([81, 82])


def test_records_of_a_script_are_found_by_the_rows_key(tables, tmp_path):
    (tmp_path / "row").mkdir()
    told = {"row": "scripted", "seeds": [0, 1], "test_accuracy": [0.5, 0.7], "train": dataclasses.asdict(LONG)}
    (tmp_path / "row" / "result.json").write_text(json.dumps(told))
    runs = read_runs(tmp_path)
    item = dataclasses.replace(
        tables["by_hand"].rows[0], data=dataclasses.replace(tables["by_hand"].data, name="mnist")
    )
    assert [(run.seed, run.accuracy) for run in runs_of(item, item.preset, runs)] == [(0, 50), (1, 70)]
    other = dataclasses.replace(item, command="")
    assert not runs_of(other, other.preset, runs)


# --- what the page tells of them -------------------------------------------------------------------------------------


def test_intervals_by_hand():
    # sqrt(0.9 * 0.1 / 10,000) = 0.003, times 1.96
    assert interval([90.0], 10_000) == pytest.approx((89.412, 90.588))
    # two seeds: s = sqrt(2), t = 12.71, so 12.71 * sqrt(2) / sqrt(2); and 0.588 from the images
    assert interval([89.0, 91.0], 10_000)[1] - 90 == pytest.approx((12.71**2 + 0.588**2) ** 0.5)
    # three equal seeds leave the images' share alone
    assert interval([90.0] * 3, 10_000) == pytest.approx((89.412, 90.588))
    # 20 seeds take t of 9 degrees of freedom: s = sqrt(20 / 19)
    wide = interval([89.0, 91.0] * 10, 10_000)[1] - 90
    assert wide == pytest.approx(((2.26**2 * (20 / 19) / 20) + 0.588**2) ** 0.5)


def test_differences_by_hand():
    theirs = {0: 89.0, 1: 90.0, 2: 91.0}
    # 1, 1.5 and 2 apart: s = 0.5, t of 2 degrees of freedom is 4.30
    paired = difference({2: 93.0, 0: 90.0, 1: 91.5, 7: 0.0}, theirs)
    assert (paired.mean, paired.half) == pytest.approx((1.5, 4.30 * 0.5 / 3**0.5))
    assert paired.told_apart
    assert str(paired) == "+1.50 ± 1.24"
    assert str(difference({0: 89.1, 1: 90.0, 2: 90.9}, theirs)) == "≈ +0.00 ± 0.25"
    # no shared seeds: 12.71 * sqrt(2) / sqrt(2) on one side and 12.71 * 0.5 on the other
    apart = difference({0: 90.0, 1: 92.0}, {5: 89.0, 6: 90.0})
    assert (apart.mean, apart.half) == pytest.approx((1.5, (12.71**2 + 6.355**2) ** 0.5))
    assert str(difference({0: 90.0}, {0: 89.0})) == "+1.00"
    assert not difference({0: 90.0}, {0: 89.0}).told_apart
    assert str(difference({0: 90.0, 1: 91.0}, {0: 89.0, 1: 90.0})) == "≈ +1.00 ± 0.00", "two seeds alike by chance"


def test_verdicts_by_hand():
    assert [verdict([90.0], figure, 10_000) for figure in (89.40, 89.42, 90.58, 90.60)] == [
        "above", "reproduced", "reproduced", "below",
    ]  # fmt: skip
    assert verdict([90.0], 89.0, 1_000) == "reproduced"  # fewer test images, a wider interval


def test_orders_by_hand():
    assert order({"a": 1.0, "b": 3.0, "c": 2.0}) == "b > c > a"
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / 3**0.5)  # ranks 1.5, 1.5, 3
    assert rank_correlation([1, 1], [1, 2]) == 0


@pytest.fixture
def results(tables, tmp_path):
    """Runs of plain: three seeds by the full preset, one quick; of half: one each; of a tenth: quick, and another preset."""
    folder = tmp_path / "results"
    for seed, accuracy in enumerate((89.8, 90.2, 90.3)):
        record(folder / "one" / f"plain{seed}", RIVAL, accuracy, LONG, seed)
    record(folder / "one" / "half", HALF, 87.0, LONG, scale=0.5)
    record(folder / "two" / "plain", RIVAL, 70.0, BRIEF)
    record(folder / "two" / "half", HALF, 71.0, BRIEF, scale=0.5)
    record(folder / "two" / "tenth", ("ring", {"size": 0.1}, {"width": 0.25}), 60.0, BRIEF, scale=0.1)
    record(folder / "two" / "other", ("ring", {"size": 0.7}, {"width": 0.25}), 66.0, BRIEF, scale=0.7)
    record(
        folder / "three" / "tenth", ("ring", {"size": 0.1}, {"width": 0.25}), 84.0, dataclasses.replace(LONG, lr=0.3)
    )
    (folder / "reproduce").mkdir()
    rates = {"long": {"resnet20 width=0.25 ring:size=0.1": 0.5}, "brief": {}}
    (folder / "reproduce" / "rates.json").write_text(json.dumps({"images_per_second": rates, "environment": {}}))
    return folder


@pytest.mark.golden
def test_the_page(results, tmp_path, golden):
    found, text = page(tmp_path)
    golden("results_page.md", text)
    plain, half, tenth = (row(found, label) for label in ("plain net", "ring of half", "ring of a tenth"))
    assert plain["ours %, long"] == "90.10 ± 0.26 [89.22, 90.98] (3 seeds, 3 epochs)"
    assert plain["verdict"] == "reproduced (paper), above (poster)"
    assert plain["difference"] == "+0.10 / +10.10"
    assert half["verdict"] == "below, goal missed by 2.10"  # 87.0 against 90.1 - 1
    assert (half["ours %, brief"], half["to first row"]) == ("71.00 [70.11, 71.89] (1 seed, 1 epoch)", "+1.00")
    assert half["numbers"] == "8,500 (0.50x)"
    assert tenth["ours %, long"] == "not run, 2.2 h"  # 3 epochs of 1,294 images at half an image a second
    assert (tenth["difference"], tenth["verdict"]) == ("-", "-")
    assert row(found, "scripted", "by_hand")["ours %, long"] == "not run"
    assert found.sentences["sizes"] == [
        "Order under `long`: plain > half.",
        "The paper's: plain > half; rank correlation with ours +1.00.",
        "Order under `brief`: half > plain > tenth.",
        "The paper's: plain > half > tenth; rank correlation with ours +0.50.",
    ]
    assert "three/tenth" not in text, "another preset"
    records = {record["row"]: record for record in found.rows if record["table"] == "sizes"}
    assert records["plain"]["test_percent"] == pytest.approx({0: 89.8, 1: 90.2, 2: 90.3})
    assert records["half"]["verdicts"] == {"paper": "below"}
    assert records["tenth"]["quick_test_percent"] == pytest.approx({0: 60.0})
    for picture in re.findall(r"\]\((results-.*\.svg)\)", text):
        assert (tmp_path / "docs" / picture).read_text().rstrip().endswith("</svg>")


def test_the_page_is_the_same_each_time(results, tmp_path):
    def files():
        page(tmp_path)
        return {path.name: path.read_bytes() for path in (tmp_path / "docs").iterdir()}

    first = files()
    assert first.keys() == {"results.md", "results-learning.svg", "results-sizes.svg"}
    assert first == files()


def test_figures_live_in_the_records_only(results, tmp_path):
    assert "87.00" in page(tmp_path)[1]
    (results / "one" / "half" / "result.json").unlink()
    found, text = page(tmp_path)
    assert "87.00" not in text
    assert row(found, "ring of half")["ours %, long"] == "not run, hours unknown"
    assert "pocketcnn reproduce sizes --budget full" in text
    assert "--recipe quick --budget full" not in text, "all of these have run"
    assert "    python script.py\n" in text


def test_a_goal_that_is_met(results, tmp_path):
    record(results / "tenth", ("ring", {"size": 0.1}, {"width": 0.25}), 84.75, LONG)
    assert row(page(tmp_path)[0], "ring of a tenth")["verdict"] == "reproduced, goal met by 0.25"


def test_rows_without_published_figures_are_compared_with_the_first(results, tables, tmp_path, monkeypatch):
    content = json.loads(published.FILE.read_text())
    for item in content["tables"]["sizes"]["rows"]:
        item.pop("published")
    published.FILE.write_text(json.dumps(content))
    found = page(tmp_path)[0]
    assert row(found, "ring of half")["published %"] == "-"
    assert row(found, "ring of half")["difference"] == "-3.10 to first row"
    assert row(found, "plain net")["difference"] == "-"


@pytest.mark.parametrize(("place", "value", "match"), [
    (("tables", "sizes", "rows"), [], "at tables"),
    (("tables", "sizes", "rows", 0, "key"), None, "Expected str, got null at tables"),
    (("tables", "sizes", "rows", 0, "published"), {"report": 640}, "100"),
    (("tables", "sizes", "rows", 0, "trainable"), -3, "trainable"),
    (("tables", "sizes", "data"), "birds", "tables.sizes: no data 'birds'; known: digits"),
    (("tables", "sizes", "source"), "rumour", "tables.sizes: no source 'rumour'; known: "),
    (("tables", "sizes", "validation"), 1, "validation"),
    (("data", "digits", "input_size"), [1, 8], "input_size"),
    (("data", "digits", "classes"), 10**30, "classes"),
    (("recipes",), {"long": {"epochs": "many"}}, "recipes.long: Expected int, got str at epochs"),
    (("recipes",), {"long": {"lr": -1}}, "recipes.long: .*lr must be finite and more than 0"),
    (("sources",), None, "Expected object, got null at sources"),
])  # fmt: skip
@pytest.mark.usefixtures("tables")
def test_published_tables_with_other_entries(place, value, match):
    content = json.loads(published.FILE.read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    published.FILE.write_text(json.dumps(content))
    with pytest.raises(BrokenFile, match=match):
        read_tables()


@pytest.mark.usefixtures("tables")
def test_rows_that_would_share_a_folder_on_two_data_sets_are_refused(tmp_path):
    content = json.loads(published.FILE.read_text())
    content["data"]["figures"] = content["data"]["digits"]
    content["tables"]["figures"] = {**content["tables"]["sizes"], "data": "figures"}
    published.FILE.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="one on digits, the other on figures: their runs would share a folder"):
        reproduce("all", minutes=1, results=tmp_path / "results", docs=tmp_path / "page.md")


@pytest.mark.parametrize("text", ['{"images_per_second": {"long": {"net": 0}}}', "[]", '{"images_per_second": 3}', "{"])
def test_damaged_rates(tables, tmp_path, text):
    path = tmp_path / "results" / "reproduce" / "rates.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BrokenFile, match=r"rates\.json: .*; delete it; --rates measures them again"):
        reproduce("all", results=tmp_path / "results", docs=tmp_path / "page.md")


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch):
    """The list of pretended runs; each takes four minutes by a clock of its own."""
    clock, ran = [0.0], []

    def fit(model, data, config, folder, *, name, identity):
        clock[0] += 240
        ran.append(
            (identity["method"], identity["options"].get("size"), config.epochs, config.seed, folder.parent.name)
        )

    monkeypatch.setattr(package, "fit", fit)
    monkeypatch.setattr(package.time, "monotonic", lambda: clock[0])
    return ran


def test_first_seeds_of_all_rows_come_before_second_ones(tables, pretended, tmp_path):
    record(tmp_path / "results" / "elsewhere", HALF, 87.0, LONG)
    page(tmp_path, "sizes", minutes=float("inf"), seeds=2)
    assert [(method, size, seed) for method, size, _, seed, _ in pretended] == [
        ("plain", None, 0), ("ring", 0.1, 0), ("plain", None, 1), ("ring", 0.5, 1), ("ring", 0.1, 1),
    ]  # fmt: skip
    assert pretended[1][4] == "resnet20-width=0.25-ring-size=0.1"


def test_a_run_starts_only_if_it_fits_the_rest_of_the_budget(tables, pretended, tmp_path):
    folder = tmp_path / "results" / "reproduce"
    folder.mkdir(parents=True)
    # an epoch of 1,294 images: 3 minutes at 7.19 a second
    rates = {"images_per_second": {"brief": {"resnet20 width=0.25 ring:size=0.5": 7.19}}}
    (folder / "rates.json").write_text(json.dumps(rates))
    page(tmp_path, minutes=6, recipe="quick", seeds=2)  # 4 of 6 minutes gone, then 2 left: not half, but a tenth
    assert [(method, size, epochs) for method, size, epochs, _, _ in pretended] == [
        ("plain", None, 1),
        ("ring", 0.1, 1),
    ]


def test_each_net_is_timed_on_its_own_data(tables, tmp_path, monkeypatch):
    """Two tables on two data sets, trained by the same preset."""
    content = json.loads(published.FILE.read_text())
    content["data"]["figures"] = {**content["data"]["digits"], "input_size": [3, 16, 16]}
    other = {"key": "wide", "label": "wide", "model": "resnet20:width=0.5"}
    content["tables"]["figures"] = {**content["tables"]["sizes"], "data": "figures", "rows": [other]}
    published.FILE.write_text(json.dumps(content))
    for table in read_tables().values():
        for item in table.rows:
            if not item.command:
                folder = folder_of(tmp_path / "results" / "reproduce" / "long", item.spec().label) / "seed0"
                folder.mkdir(parents=True)
                (folder / "model.safetensors").touch()
                (folder / "result.json").write_text("{}")
    timed = {}

    def measure_speeds(folders, data, output):
        assert output.name not in timed, "nets of a preset are timed side by side"
        timed[output.name] = {label: (data[label] if isinstance(data, dict) else data) for label in folders}

    monkeypatch.setattr(package, "measure_speeds", measure_speeds)
    monkeypatch.setattr(package, "measure_rates", lambda *_: None)
    monkeypatch.setattr(package, "load", lambda name, validation: name)
    page(tmp_path, rates=True)
    assert timed == {
        "long": {
            "resnet20 width=0.25 plain": "digits",
            "resnet20 width=0.25 ring:size=0.5": "digits",
            "resnet20 width=0.25 ring:size=0.1": "digits",
            "resnet20 width=0.5 plain": "figures",
        }
    }


def test_no_time_no_run(tables, pretended, tmp_path):
    page(tmp_path, minutes=0)
    assert not pretended


def test_hours_by_hand(tables):
    item = tables["sizes"].rows[0]
    rates = Rates({"long": {"resnet20 width=0.25 plain": 100.0}})
    assert hours(item, item.preset, rates) == pytest.approx(3 * 1294 / 100 / 3600)
    assert hours(item, item.preset, rates, epochs_done=2) == pytest.approx(1294 / 100 / 3600)
    assert hours(item, item.quick, rates) is None


def test_run_measure_and_read_again(tables, tmp_path, capsys, monkeypatch):
    import pocketcnn.train.loop as loop

    words = ["reproduce", "sizes", "--results", str(tmp_path / "out"), "--docs", str(tmp_path / "page" / "r.md")]

    def run(*more):
        with pytest.raises(SystemExit) as left:
            main([*words, *more])
        assert left.value.code == 0
        return capsys.readouterr().out

    assert "not run, hours unknown" in run()
    item = tables["sizes"].rows[2]
    path = measure_rates([(item, item.preset)], tmp_path / "out", steps=1)
    told = json.loads(path.read_text())
    assert list(told["images_per_second"]["long"]) == ["resnet20 width=0.25 ring:size=0.1"]
    assert "processor" in told["environment"]
    assert told["memory_bytes"]["long"]["resnet20 width=0.25 ring:size=0.1"] > 1e5
    assert re.search(r"ring of a tenth .* [\d,]+ +[\d,]+\n", run()), "images a second and megabytes"
    done = run("--budget", "10", "--recipe", "quick")
    assert re.search(r"ring of a tenth .* h +.*[\d.]+ \[.*\] \(1 seed, 1 epoch\)", done)
    folder = tmp_path / "out" / "reproduce" / "brief" / "resnet20-width=0.25-ring-size=0.5" / "seed0"
    record_of_half = json.loads((folder / "result.json").read_text())
    assert f"{100 * record_of_half['test_accuracy']:.2f}" in (tmp_path / "page" / "r.md").read_text()
    monkeypatch.setattr(loop.pl, "Trainer", lambda *_, **__: pytest.fail("trained again"))
    assert run("--budget", "full", "--recipe", "quick") == done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ring"], "UnknownTable: no table 'ring'"),
        (["all", "--budget", "soon"], "BadUsage: budget is a whole number of minutes, or full, not 'soon'"),
        (["all", "--budget", "-3"], "BadUsage: "),
        (["all", "--seeds", "0"], "BadUsage: --seeds must lie in [1, 1000000], got 0"),
    ],
)
def test_mistakes_are_one_line(words, message, tables, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["reproduce", *words])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not (tmp_path / "docs").exists()


def test_a_page_that_cannot_be_written_is_an_error_before_hours_of_runs(tables, pretended, tmp_path):
    (tmp_path / "docs").write_text("a file")
    with pytest.raises(CannotWrite, match="docs: cannot write there"):
        page(tmp_path, minutes=float("inf"))
    assert not pretended
    with pytest.raises(UnknownTable, match="did you mean 'sizes'"):
        page(tmp_path, "size")


def test_a_setting_that_acts_on_methods_alone_does_not_tell_plain_runs_apart():
    table = read_tables()["speednet"]
    data, preset = table.rows[0].data, table.preset
    train = {**comparable_settings(preset.train), "state_lr": 0.3}
    plain, ring = (Run(Path(), "", data.name, net_of("speednet", *step), train, 0, 90.0, 1, None, None, {})
                   for step in ((), ("ring", {"size": 0.1})))  # fmt: skip
    assert is_of(plain, data, preset)
    assert not is_of(ring, data, preset)
    assert not is_of(dataclasses.replace(plain, train={**train, "lr": 9.0}), data, preset)
