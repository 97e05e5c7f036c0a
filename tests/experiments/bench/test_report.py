from pocketcnn.experiments.bench import QUICK, Results
from pocketcnn.experiments.bench.goals import Goal
from pocketcnn.experiments.bench.limits import Machine
from pocketcnn.experiments.bench.report import markdown


def table(*goals):
    machine = Machine({100: 1e9}, {"float32": 1e9}, 1e9)
    environment = {"processor": "abacus", "threads": 2, "packages": {"torch": "2"}}
    return markdown(Results(environment, QUICK, machine, goals, (), ()))


def test_goals_are_met_or_missed_on_either_side():
    shown = table(
        Goal("fast enough", 20.0, "x", least=20.0),
        Goal("too slow", 19.9, "x", least=20.0),
        Goal("small enough", 0.35, "x", most=0.35),
        Goal("too large", 0.36, "x", most=0.35),
        Goal("near enough", 1.02, "x", most=1.0, noise=0.03),
        Goal("too far", 1.02, "x", most=1.0, noise=0.01),
        Goal("only reported", 7.0, "ms", note="how|so"),
    )
    assert "| fast enough | 20 x | ≥ 20 x | met |  |" in shown
    assert "| too slow | 19.9 x | ≥ 20 x | **missed** |  |" in shown
    assert "| small enough | 0.35 x | ≤ 0.35 x | met |  |" in shown
    assert "| too large | 0.36 x | ≤ 0.35 x | **missed** |  |" in shown
    assert "| near enough | 1.02 x | ≤ 1 x | met |  |" in shown
    assert "| too far | 1.02 x | ≤ 1 x | **missed** |  |" in shown
    assert "| only reported | 7 ms |  |  | how/so |" in shown


def test_what_was_not_measured_is_left_out():
    shown = table()
    assert shown.startswith("abacus, 2 threads")
    assert "##" not in shown
