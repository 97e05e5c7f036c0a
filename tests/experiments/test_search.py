"""Searches: what they choose from, what they train, and what workers leave behind that share a search or die."""

import dataclasses
import json
import logging
import signal
import sys
import time

import pytest
import torch

import pocketcnn as pc
from pocketcnn.cli import main
from pocketcnn.data import load
from pocketcnn.errors import (
    BadStorage,
    BrokenFile,
    Interrupted,
    MissingExtra,
    NonFiniteLoss,
    NothingFits,
    NothingToCondense,
    UnknownMethod,
    UnknownModel,
)
from pocketcnn.experiments import search as searching
from pocketcnn.experiments.search import search
from pocketcnn.experiments.search import study as database
from pocketcnn.experiments.search import worker as work
from pocketcnn.experiments.search.findings import _nothing_fits
from pocketcnn.experiments.search.space import STORED, Budgets, Space, parse_size
from pocketcnn.experiments.search.study import (
    check_settings,
    fruitless_in_a_row,
    open_study,
    quiet_optuna,
    record_of,
    requeue,
)
from pocketcnn.experiments.search.worker import Worker, stops
from pocketcnn.methods import Range
from pocketcnn.report.pareto import _staircase, pareto
from pocketcnn.support.files import read_json
from pocketcnn.train import TrainConfig, evaluate
from processes import fork

QUICK = TrainConfig(epochs=1, batch_size=64, precision="float32", channels_last="off")
NET = {"in_channels": 1, "num_classes": 10, "width": 0.5}
TIGHT = Budgets(max_bytes=20_000, max_macs=70_000, max_ms=1000.0)
METHODS = ("plain", "ring", "pde+ring")

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module", autouse=True)
def _hasty():
    """Measures latency once only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_ROUNDS", 1)
        patch.setattr(work, "_RUNS", 1)
        yield


@pytest.fixture(scope="module")
def few():
    return load("digits", limit=128)


@pytest.fixture(scope="module")
def space():
    return Space.of("resnet20", NET, METHODS)


@pytest.fixture(scope="module")
def done(few, space, tmp_path_factory):
    """A search of five trials: its folder and its findings."""
    folder = tmp_path_factory.mktemp("search")
    return folder, search(few, QUICK, folder, trials=5, space=space, budgets=TIGHT)


@pytest.fixture
def untrained(monkeypatch):
    """A `fit` that does not train but leaves the files of a run; costs follow from the width."""
    calls = []

    def fit(net, data, config, folder, *, on_epoch, **run):
        calls.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.csv").write_text("epoch,validation_accuracy\n" + config.epochs * "1,0.1\n")
        on_epoch(config.epochs * [{"validation_accuracy": 0.1}])

    def costs(worker, candidate):
        size = round(200_000 * candidate.model_options["width"])
        return {"file_bytes": size, "macs": size, "latency_ms": 1.0, "trainable_params": size}

    monkeypatch.setattr(work, "fit", fit)
    monkeypatch.setattr(Worker, "_costs", costs)
    monkeypatch.setattr(work, "accuracy_of", lambda file, data, split: 0.1)
    return calls


def outcomes(found):
    return [record["outcome"] for record in found.trials]


def test_every_trained_net_is_within_the_budgets(done, few):
    folder, found = done
    trained = [record for record in found.trials if record["outcome"] == "trained"]
    assert len(trained) == 5
    for record in trained:
        file = folder / record["folder"] / "stored.safetensors"
        assert file.stat().st_size == record["file_bytes"] <= TIGHT.max_bytes
        assert pc.measure(pc.load(file), few.input_size).macs == record["macs"] <= TIGHT.max_macs
    assert {path.name for path in (folder / "trials").iterdir()} == {r["folder"].split("/")[1] for r in trained}
    over = [record for record in found.trials if record["outcome"] == "over budget"]
    assert over, "or this tests nothing"
    for record in over:
        assert record["file_bytes"] > TIGHT.max_bytes or record["macs"] > TIGHT.max_macs


def test_the_front_is_what_no_other_net_beats(done):
    folder, found = done
    points = {
        record["number"]: (-record["validation_accuracy"], record["file_bytes"], record["latency_ms"])
        for record in found.trials
        if record["outcome"] == "trained"
    }
    best = [
        number
        for number, point in points.items()
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )
    ]
    written = read_json(folder / "front.json")["front"]
    assert written == found.front
    assert sorted(record["number"] for record in written) == best
    assert {f"front/{path.name}" for path in (folder / "front").iterdir()} == {record["file"] for record in written}


def test_accuracies_are_those_of_the_files(done, few):
    folder, found = done
    record = found.front[-1]
    net = pc.load(folder / record["file"])
    assert evaluate(net, few)["test_accuracy"] == record["test_accuracy"]
    assert evaluate(net, few, split="validation")["validation_accuracy"] == record["validation_accuracy"]


def test_test_images_are_not_seen_before_the_last_choice(done):
    folder, found = done
    for record in found.trials:
        assert "test_accuracy" not in record
        if record["outcome"] == "trained":
            assert "test_accuracy" not in read_json(folder / record["folder"] / "result.json")


def test_the_widest_plain_net_that_fits_comes_first(done, few, tmp_path):
    folder, found = done
    first = found.trials[0]
    assert (first["parts"], first["storage"]) == ([], "int8")
    wider = pc.create_model("resnet20", **{**NET, "width": first["model_options"]["width"] + 0.5 / 16})
    notes = pc.checkpoint.read_header(folder / first["folder"] / "stored.safetensors")["notes"]
    size = pc.save(wider, tmp_path / "net.safetensors", notes=notes, storage="int8", packed=True)
    assert size > TIGHT.max_bytes or pc.measure(wider, few.input_size).macs > TIGHT.max_macs


def test_a_finished_search_is_read_and_one_with_more_trials_goes_on(few, space, tmp_path, untrained):
    arguments = {"space": space, "budgets": TIGHT, "storage": f"sqlite:///{tmp_path / 'a.db'}"}
    found = search(few, QUICK, tmp_path, trials=2, **arguments)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert search(few, QUICK, tmp_path, trials=2, **arguments) == found
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == kept
    assert len(untrained) == 2
    (tmp_path / "front" / "trial-99.safetensors").touch()  # of a front that was
    search(few, QUICK, tmp_path, trials=3, **arguments)
    assert len(untrained) == 3
    assert not (tmp_path / "front" / "trial-99.safetensors").exists()
    with pytest.raises(ValueError, match="has trained 3 candidates already, more than 2; ask for 3 or more"):
        search(few, QUICK, tmp_path, trials=2, **arguments)


class Study:
    """The settings that a study holds."""

    study_name = "old"

    def __init__(self, settings):
        self.user_attrs = {"settings": settings}


def test_a_study_from_before_a_field_was_added_goes_on():
    train = json.loads(json.dumps(dataclasses.asdict(QUICK)))
    had = {key: value for key, value in train.items() if key != "feature_weight"}
    check_settings(Study({"train": had}), {"train": train})
    with pytest.raises(ValueError, match=r"train\.feature_weight was 0\.0, now 1\.0"):
        check_settings(Study({"train": had}), {"train": {**train, "feature_weight": 1.0}})


def test_other_settings_are_named(done, few, space):
    folder, _ = done

    def refused(match, data=few, config=QUICK, space=space, budgets=TIGHT):
        with pytest.raises(ValueError, match=match):
            search(data, config, folder, trials=5, space=space, budgets=budgets)

    refused(
        "other settings \\(budgets.max_bytes was 20000, now 30000\\)",
        budgets=dataclasses.replace(TIGHT, max_bytes=30_000),
    )
    refused("train.epochs was 1, now 2", config=dataclasses.replace(QUICK, epochs=2))
    refused("fingerprint was .*, now 'other'", data=dataclasses.replace(few, fingerprint="other"))
    refused(
        "model_options.width was 0.5, now 1.0", space=dataclasses.replace(space, model_options={**NET, "width": 1.0})
    )
    refused("space.methods was .*, now \\['plain'\\]", space=Space.of("resnet20", NET, ["plain"]))


@pytest.mark.parametrize(("budgets", "broken"), [
    (Budgets(max_bytes=1_000), "bytes, .*, over max_bytes 1,000; allow more"),
    (Budgets(max_bytes=100_000, max_macs=50), "MACs, .* ms, over max_macs 50;"),
    (Budgets(max_bytes=1_000, max_ms=1e-6), " ms, over max_bytes 1,000 and max_ms 1e-06;"),
])  # fmt: skip
def test_where_nothing_fits_the_nearest_is_named(few, space, tmp_path, monkeypatch, budgets, broken):
    monkeypatch.setattr(work, "_PATIENCE", 3)
    with pytest.raises(NothingFits, match=f"none of 3 proposals meets the budgets; the nearest, width=.*{broken}"):
        search(few, QUICK, tmp_path, trials=2, space=space, budgets=budgets)
    assert not (tmp_path / "trials").exists()


def test_the_nearest_is_the_one_that_misses_least():
    budgets = Budgets(max_bytes=100, max_ms=1.0)
    rows = [("far", 1000, 0.5), ("near", 150, 0.5), ("slow", 100, 3.0)]
    records = [{"label": name, "file_bytes": size, "macs": 7, "latency_ms": ms} for name, size, ms in rows]
    message = _nothing_fits(records, budgets)
    assert "the nearest, near, has 150 bytes, 7 MACs, 0.5 ms, over max_bytes 100;" in message
    with pytest.raises(ValueError, match="max_ms must be more than 0, not -1"):
        Budgets(max_ms=-1.0)


def test_a_search_ends_where_nothing_new_is_left(few, tmp_path, untrained, monkeypatch, caplog):
    """A plain net of one width makes six candidates, one for each way to store it."""
    monkeypatch.setattr(work, "_PATIENCE", 8)
    space = dataclasses.replace(Space.of("resnet20", NET, ["plain"]), widths=(2, 2))
    found = search(few, QUICK, tmp_path, trials=9, space=space)
    assert {r["storage"] for r in found.trials if r["outcome"] == "trained"} == set(STORED)
    assert outcomes(found)[-8:] == 8 * ["repeated"]
    assert "8 proposals in a row do not fit or were trained before; the search ends after 6 of 9 trials" in caplog.text


def test_weights_of_few_bits_are_trained_so(few, tmp_path):
    space = dataclasses.replace(Space.of("resnet20", NET, ["plain"]), widths=(2, 2))
    candidate = space.propose(optuna.trial.FixedTrial({"method": "plain", "width": 2, "storage": "ternary"}))
    worker = Worker(None, few, QUICK, tmp_path, space, Budgets(), 1, "cpu")
    before = worker._costs(candidate)["file_bytes"]
    net = candidate.build(0)
    work.fit(net, few, worker._config(candidate), tmp_path / "run", test=False)
    assert all(len(row.unique()) <= 3 for row in net.layer2[0].conv2.weight.flatten(1))
    size = candidate.save(net, tmp_path / "net.safetensors", {})
    assert pc.load(tmp_path / "net.safetensors").layer2[0].conv2.weight.equal(net.layer2[0].conv2.weight)
    assert size == pytest.approx(before, rel=0.08), "random numbers tell the length before"


def test_a_file_that_is_too_long_once_trained_is_not_on_the_front(few, tmp_path, untrained, monkeypatch):
    space = dataclasses.replace(Space.of("resnet20", NET, ["plain"]), widths=(2, 3))
    sizes = iter([19_000, 21_000])
    monkeypatch.setattr(searching.Candidate, "save", lambda self, net, path, notes: pc.save(net, path) and next(sizes))
    accuracies = iter([0.1, 0.9])
    monkeypatch.setattr(work, "accuracy_of", lambda file, data, split: next(accuracies))
    found = search(few, QUICK, tmp_path, trials=2, space=space, budgets=Budgets(max_bytes=20_000))
    assert [record["file_bytes"] for record in found.front] == [19_000]
    assert sorted(record["file_bytes"] for record in found.trials if record["outcome"] == "trained") == [19_000, 21_000]
    with pytest.raises(ValueError, match="leave out bits and sparsity"):
        search(few, dataclasses.replace(QUICK, bits="4"), tmp_path, trials=1, space=space)


def test_where_all_are_too_long_once_trained_the_nearest_is_named(few, tmp_path, untrained, monkeypatch):
    space = dataclasses.replace(Space.of("resnet20", NET, ["plain"]), widths=(2, 3))
    monkeypatch.setattr(searching.Candidate, "save", lambda self, net, path, notes: pc.save(net, path) and 21_000)
    with pytest.raises(NothingFits, match=r"the nearest, .*, has 21,000 bytes"):
        search(few, QUICK, tmp_path, trials=1, space=space, budgets=Budgets(max_bytes=20_000))


def test_rings_with_codes_and_averages_of_weights_are_tried(few, tmp_path):
    space = Space.of("resnet20", NET, ["ring:scheme=codebook"])
    params = {"method": "ring:scheme=codebook", "width": 16, "storage": "int4", "ring.size": 0.1, "ring.level": "net",
              "ring.stages": space.stages["ring"][0]}  # fmt: skip
    candidate = space.propose(optuna.trial.FixedTrial(params))
    worker = Worker(None, few, dataclasses.replace(QUICK, ema_decay=0.9), tmp_path, space, Budgets(), 1, "cpu")
    assert worker._costs(candidate)["file_bytes"] > 1000
    assert (worker._config(candidate).bits, worker._config(candidate).ema_decay) == ("4", 0.0)


def test_where_nothing_can_be_built_the_reason_is_given(few, tmp_path, monkeypatch):
    """The widest of these nets has 8 channels."""
    monkeypatch.setattr(work, "_PATIENCE", 3)
    space = Space.of("resnet20", {**NET, "width": 0.25}, ["involution:group_channels=16"])
    narrow = dataclasses.replace(space, widths=(2, 8))
    with pytest.raises(
        NothingFits, match="none of 3 proposals can be built: 'involution' found no convolution to work on"
    ):
        search(few, QUICK, tmp_path, trials=1, space=narrow)


# --- what is chosen from ---------------------------------------------------------------------------------------------


def test_stages_are_those_of_the_plan(space):
    assert space.stages["ring"] == (
        "layer1 layer2 layer3", "layer2 layer3", "layer3", "layer1", "layer2",
    )  # fmt: skip
    trial = optuna.trial.FixedTrial({
        "method": "pde+ring", "width": 8, "storage": "float16", "pde.velocity": "identity", "pde.diffusivity": "constant",
        "pde.num_steps": 3, "pde.last_stage": "global", "pde.stages": "layer1", "ring.size": 0.1234, "ring.level": "net",
        "ring.stages": "layer2 layer3",
    })  # fmt: skip
    candidate = space.propose(trial)
    assert candidate.label == (
        "width=0.25 pde:velocity=identity,diffusivity=constant,num_steps=3@layer1+ring:size=0.12@layer2,layer3 float16"
    )
    first, second = candidate.build(seed=0).provenance.steps
    assert (first.method, first.sites) == ("pde", ("layer1.1",))
    assert second.options["size"] == 0.12
    assert {name.split(".")[0] for name in second.sites} == {"layer2", "layer3"}
    with torch.no_grad():
        assert candidate.build(seed=0)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_options_that_are_given_are_not_searched():
    space = Space.of("resnet20", NET, ["ring:size=0.5"])
    params = {"method": "ring:size=0.5", "width": 16, "storage": "int8", "ring.level": "net", "ring.stages": "layer3"}
    assert space.propose(optuna.trial.FixedTrial(params)).label == "width=0.5 ring:size=0.5@layer3 int8"


def test_methods_that_find_nothing_to_do_are_left_out_unless_asked_for(caplog):
    caplog.set_level(logging.INFO, "pocketcnn")
    assert list(Space.of("resnet18", {"width": 0.0625}).methods) == [
        "plain", "condconv", "involution", "puppet", "ring", "involution+ring",
    ]  # fmt: skip
    assert "pde+ring has nothing to do in resnet18 and is left out" in caplog.text
    with pytest.raises(NothingToCondense, match="'pde' found no run of equal blocks"):
        Space.of("resnet18", {"width": 0.0625}, ["pde"])


@pytest.mark.parametrize(("model", "methods", "error", "match"), [
    ("resnet19", None, UnknownModel, "no model 'resnet19'"),
    ("resnet18_ring", None, ValueError, "resnet18_ring is resnet18 condensed already"),
    ("resnet20", ["rong"], UnknownMethod, "no method 'rong'; did you mean 'ring'"),
    ("resnet20", ["pde+rong"], UnknownMethod, "no method 'rong'"),
    ("resnet20", ["ring:size=7.5"], ValueError, "ring: size as a fraction must lie in"),
    ("resnet20", ["ring+ring"], ValueError, "ring\\+ring: name each method once, and plain alone"),
    ("resnet20", ["plain+ring"], ValueError, "plain\\+ring: name each method once, and plain alone"),
    ("resnet20", [], ValueError, "give at least one method to search over: plain, condconv,"),
])  # fmt: skip
def test_mistakes_in_what_is_searched(model, methods, error, match):
    with pytest.raises(error, match=match):
        Space.of(model, NET, methods)


def test_a_sixth_method_is_tried_too(monkeypatch):
    """One that lists nothing to search works with its defaults; the names tried are those of now, not of an import."""
    sixth = dataclasses.replace(pc.METHODS["ring"], name="sixth", searched={})
    monkeypatch.setitem(pc.METHODS, "sixth", sixth)
    assert searching.METHODS_TRIED == (
        "plain", "condconv", "involution", "pde", "puppet", "ring", "sixth", "pde+ring", "involution+ring",
    )  # fmt: skip
    space = Space.of("resnet20", NET)
    assert tuple(space.methods) == searching.METHODS_TRIED
    trial = optuna.trial.FixedTrial(
        {"method": "sixth", "width": 16, "storage": "int8", "sixth.stages": space.stages["sixth"][0]}
    )
    candidate = space.propose(trial)
    assert candidate.label == "width=0.5 sixth int8"
    (step,) = candidate.build(seed=0).provenance.steps
    assert step.method == "sixth"
    assert space.described()["options"]["sixth"] == {}


@pytest.mark.parametrize("method", sorted(pc.METHODS))
def test_every_value_that_is_searched_is_one_that_the_method_takes(method):
    record = pc.METHODS[method]
    assert record.searched, "a method that no search varies"
    for option, allowed in record.searched.items():
        for value in (allowed.low, allowed.high) if isinstance(allowed, Range) else allowed:
            pc.plan(pc.create_model("resnet20"), method, where=lambda *_: False, **{option: value})


@pytest.mark.parametrize(("text", "size"), [
    ("100k", 100_000), ("100_000", 100_000), ("100kB", 100_000), ("0.1M", 100_000), ("100 KB", 100_000),
    ("1.5g", 1_500_000_000), ("20M", 20_000_000), ("7", 7), ("1,234", 1234),
])  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["100x", "", "k", "-5k", "1e5", "12kk", "nan", "1,5M", "12,34"])
def test_sizes_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=f"'{text}' is no size; write 100k, 0.1M, 100_000 or 100kB, where k is 1000"):
        parse_size(text)


# --- when training stops early ---------------------------------------------------------------------------------------

PEERS = [[0.2, 0.5, 0.4, 0.9], [0.3, 0.6, 0.7, 0.7], [0.1, 0.1, 0.8, 0.8], [0.4, 0.4, 0.4, 0.6]]


@pytest.mark.parametrize(("curve", "peers", "epochs", "stopped"), [
    ([0.2, 0.44], PEERS, 4, True),  # the best after two epochs are 0.5 0.6 0.1 0.4, their median 0.45
    ([0.2, 0.46], PEERS, 4, False),
    ([0.46, 0.2], PEERS, 4, False),  # a bad epoch after a good one
    ([0.1, 0.2, 0.59], PEERS, 4, True),  # after three 0.5 0.7 0.8 0.4, their median 0.6
    ([0.1, 0.2, 0.61], PEERS, 4, False),
    ([0.1], PEERS, 4, False),  # too early
    ([0.1, 0.1, 0.1, 0.1], PEERS, 4, False),  # done anyway
    ([0.1, 0.1], PEERS[:3], 4, False),  # too few to compare with
    ([0.1, 0.1], PEERS, 8, False),
    ([0.1, 0.1, 0.1], PEERS, 8, True),
])  # fmt: skip
def test_a_net_below_the_median_of_its_peers_stops(curve, peers, epochs, stopped):
    assert stops(curve, peers, epochs) is stopped


def test_peers_are_not_larger_and_not_slower(few, space, tmp_path):
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    for number, (size, ms, outcome) in enumerate(
        [(109, 1.0, "trained"), (111, 1.0, "trained"), (50, 1.2, "trained"), (50, 0.5, "stopped early")]
    ):
        record = {"file_bytes": size, "latency_ms": ms, "outcome": outcome, "curve": [number]}
        study.add_trial(optuna.trial.create_trial(values=[0.5, size, ms], user_attrs={"record": record}))
    worker = Worker(study, few, QUICK, tmp_path, space, TIGHT, 9, "cpu")
    assert worker._peers({"file_bytes": 100, "latency_ms": 1.0}) == [[0]]


def test_a_poor_net_is_stopped_counted_and_not_on_the_front(few, space, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "stops", lambda curve, peers, epochs: len(curve) == 1)
    config = dataclasses.replace(QUICK, epochs=3)
    found = search(few, config, tmp_path, trials=1, space=space, budgets=TIGHT)
    assert outcomes(found)[0] == "stopped early"
    assert len(found.trials[0]["curve"]) == 1
    assert {path.name for path in (tmp_path / "trials" / "0").iterdir()} == {
        "config.json", "environment.json", "metrics.csv",
    }  # fmt: skip
    assert found.front == []
    assert "1 nets trained, of which 1 stopped early" in found.table


def test_a_net_that_diverges_counts(few, space, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise NonFiniteLoss("epoch 1, step 1: the loss is nan")

    monkeypatch.setattr(work, "fit", fit)
    found = search(few, QUICK, tmp_path, trials=2, space=space, budgets=TIGHT)
    assert [outcome for outcome in outcomes(found) if outcome != "over budget"] == ["diverged", "diverged"]
    assert found.trials[0]["reason"] == "epoch 1, step 1: the loss is nan"


# --- workers that stop or die ----------------------------------------------------------------------------------------


def test_a_trial_that_was_interrupted_goes_on_in_its_folder(few, space, tmp_path, monkeypatch, untrained):
    fit = work.fit

    def interrupted(*_, **__):
        raise Interrupted("stopped after epoch 1")

    monkeypatch.setattr(work, "fit", interrupted)
    with pytest.raises(Interrupted, match="stopped after epoch 1"):
        search(few, QUICK, tmp_path, trials=2, space=space, budgets=TIGHT)
    monkeypatch.setattr(work, "fit", fit)
    found = search(few, QUICK, tmp_path, trials=2, space=space, budgets=TIGHT)
    assert untrained[0] == tmp_path / "trials" / "0"
    assert (found.trials[0]["number"], found.trials[0]["folder"]) == (1, "trials/0")
    assert outcomes(found).count("trained") == 2


def test_a_trial_that_breaks_off_each_time_is_given_up(few, space, tmp_path, monkeypatch, caplog, untrained):
    fit = work.fit

    def failing(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(work, "fit", failing)
    for _ in range(4):
        with pytest.raises(OSError, match="no space left"):
            search(few, QUICK, tmp_path, trials=1, space=space, budgets=TIGHT)
    assert "trial 0 broke off 4 times and is given up" in caplog.text
    monkeypatch.setattr(work, "fit", fit)
    found = search(few, QUICK, tmp_path, trials=1, space=space, budgets=TIGHT)
    assert outcomes(found).count("trained") == 1
    assert untrained == [tmp_path / found.front[0]["folder"]] != [tmp_path / "trials" / "0"]


def test_a_worker_that_died_before_its_first_sign_of_life_is_not_waited_for(
    few, space, tmp_path, monkeypatch, untrained
):
    """One of the two trials was a new proposal; the other had resumed a trial, and is resumed again."""
    monkeypatch.setattr(database, "_GRACE", 1)
    with quiet_optuna():
        study = open_study(f"sqlite:///{tmp_path / 'search.db'}", "pocketcnn")
        for attributes in ({}, {"takes_up": 0, "tries": 1}):
            running = optuna.trial.TrialState.RUNNING
            study.add_trial(optuna.trial.create_trial(state=running, user_attrs=attributes))
    time.sleep(1.1)
    found = search(few, QUICK, tmp_path, trials=1, space=space, budgets=TIGHT)
    assert outcomes(found).count("trained") == 1
    assert "trials/0" in {record["folder"] for record in found.trials}


def test_of_workers_that_ask_for_the_last_trial_the_first_gets_it(few, space, tmp_path, untrained):
    """The other's proposal is surplus and does not count as fruitless."""
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.ask()  # another worker's
    worker = Worker(study, few, QUICK, tmp_path, space, Budgets(), 1, "cpu")
    with quiet_optuna():
        study.optimize(worker._try, n_trials=1)
    assert record_of(study.trials[1])["outcome"] == "surplus"
    assert fruitless_in_a_row(study.trials) == 0
    assert not untrained


def test_a_worker_that_was_silent_leaves_its_trial_to_the_one_that_took_it(
    few, space, tmp_path, monkeypatch, caplog, untrained
):
    fit = work.fit

    def silent(net, data, config, folder, *, on_epoch, **run):
        monkeypatch.setattr(work, "fit", fit)
        study = optuna.load_study(study_name="pocketcnn", storage=f"sqlite:///{tmp_path / 'search.db'}")
        study.tell(0, state=optuna.trial.TrialState.FAIL)
        requeue(study, study.trials[0])
        on_epoch([{"validation_accuracy": 0.9}])

    monkeypatch.setattr(work, "fit", silent)
    found = search(few, QUICK, tmp_path, trials=1, space=space, budgets=TIGHT)
    assert "another one took its trial over" in caplog.text
    assert (found.front[0]["number"], found.front[0]["folder"]) == (1, "trials/0")


WORKER = """
import logging, sys
from pathlib import Path
import torch
from pocketcnn.data import load
from pocketcnn.experiments import search as searching
from pocketcnn.experiments.search import study, worker
from pocketcnn.train import TrainConfig

torch.set_num_threads(1)
study._HEARTBEAT, study._GRACE, worker._ROUNDS = 1, 3, 1
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
config = TrainConfig(epochs=3, batch_size=32, precision="float32", channels_last="off")
space = searching.Space.of("resnet20", {"in_channels": 1, "num_classes": 10, "width": 0.5}, ["plain", "ring"])
found = searching.search(
    load("digits", limit=480), config, sys.argv[1], trials=int(sys.argv[2]), space=space, storage="sqlite:///" + sys.argv[3],
    budgets=searching.Budgets(max_bytes=20_000),
)
print(found.table)
"""


def test_two_workers_share_a_search_and_one_is_killed(tmp_path):
    """They make the database together; the one that is left resumes the trial of the other from its checkpoint."""
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    workers = []
    for log in logs:
        with log.open("w") as file:
            workers.append(fork(script, tmp_path / "out", 4, tmp_path / "shared.db", output=file))
    try:
        deadline = time.time() + 120
        while "epoch 2/3" not in logs[0].read_text():
            assert time.time() < deadline
            assert workers[0].poll() is None, logs[0].read_text()
            time.sleep(0.02)
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        assert workers[1].wait(timeout=180) == 0, logs[1].read_text()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    logged = [log.read_text() for log in logs]
    cut = logged[0].split("trial ")[-1].split(":")[0]
    written = read_json(tmp_path / "out" / "trials.json")["trials"]
    counted = [record for record in written if record["outcome"] in ("trained", "stopped early")]
    assert len(counted) == 4
    assert len({record["folder"] for record in counted}) == 4
    assert len({record["label"] for record in counted}) == 4
    if f"trial {cut}: validation accuracy" not in logged[0]:
        assert f"trial {cut} broke off; it will be resumed" in logged[1]
        again = next(record for record in counted if record["folder"] == f"trials/{cut}")
        assert again["number"] > int(cut)
        assert f"trial {again['number']}: epoch 1/3" not in logged[1], "it must not start anew"
        if again["outcome"] == "trained":
            assert len(again["curve"]) == 3
    assert "4 nets trained" in logged[1]


# --- the database, the folder, the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(("url", "match"), [
    ("no url at all", "no url at all: this database cannot be opened"),
    ("sqlite:////proc/nowhere/search.db", "unable to open database file"),
    ("nosuchdatabase+driver://me:secret@host/name", r"nosuchdatabase\+driver://me:\*\*\*@host/name: this database cannot"),
    ("mysql+nodriver://host/name", "give sqlite:///FILE in a folder that can be written to"),
])  # fmt: skip
def test_databases_that_cannot_be_opened(few, space, tmp_path, monkeypatch, url, match):
    monkeypatch.setattr(database, "_OPENINGS", 2)
    monkeypatch.setattr(database, "POLL", 0.01)
    with pytest.raises(BadStorage, match=match) as raised:
        search(few, QUICK, tmp_path, trials=1, space=space, storage=url)
    assert "secret" not in str(raised.value)


def test_without_optuna(few, space, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"searching needs optuna, which is .*; pip install 'pocketcnn\[search\]'"):
        search(few, QUICK, tmp_path, trials=1, space=space)


def test_a_database_of_something_else(few, space, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_OPENINGS", 1)
    (tmp_path / "search.db").write_text("notes, " * 1000)
    with pytest.raises(BadStorage, match="file is not a database"):
        search(few, QUICK, tmp_path, trials=1, space=space)


def test_a_trial_whose_files_are_gone_is_named(few, space, tmp_path, untrained):
    arguments = {"space": space, "budgets": TIGHT, "storage": f"sqlite:///{tmp_path / 'a.db'}"}
    search(few, QUICK, tmp_path / "here", trials=1, **arguments)
    with pytest.raises(
        BrokenFile, match=r"stored\.safetensors: the file of trial 0 is gone; give the folder in which it was"
    ):
        search(few, QUICK, tmp_path / "there", trials=1, **arguments)


def test_trials_below_one(few, space, tmp_path):
    with pytest.raises(ValueError, match="trials is how many candidates are trained, at least 1, not 0"):
        search(few, QUICK, tmp_path, trials=0, space=space)


def test_the_command_line_reads_a_finished_search(done, capsys):
    folder, found = done
    words = ["search", "--limit", "128", "--width", "0.5", "--methods", *METHODS, "--trials", "5", "--epochs", "1"]
    words += ["--batch-size", "64", "--precision", "float32", "--channels-last", "off", "--output", str(folder)]
    with pytest.raises(SystemExit) as left:
        main([*words, "--max-bytes", "20k", "--max-macs", "0.07M", "--max-ms", "1000"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(found.table)
    assert (folder / "table.md").read_text() == found.table
    for wrong, message in (
        (["--max-bytes", "20x"], "ValueError: '20x' is no size"),
        ([], "ValueError: the database holds a"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*words, *wrong])
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith(message)


def test_the_figure(done):
    folder, found = done
    drawn = (folder / "pareto.svg").read_text()
    assert "<svg" in drawn
    front = {record["number"] for record in found.front}
    marks = {}
    for budgets in (TIGHT, Budgets()):
        svg = pareto(found.trials, front, dataclasses.asdict(budgets), "")
        marks[budgets] = svg.count("stroke-dasharray")
    assert marks[TIGHT] > marks[Budgets()]  # the line of the budget
    points = [(3, 0.5), (1, 0.2), (2, 0.4), (2, 0.3), (4, 0.45)]
    assert _staircase(points) == [(1, 0.2), (2, 0.2), (2, 0.4), (3, 0.4), (3, 0.5)]


# --- databases that no search wrote ----------------------------------------------------------------------------------


RECORD = {"label": "plain", "outcome": "trained", "folder": "trials/0", "parts": [], "file_bytes": 9, "macs": 9,
          "latency_ms": 1.0, "validation_accuracy": 0.5, "curve": [0.5]}  # fmt: skip


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Makes a study with one trial, and opens it again as a search does."""
    monkeypatch.setattr(database, "_OPENINGS", 1)

    def make(record=None, settings=None, directions=("maximize", "minimize", "minimize"), **attributes):
        url = f"sqlite:///{tmp_path / 'other.db'}"
        with quiet_optuna():
            study = optuna.create_study(storage=url, study_name="pocketcnn", directions=directions)
            if settings is not None:
                study.set_user_attr("settings", settings)
            values = [0.5] * len(directions)
            attributes = attributes if record is None else {**attributes, "record": record}
            study.add_trial(optuna.trial.create_trial(values=values, user_attrs=attributes))
            return open_study(url, "pocketcnn")

    return make


def test_a_whole_record_is_read(opened):
    assert record_of(opened(RECORD).get_trials()[0]) == RECORD


@pytest.mark.parametrize(("change", "match"), [
    ({"outcome": "famous"}, "trial 0: Invalid enum value 'famous' at record.outcome"),
    ({"outcome": None}, "trial 0: "),
    ({"label": 7}, "Expected str, got int at record.label"),
    ({"folder": "../../etc"}, "record.folder"),
    ({"folder": "/etc"}, "record.folder"),
    ({"parts": {}}, "record.parts"),
    ({"parts": [{}]}, "missing required field method"),
    ({"file_bytes": None}, "file_bytes"),
    ({"file_bytes": -1}, "file_bytes"),
    ({"latency_ms": 0}, "latency_ms"),
    ({"curve": ["high"]}, "curve"),
    ({"validation_accuracy": 2}, "validation_accuracy"),
])  # fmt: skip
def test_records_of_trials_with_another_shape(opened, change, match):
    with pytest.raises(BadStorage, match=match) as refused:
        opened({**RECORD, **change})
    assert str(refused.value).endswith("give another database (storage) or study")


def test_studies_that_no_search_made(opened, tmp_path):
    with pytest.raises(BadStorage, match="is no search of pocketcnn: it has other objectives"):
        opened(directions=("minimize",))
    (tmp_path / "other.db").unlink()
    with pytest.raises(BadStorage, match="trial 0: Expected int, got str at takes_up"):
        opened(takes_up="one")
    with pytest.raises(BadStorage, match="settings: Object missing required field train"):
        check_settings(Study({"mode": 1}), {"train": {}})
    with pytest.raises(BadStorage, match="settings: Expected object, got array"):
        check_settings(Study([1]), {"train": {}})


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///:memory:?x=1"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(BadStorage, match="lost when the process ends"):
        open_study(url, "name")


@pytest.mark.parametrize("statement", [
    "UPDATE alembic_version SET version_num = 'v9.9.9'", "DELETE FROM study_directions", "ALTER TABLE trials DROP COLUMN state",
    "UPDATE trial_user_attributes SET value_json = '{'", "UPDATE trials SET state = 'ASLEEP'",
    "UPDATE trial_values SET value_type = 'HIGH'",
])  # fmt: skip
def test_a_damaged_database(few, space, opened, tmp_path, statement):
    import sqlite3

    opened(RECORD, json.loads(json.dumps(searching._settings(few, QUICK, space, TIGHT))))
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(BadStorage) as refused:
        search(few, QUICK, tmp_path, trials=1, space=space, budgets=TIGHT, storage=f"sqlite:///{path}")
    assert "\n" not in str(refused.value)


def test_a_database_that_cannot_be_written(few, space, tmp_path, opened):
    opened(RECORD, json.loads(json.dumps(searching._settings(few, QUICK, space, TIGHT))))
    path = tmp_path / "other.db"
    with pytest.raises(BadStorage, match="attempt to write a readonly database"):
        search(
            few,
            QUICK,
            tmp_path,
            trials=2,
            space=space,
            budgets=TIGHT,
            storage=f"sqlite:///file:{path}?mode=ro&uri=true",
        )
