"""Importing the package is cheap, silent, and loads its names when they are used."""

import subprocess
import sys

import pytest

import rohydr_fast


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["rohydr_fast", "rohydr_fast.ops.registry", "rohydr_fast.ops"])
def test_import_loads_neither_torch_nor_numpy_and_prints_nothing(module):
    done = run_python(
        f"import sys, {module}\n"
        "heavy = {'torch', 'numpy', 'rohydr_fast._C', 'jsonargparse', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_explain_and_backend_need_no_torch():
    done = run_python(
        "import sys, rohydr_fast\n"
        "with rohydr_fast.backend('reference'): print(rohydr_fast.explain('reverse_loop').selected)\n"
        "assert 'torch' not in sys.modules"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "reference\n", "")


def test_public_names_are_listed_and_unknown_ones_refused():
    assert set(rohydr_fast.__all__) <= set(dir(rohydr_fast))
    assert {"RoHyDR", "run", "sample", "explain", "backend", "__version__"} == set(rohydr_fast.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = rohydr_fast.nothing_like_this


@pytest.mark.parametrize("name", ["RoHyDR", "sample", "explain", "backend"])
def test_public_name_resolves(name):
    assert callable(getattr(rohydr_fast, name))


def test_the_names_load_without_the_compiler_and_what_it_needs():
    done = run_python(
        "import sys, rohydr_fast\n"
        "for name in rohydr_fast.__all__: getattr(rohydr_fast, name)\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'sympy', 'triton', 'rohydr_fast._C'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
