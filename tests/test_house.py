"""The arrows of docs/architecture.md: which part may import which. Read from the sources, nothing is run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pocketcnn"

# Part -> the parts of the package it may import; those in OPEN are open to all.
ARROWS = {
    "checkpoint": {"cost", "data", "models", "surgery"},
    "cli": {
        "checkpoint",
        "cost",
        "data",
        "experiments",
        "export",
        "hub",
        "methods",
        "models",
        "pictures",
        "report",
        "train",
        "zoo",
    },
    "cost": set(),
    "data": set(),
    "experiments": {
        "checkpoint",
        "cost",
        "data",
        "kernels",
        "methods",
        "models",
        "numerics",
        "pictures",
        "report",
        "surgery",
        "train",
    },
    "export": {"cost", "methods", "numerics", "surgery"},
    "hub": {"checkpoint", "data", "methods", "models", "surgery", "zoo"},
    "kernels": {"numerics"},
    "methods": {"kernels", "numerics"},
    "models": {"methods", "surgery"},
    "numerics": set(),
    "pictures": {"cost", "methods", "numerics"},
    "report": {"methods"},
    "surgery": {"cost", "methods"},
    "train": {"checkpoint", "cost", "data", "methods", "models", "surgery"},
    "zoo": {"checkpoint", "cost", "data", "models", "train"},
}
OPEN = {"errors", "support"}
CORE = {"torch", "numpy", "safetensors", "jaxtyping"}  # numba too, and what it is made of, in the compiled kernels only
OPTIONAL = {
    "kernels": {"numba", "llvmlite"},
    "experiments": {"numba"},
    "train": {"lightning", "torchmetrics"},
    "data": {"PIL"},
    "report": {"matplotlib", "jinja2"},
    "cli": {"tyro", "rich"},
    "zoo": {"tyro"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "pocketcnn":
                yield from (f"pocketcnn.{alias.name}" for alias in node.names)
            else:
                yield node.module


def parts():
    for path in sorted(SOURCE.rglob("*.py")):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if part not in {"__init__", "__main__", *OPEN}:
            yield path, part


@pytest.mark.parametrize(("path", "part"), list(parts()), ids=lambda value: str(value).split("pocketcnn/")[-1])
def test_arrows_go_one_way(path, part):
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "pocketcnn":
            imported = rest.split(".")[0]
            if imported == "" or imported == part or imported in OPEN:
                continue
            if part == "cli" and imported == "conf":
                continue
            assert imported in ARROWS[part], f"{part} must not import {imported}"
        elif top not in sys.stdlib_module_names:
            assert top in CORE | OPTIONAL.get(part, set()), f"{part} must not import {name}"


def test_only_the_compiled_kernels_import_numba():
    """They are imported when a net first needs them; what measures the machine's limits is run by itself."""
    for path, _ in parts():
        if {"numba", "llvmlite"} & {name.partition(".")[0] for name in imports(path)}:
            name = path.relative_to(SOURCE).as_posix()
            assert name.startswith("kernels/cpu") or name in {
                "kernels/_lanes.py",
                "kernels/_threads.py",
                "experiments/bench/limits.py",
            }


def test_importing_the_package_and_asking_for_help_costs_no_torch():
    code = "import sys, pocketcnn, pocketcnn.cli; pocketcnn.cli._overview(); print(sorted({'torch', 'tyro', 'numpy', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_core_does_without_the_extras():
    """What `pip install pocketcnn` brings is enough for layers, surgery, files, counting and their verbs."""
    code = (
        "import sys\n"
        "for name in ('lightning', 'datasets', 'sklearn', 'matplotlib', 'jinja2', 'PIL', 'torchmetrics'): sys.modules[name] = None\n"
        "import pocketcnn as pc, pocketcnn.cli as cli\n"
        "for name in pc.__all__: getattr(pc, name)\n"
        "for words in (['models', 'resnet20'], ['measure', 'resnet20', '--method', 'ring:size=0.1', '--runs', '1'],\n"
        "              ['plan'], ['condense', '--help']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as left: assert not left.code, words\n"
        "try: cli.main(['train'])\n"
        "except SystemExit as left: print(left.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2"
    assert "MissingExtra: training needs lightning" in done.stderr
    assert "pip install 'pocketcnn[train]'" in done.stderr


def test_public_names_resolve():
    import pocketcnn as pc

    assert set(dir(pc)) == set(pc.__all__)
    for name in pc.__all__:
        assert getattr(pc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pc.nothing  # noqa: B018
