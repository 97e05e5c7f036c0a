import pytest

from pocketcnn.methods import METHODS
from pocketcnn.report import markdown, summarize
from pocketcnn.report.figures import method_colour
from pocketcnn.report.page import findings
from pocketcnn.report.tables import rows_of


def record(label, method, accuracy, seed, scale=1.0, rival_of=""):
    return {
        "name": label, "seed": seed, "test_accuracy": accuracy, "train_images_per_second": 1000.0 * scale,
        "file_bytes": round(1_000_000 * scale), "latency": {"median_ms": 2.0 * scale},
        "cost": {"trainable_params": round(250_000 * scale), "total_params": round(252_000 * scale), "depth": 20,
                 "macs": round(40_000_000 * scale)},
        "identity": {"label": label, "model": "resnet20", "method": method, "rival_of": rival_of},
    }  # fmt: skip


@pytest.fixture
def summaries():
    return summarize(
        [record("resnet20 plain", "plain", a, s) for s, a in enumerate((0.90, 0.92))]
        + [record("resnet20 ring", "ring", a, s, 0.25) for s, a in enumerate((0.88, 0.885))]
        + [record("resnet20 width=0.5 plain", "plain", a, s, 0.26, "resnet20 ring") for s, a in enumerate((0.82, 0.84))]
    )


def test_means_spreads_and_ratios(summaries):
    plain, ring, rival = summaries
    assert plain.accuracy == pytest.approx(0.91)
    assert plain.spread == pytest.approx(0.0141421, rel=1e-4)  # sample standard deviation of two
    assert ring.ratios["file_bytes"] == pytest.approx(0.25)
    assert rival.ratios["file_bytes"] == pytest.approx(0.26), "rivals are compared with the plain net of full width"


@pytest.mark.golden
def test_table(summaries, golden):
    golden("table.md", markdown(summaries) + "\n" + "\n".join(findings(summaries)) + "\n")


def test_averaged_scores_have_a_column_of_their_own_where_runs_have_them():
    rows = [record("resnet20 plain", "plain", 0.9, seed) for seed in (0, 1)]
    averaged = [{**record("wide", "plain", 0.9, s), "test_tta_accuracy": 0.91 + s / 50} for s in (0, 1)]
    titles, cells = rows_of(summarize(rows))
    assert "with tta %" not in titles
    titles, cells = rows_of(summarize(rows + averaged))
    assert [row[titles.index("with tta %")] for row in cells] == ["-", "92.00 ± 1.41"]
    assert [row[titles.index("test accuracy %")] for row in cells] == ["90.00 ± 0.00"] * 2


def test_gaps_within_the_noise_are_said_to_be():
    rows = [record("resnet20 plain", "plain", 0.9, 0)]
    rows += [record("resnet20 ring", "ring", a, s) for s, a in enumerate((0.80, 0.90))]
    rows += [record("rival", "plain", a, s, 1.0, "resnet20 ring") for s, a in enumerate((0.81, 0.88))]
    [sentence] = findings(summarize(rows))
    # 1 point behind with one seed, 2 ahead with the other: 0.5 on average, s = 2.12, t of one degree of freedom is 12.71
    assert "+0.50 points against the plain net of equal size (± 19.06: within the noise of these seeds)" in sentence


def test_differences_from_the_plain_net_are_those_of_a_seed():
    plain = [record("resnet20 plain", "plain", a, s) for s, a in enumerate((0.90, 0.91, 0.93))]
    ring = [record("resnet20 ring", "ring", a, s) for s, a in enumerate((0.89, 0.905, 0.92))]
    titles, cells = rows_of(summarize(plain + ring))
    # 1, 0.5 and 1 point behind: s = 0.289, t of two degrees of freedom is 4.30
    assert [row[titles.index("to plain")] for row in cells] == ["-", "-0.83 ± 0.72"]
    assert "to plain" not in rows_of(summarize(plain[:1] + ring[:1]))[0], "no seeds, no intervals"


def test_a_method_keeps_its_colour_when_another_is_added(monkeypatch):
    colours = {method: method_colour(method) for method in METHODS}
    assert colours == {
        "condconv": "#0072B2", "involution": "#D55E00", "pde": "#009E73", "puppet": "#CC79A7", "ring": "#E69F00",
    }  # fmt: skip
    monkeypatch.setitem(METHODS, "attention", METHODS["ring"])
    assert {method: method_colour(method) for method in colours} == colours
    assert method_colour("attention") == "#56B4E9"


def test_a_legend_stays_inside_of_its_figure():
    from pocketcnn.report.figures import _LINE, _legend

    label = "resnet18 stem=small involution:include=layer*.conv2,kernel_size=3,num_groups=8,generator_bias=False,reduction=4"
    [summary] = summarize([record(label, "involution", 0.8, 0)])
    lines = _legend(summary).splitlines()
    assert "".join(lines) == label
    assert len(lines) == 2
    assert max(map(len, lines)) <= _LINE
