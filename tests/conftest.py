"""Fixtures of all tests. Shapes in signatures are checked, golden files can be rewritten, the user's cache is not used.

Tests of other people's nets are skipped if timm or torchvision is missing, unless POCKETCNN_NETS names their folder.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

# Installed before the first import of these packages, so that each call in a test is checked against its shapes.
install_import_hook(["pocketcnn.numerics", "pocketcnn.methods", "pocketcnn.models"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from the current output")
    parser.addoption("--kills", type=int, default=3, help="number of times that the test of resuming kills its run")


def pytest_configure(config):
    config.addinivalue_line("markers", "golden: compares with a file in tests/golden")
    torch.set_num_threads(1)  # two workers share two cores
    os.environ["COLUMNS"] = "100"


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def unchecked_shapes():
    """Turns the checks of shapes off for a test, because the compiler and the exporter cannot trace them."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def golden(request):
    """Function that compares a text with a golden file, or rewrites the file under --update-golden."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} differs; rewrite it with make golden and read the diff"
        )

    return check


@pytest.fixture
def shared_data():
    """Folder of real data sets beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets in ../shared/data are not on this machine")
    return SHARED


@pytest.fixture
def one_round(monkeypatch):
    """Nets are timed in one round of turns, where the times do not matter."""
    from pocketcnn.experiments.speeds import measure_speeds

    monkeypatch.setitem(measure_speeds.__kwdefaults__, "rounds", 1)


@pytest.fixture
def lowrank(monkeypatch):
    """A sixth method, registered for the length of a test."""
    from lowrank import LOW_RANK
    from pocketcnn.methods import METHODS

    monkeypatch.setitem(METHODS, LOW_RANK.name, LOW_RANK)
    return LOW_RANK


@pytest.fixture(scope="session")
def torchvision():
    return _other_library("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision):
    return _other_library("timm")


def _other_library(name):
    """Imports a library of nets. If that fails, the test is skipped; with POCKETCNN_NETS set it fails."""
    import foreign

    try:
        return foreign.import_library(name)
    except Exception as error:  # a library made for another torch may raise anything
        if "POCKETCNN_NETS" in os.environ:
            raise
        pytest.skip(f"{name} cannot be imported ({type(error).__name__}: {error})")


@pytest.fixture(scope="session")
def digits():
    from pocketcnn.data import load

    return load("digits")


@pytest.fixture(scope="session")
def few(digits):
    """96 training, 40 validation and 50 test images of the digits."""
    import dataclasses

    from pocketcnn.data import Images

    def first(split: Images, count: int) -> Images:
        return Images(split.images[:count], split.labels[:count])

    return dataclasses.replace(
        digits, train=first(digits.train, 96), validation=first(digits.validation, 40), test=first(digits.test, 50)
    )
