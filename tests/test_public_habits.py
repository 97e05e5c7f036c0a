"""What a visitor of the repository relies on: workflows, issue forms, citation, and the pages beside the README."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import pocketcnn as pc

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github" / "actions").rglob("action.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    """The steps of a workflow's jobs, or those of an action."""
    content = read(path)
    jobs = content["jobs"].values() if "jobs" in content else [content["runs"]]
    return [step for job in jobs for step in job["steps"]]


def commands(path):
    return "\n".join(step.get("run", "") for step in steps(path))


def matrix(job):
    return read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"][job]["strategy"]["matrix"]["include"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_parse(path):
    assert isinstance(read(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_only_read_and_end_by_themselves(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name


@pytest.mark.parametrize("path", WORKFLOWS + ACTIONS, ids=lambda path: path.relative_to(ROOT / ".github").as_posix())
def test_steps_use_what_exists(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", commands(path))) <= targets
    for used in (step["uses"] for step in steps(path) if "uses" in step):
        if used.startswith("./"):
            assert (ROOT / used / "action.yml").is_file(), used
        else:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", used), f"{used}: an official action, of one major version"


def test_folders_that_are_tested_elsewhere_exist():
    named = re.search(r"^pytest (.*)", commands(ROOT / ".github" / "workflows" / "tests.yml"), re.MULTILINE)[1]
    words = [word for line in [named, *(row["but"] for row in matrix("elsewhere"))] for word in shlex.split(line)]
    paths = [word for word in words if word.startswith("tests/")]
    assert len(paths) > 1
    for path in paths:
        assert (ROOT / path).exists(), path


def test_pythons_are_those_of_the_project():
    pythons = {row["python"] for row in matrix("linux")}
    assert all(python in SpecifierSet(PROJECT["requires-python"]) for python in pythons)
    named = (re.fullmatch(r"Programming Language :: Python :: (\d\.\d+)", text) for text in PROJECT["classifiers"])
    assert pythons == {found[1] for found in named if found}


def test_the_oldest_torch_and_the_newest_are_tested():
    lowest = next(Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "torch").specifier
    assert {row["torch"] for row in matrix("linux")} == {"torch", f"torch{lowest}".replace(">=", "==") + ".0"}


def test_the_citation_is_of_this_version():
    citation = read(ROOT / "CITATION.cff")
    assert str(citation["version"]) == pc.__version__
    assert citation["license"] == PROJECT["license"]
    assert {f"The method {method}." for method in pc.METHODS} == {
        reference["notes"] for reference in citation["references"]
    }


def test_fields_of_a_form_have_names_of_their_own():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        names = [field["id"] for field in read(path).get("body", []) if field["type"] != "markdown"]
        assert len(names) == len(set(names)), path.name


@pytest.mark.parametrize(
    "name", ["SECURITY.md", "CODE_OF_CONDUCT.md", "RELEASING.md", ".github/PULL_REQUEST_TEMPLATE.md"]
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
