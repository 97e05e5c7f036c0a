"""The house as docs/architecture.md draws it: wings, arrows, sizes. Read from the sources, nothing is run."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pocketcnn as pc

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pocketcnn"
FILES = sorted(SOURCE.rglob("*.py"))

# Lines like `methods  one file for each method  <- kernels, numerics`, from the lowest wing to the highest.
_LINES = re.search(
    r"## What may import what\n.*?```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL
)
ARROWS = {
    line.split()[0]: set(filter(None, line.partition("<-")[2].replace(" ", "").split(",")))
    for line in _LINES[1].strip().splitlines()
}
LAZY = {**pc._NAMES, **pc._NAMES_OF_EXTRAS, **pc._MODULES}
OPEN = {"errors", "support"}
CORE = {
    "torch",
    "msgspec",
    "numpy",
    "safetensors",
    "jaxtyping",
}  # and numba with its llvmlite, in the compiled kernels only
OPTIONAL = {
    "kernels": {"numba", "llvmlite"},
    "experiments": {"numba"},
    "train": {"lightning", "torchmetrics"},
    "cli": {"tyro", "rich"},
    "zoo": {"tyro"},
}
# Loops that numba compiles from one file: its cache on disk looks only at the file that a function is in.
LONG_FILES = {"kernels/cpu_solver_loops.py"}
LONG_FUNCTIONS = {"kernels/cpu_solver_loops.py:_collect"}  # one loop over pixels, whose sums stay in registers


def name_of(path):
    return path.relative_to(SOURCE).as_posix()


def wing_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path):
    """Each import as (module, name or None)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def file_of(module, name=None):
    """The file that an import of the package reads, a lazy name of its root included; None for other packages."""
    if module.split(".")[0] != "pocketcnn":
        return None
    if module == "pocketcnn" and name in LAZY:
        module, name = LAZY[name], None
    place = SOURCE.joinpath(*module.split(".")[1:])
    for found in ([place / name] if name else []) + [place]:
        for file in (found.with_suffix(".py"), found / "__init__.py"):
            if file.is_file() and (file != SOURCE.with_suffix(".py")):
                return file
    raise AssertionError(f"no file for {module}.{name}")


def arrows():
    """Which file imports which."""
    return {path: {file for found in imports(path) if (file := file_of(*found))} - {path} for path in FILES}


INSIDE = [path for path in FILES if wing_of(path) not in {"__init__", "__main__"}]


def test_the_root_holds_the_wings():
    entries = {path.name for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__.py", "__main__.py", "py.typed", "errors.py", *(ARROWS.keys() - {"errors"})}


@pytest.mark.parametrize("path", INSIDE, ids=name_of)
def test_a_wing_imports_what_the_architecture_says(path):
    wing = wing_of(path)
    allowed = ARROWS[wing] | OPEN | {wing}
    for module, name in imports(path):
        top = module.split(".")[0]
        if top == "pocketcnn":
            if (file := file_of(module, name)) != SOURCE / "__init__.py":
                assert wing_of(file) in allowed, f"{wing} must not import {wing_of(file)}"
            else:
                assert wing == "cli", "only the command line takes the package whole, as a user does"
        elif top not in sys.stdlib_module_names:
            assert top in CORE | OPTIONAL.get(wing, set()), f"{wing} must not import {module}"


def test_every_arrow_of_the_architecture_is_there_and_points_down():
    used = {wing: set() for wing in ARROWS}
    for path, files in arrows().items():
        if path in INSIDE:
            used[wing_of(path)] |= {wing_of(file) for file in files} - {wing_of(path), "__init__"}
    order = list(ARROWS)
    for wing, below in ARROWS.items():
        assert used[wing] - OPEN == below - OPEN, wing
        assert all(order.index(other) < order.index(wing) for other in below), wing


def test_no_circle_of_files():
    graph, state, trail = arrows(), {}, []

    def visit(path):
        if state.get(path) == "done":
            return
        assert path not in trail, " -> ".join(map(name_of, [*trail[trail.index(path) :], path]))
        trail.append(path)
        for other in sorted(graph[path]):
            visit(other)
        trail.pop()
        state[path] = "done"

    for path in FILES:
        visit(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_private_name_of_another_file(path):
    for module, name in imports(path):
        if file_of(module) is not None and name and name.startswith("_") and not name.startswith("__"):
            assert file_of(module, name) != file_of(module), f"{module}.{name}"  # a private module is no private name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    if name_of(path) not in LONG_FILES:
        assert len(text.splitlines()) <= 550
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            said = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            is_long = node.end_lineno - node.lineno + 1 - said > 60
            assert is_long == (f"{name_of(path)}:{node.name}" in LONG_FUNCTIONS), node.name


def test_only_the_compiled_kernels_import_numba():
    """They are imported when a net first needs them; what measures the machine's limits runs by itself."""
    allowed = {"_lanes", "_routines", "_threads", "cpu_involution", "cpu_solver", "cpu_solver_loops"}
    for path in FILES:
        if {"numba", "llvmlite"} & {module.split(".")[0] for module, _ in imports(path)}:
            where = name_of(path)
            assert where == "experiments/bench/limits.py" or (where.startswith("kernels/") and path.stem in allowed)


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

    assert set(dir(pc)) == {*pc.__all__, *pc._MODULES, *pc._NAMES_OF_EXTRAS}
    for name in pc.__all__:
        assert getattr(pc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pc.nothing  # noqa: B018
