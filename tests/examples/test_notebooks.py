"""The notebooks: their scripts run, and the outputs that are kept are of these scripts."""

import json
import re
import runpy
from pathlib import Path

import pytest

from pocketcnn.methods import METHODS

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("0*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_with_outputs(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    kinds = {"# %% [markdown]": "markdown", "# %%": "code"}
    _, *parts = re.split(r"^(# %%(?: \[markdown\])?)\n", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cells = list(zip(parts[::2], parts[1::2], strict=True))
    assert [kinds[mark] for mark, _ in cells] == [cell["cell_type"] for cell in notebook["cells"]]
    for (mark, source), cell in zip(cells, notebook["cells"], strict=True):
        text = re.sub(r"^# ?", "", source, flags=re.MULTILINE) if kinds[mark] == "markdown" else source
        assert "".join(cell["source"]).strip() == text.strip()
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert outputs, "run make notebooks"
    assert all(output["output_type"] != "error" for output in outputs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_its_script_runs(script, monkeypatch, tmp_path, unchecked_shapes):
    import logging

    monkeypatch.chdir(tmp_path)
    before = dict(METHODS)
    try:
        runpy.run_path(str(script))
    finally:
        logging.disable(logging.NOTSET)
        METHODS.clear()
        METHODS.update(before)
