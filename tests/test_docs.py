"""Tests that the README and the docs tell the truth: their Python runs, their tables equal the records, their links exist."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest

from pocketcnn.report import markdown, read_results, read_speeds, summarize
from pocketcnn.support.files import read_json

ROOT = Path(__file__).parents[1]


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    size = (tmp_path / "small.safetensors").stat().st_size
    assert f"{size / 1e6:.1f} MB" in blocks[0]


def test_the_table_in_the_readme_is_made_of_the_records():
    folder = ROOT / "results" / "cifar10"
    table = markdown(summarize(read_results(folder), read_speeds(folder)))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_of_the_global_layer_are_made_of_the_records():
    card = (ROOT / "docs" / "methods" / "pde.md").read_text(encoding="utf-8")
    folder = ROOT / "results" / "cifar10-pde"
    assert markdown(summarize(read_results(folder), read_speeds(folder))) in card
    source = importlib.util.spec_from_file_location("mnist_illustrative", ROOT / "examples" / "mnist_illustrative.py")
    example = importlib.util.module_from_spec(source)
    sys.modules[source.name] = example
    source.loader.exec_module(example)
    folder = ROOT / "results" / "mnist-illustrative"
    assert example.table(folder) in card
    for one, other in (("pde_w1", "residual_w1"), ("pde_w8", "residual_w8")):
        assert example.difference(folder, one, other).split(": ", 1)[1] in " ".join(card.split())


def test_the_tables_of_puppet_are_made_of_the_records():
    card = (ROOT / "docs" / "methods" / "puppet.md").read_text(encoding="utf-8")
    folders = sorted((ROOT / "results" / "puppet").iterdir())
    assert len(folders) == 4
    for folder in folders:
        assert markdown(summarize(read_results(folder), read_speeds(folder))) in card, folder.name


def test_the_table_of_own_nets_is_made_of_the_records():
    own_nets = runpy.run_path(str(ROOT / "benchmarks" / "own_nets.py"))
    table = own_nets["table"](read_json(own_nets["RESULTS"] / "outcomes.json"))
    assert table in (ROOT / "docs" / "own_net.md").read_text(encoding="utf-8")


def test_the_table_of_small_files_is_made_of_the_records():
    small_files = runpy.run_path(str(ROOT / "benchmarks" / "small_files.py"))
    rows = small_files["rows"](read_json(small_files["RESULTS"] / "files.json"))
    assert small_files["table"](rows) in (ROOT / "docs" / "small_files.md").read_text(encoding="utf-8")


def test_the_table_of_students_is_made_of_the_records():
    table = runpy.run_path(str(ROOT / "benchmarks" / "fit.py"))["table"]
    assert table(ROOT / "results" / "distil") in (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")


def test_the_tables_of_the_ring_are_made_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import equilibrium
    import keypoints
    import multitask
    import ring_sweep

    card, folder = (ROOT / "docs" / "methods" / "ring.md").read_text(encoding="utf-8"), ROOT / "results" / "ring"
    assert ring_sweep.tables(folder / "sweep") in card
    for axis in ("numbers", "ring_bytes"):
        law = ring_sweep.law(folder / "sweep", axis)
        assert f"{100 * law.slope:.1f} points a decade, R² {law.r_squared:.2f}" in " ".join(card.split())
    for part in ("levels", "schemes"):
        assert markdown(summarize(read_results(folder / part), read_speeds(folder / part))) in card, part
    assert keypoints.table(folder / "keypoints") in card
    assert multitask.table(folder / "multitask") in card
    found = read_json(folder / "equilibrium" / "result.json")
    assert equilibrium.table({name: found[name] for name in ("equilibrium", "ring")}) in card
    assert (folder / "similarity" / "table.txt").read_text(encoding="utf-8") in card
    key = read_json(folder / "sweep" / "key.json")
    assert key["equal_bits"]
    assert all(abs(accuracy - 0.1) < 0.03 for accuracy in key["wrong"])
    wrong = ", ".join(f"{100 * accuracy:.2f}" for accuracy in key["wrong"])
    assert f"{100 * key['right']:.2f} %" in card
    assert wrong in card


def test_the_tables_of_the_comparison_are_made_of_the_records():
    folder = ROOT / "results" / "dynamic" / "comparison"
    table = markdown(summarize(read_results(folder), read_speeds(folder)))
    for method in ("condconv", "involution"):
        assert table in (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")


def test_the_page_of_searches_is_made_of_the_records():
    folder = ROOT / "results" / "search" / "digits"
    assert (folder / "table.md").read_text(encoding="utf-8") in (ROOT / "docs" / "search.md").read_text(
        encoding="utf-8"
    )
    found = read_json(folder / "trials.json")
    assert sum(trial["outcome"] in ("trained", "stopped early") for trial in found["trials"]) == 30
    for record in read_json(folder / "front.json")["front"]:
        assert (folder / record["file"]).stat().st_size == record["file_bytes"] <= 20_000


def test_every_method_has_a_card_and_every_link_leads_somewhere():
    import pocketcnn as pc

    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == set(pc.METHODS)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_times(path, monkeypatch):
    source = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    script = importlib.util.module_from_spec(source)
    monkeypatch.setitem(sys.modules, source.name, script)
    source.loader.exec_module(script)
    assert f"python benchmarks/{path.name}" in script.__doc__
