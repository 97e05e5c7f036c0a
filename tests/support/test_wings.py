import sys

import pytest

from pocketcnn.support.wings import part_of


@pytest.fixture
def wing(tmp_path, monkeypatch):
    """A package of two files: one that imports, and one that needs a module which does not exist."""
    folder = tmp_path / "wing_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "ring.py").write_text("TURNS = 3\n")
    (folder / "pde.py").write_text("import no_module_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_the_file_of_a_method_is_imported(wing):
    assert part_of(wing, "ring").TURNS == 3


def test_a_method_without_a_file_has_no_part(wing):
    assert part_of(wing, "puppet") is None


def test_errors_inside_a_file_are_not_hidden(wing):
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_module_of_this_name'"):
        part_of(wing, "pde")


def test_a_wing_that_does_not_exist_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_wing_of_this_name'"):
        part_of("no_wing_of_this_name", "ring")
