"""Tests that the README and the docs tell the truth: their Python runs, their tables equal the records, their links exist."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

import pocketcnn as pc
from pocketcnn import zoo
from pocketcnn.data import from_tensors
from pocketcnn.report import markdown, read_results, read_speeds, summarize
from pocketcnn.support.files import read_json

ROOT = Path(__file__).parents[1]
SITE, FILES = "https://pocketcnn.github.io/", "https://github.com/pocketcnn/pocketcnn/blob/main/"


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    assert len(text.split()) <= 700


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch):
    """With noise in the place of the data, and a budget that rounding alone keeps to."""
    images = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = from_tensors(images, torch.arange(300) % 10)
    monkeypatch.setattr("pocketcnn.data.load", lambda name: data)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block.replace('"100k"', '"600k"'), "README.md", "exec"), names := {})
    assert names["found"].path.stat().st_size <= 600_000
    assert names["small"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_figures_in_the_readme_are_those_of_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = read_json(ROOT / "results" / "small-files" / "files.json")["ternary-0.94"].values()
    accuracy, size = (mean(seed[key] for seed in files) for key in ("test_accuracy", "bytes"))
    assert f"{100 * accuracy:.2f} % of CIFAR-10's test images in a file of {round(size):,} bytes" in text
    windows, large = (zoo.find(name, "cifar10") for name in ("resnet20_windows", "speednet"))
    assert f"{100 * windows.test_accuracy:.2f} % in {windows.size_bytes:,} bytes" in text
    assert f"from a teacher of {100 * large.test_accuracy:.2f} %" in " ".join(text.split())
    assert runpy.run_path(str(ROOT / "benchmarks" / "front.py"))["table"]() in text


def test_the_comparison_of_five_epochs_is_made_of_the_records():
    folder = ROOT / "results" / "cifar10"
    table = markdown(summarize(read_results(folder), read_speeds(folder)))
    assert table in (ROOT / "docs" / "comparisons.md").read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:[^\" >]*)")
    for page in tmp_path.rglob("*.html"):
        foreign = [url for url in loads.findall(page.read_text(encoding="utf-8")) if SITE not in url]
        assert not foreign, f"{page.name}: {foreign}"


def test_every_public_name_is_in_the_reference_with_an_example():
    shown = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    for name in [*pc.__all__, "shrink", "from_pretrained", "push_to_hub"]:
        value = getattr(pc, name)
        if name not in ("METHODS", "__version__"):
            assert re.search(rf"^::: pocketcnn\.[\w.]*\b{name}$", shown, re.MULTILINE), name
            assert ">>> " in value.__doc__, f"{name} has no example"


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
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == set(pc.METHODS)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for target in re.findall(rf"{FILES}([^)#\"]+)", text):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_times(path, monkeypatch):
    source = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    script = importlib.util.module_from_spec(source)
    monkeypatch.setitem(sys.modules, source.name, script)
    source.loader.exec_module(script)
    assert f"python benchmarks/{path.name}" in script.__doc__
