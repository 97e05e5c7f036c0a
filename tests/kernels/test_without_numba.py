"""What importing costs, and what happens where numba is missing or broken."""

import os
import subprocess
import sys

import pytest
import torch

NETS = """
import warnings
import torch
import pocketcnn as pc

def results():
    torch.manual_seed(0)
    found = []
    for method in ("pde", "involution", "condconv", "ring"):
        net = pc.condense(pc.create_model("resnet20", width=0.5, num_classes=3), method).double()
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        y = net(x)
        y.square().sum().backward()
        with torch.no_grad():
            served = net.eval()(x)
        found += [y.detach(), served, x.grad, *(p.grad for p in net.parameters()), *net.buffers()]
    return found
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def expected():
    names: dict = {}
    exec(NETS, names)
    return names["results"]()


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_nets_do_without_numba(broken, expected, tmp_path):
    """Slower, and said once, whichever layer asks first."""
    package = tmp_path / "numba"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('built for another machine')")
    hidden = "" if broken else "import sys\nsys.modules['numba'] = None\n"
    code = (
        f"{hidden}{NETS}\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    found = results()\n"
        "    results()\n"
        f"torch.save(found, {str(tmp_path / 'found.pt')!r})\n"
        "for warning in said: print(warning.category.__name__, warning.message)\n"
    )
    (line,) = run(code, **({"PYTHONPATH": str(tmp_path)} if broken else {}))
    reason = "SystemError: built for another machine" if broken else "ModuleNotFoundError: import of numba halted"
    assert line.startswith(f"RuntimeWarning numba cannot be used ({reason}")
    assert line.endswith("run several times slower; pip install numba")
    for ours, theirs in zip(torch.load(tmp_path / "found.pt"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_importing_costs_no_numba_and_compiles_nothing():
    """Half a second, and half a minute: only who solves an equation on a CPU pays for them."""
    code = (
        "import sys, pocketcnn, pocketcnn.kernels, pocketcnn.methods.pde, pocketcnn.methods.involution\n"
        "print(sorted({'numba', 'llvmlite'} & set(sys.modules)))\n"
        "import torch\n"
        "with torch.device('meta'): pocketcnn.methods.pde.GlobalLayer(4)(torch.empty(2, 4, 5, 5))\n"
        "print(sorted({'numba', 'llvmlite'} & set(sys.modules)))\n"
        "assert pocketcnn.kernels.compiled(torch.empty(1))\n"
        "from numba.core.dispatcher import Dispatcher\n"
        "names = [name for name in sys.modules if name.startswith('pocketcnn.kernels.')]\n"
        "found = [f for name in names for f in vars(sys.modules[name]).values() if isinstance(f, Dispatcher)]\n"
        "print(len(found) > 20, sum(len(f.signatures) for f in found))\n"
    )
    assert run(code) == ["[]", "[]", "True 0"]
