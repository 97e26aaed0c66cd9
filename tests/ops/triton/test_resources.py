"""Every kernel compiled for absent devices: no spills, and no more registers and memory than a table says.

The table resources.json holds [registers a thread, bytes of shared memory] of each kind of launch:
``python -m tests.ops.triton.compiling > tests/ops/triton/resources.json``. It is that of one version of Triton.
"""

import json
import os
from pathlib import Path

import pytest

from rohydr_fast.ops.triton import status

VERSION = "3.7.1"
TABLE = json.loads((Path(__file__).parent / "resources.json").read_text(encoding="utf-8"))
WITHOUT_PRODUCTS = ("reverse_step_kernel",)

found, reason = status.installed()
pytestmark = [
    pytest.mark.skipif(found != VERSION, reason=reason or f"the table is that of Triton {VERSION}, not of {found}"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"),
]


@pytest.mark.parametrize("name", TABLE)
def test_no_spills_and_no_more_registers_and_memory_than_the_table(name, monkeypatch, tmp_path):
    from .compiling import TARGETS, compiled, network_launches

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (target,) = (target for target in TARGETS if target.name() == name)
    launches = network_launches(monkeypatch, target)
    assert set(launches) == set(TABLE[name])
    wrong = []
    for kind, launch in launches.items():
        took, (registers, shared) = compiled(launch, target.capability), TABLE[name][kind]
        if took.stack or took.local or took.spills:
            wrong.append(f"{kind}: spills registers, {took}")
        if took.registers > registers or took.shared > shared:
            wrong.append(f"{kind}: {took.registers} registers and {took.shared} bytes, at most {registers}, {shared}")
        has_products = kind.split()[0] not in WITHOUT_PRODUCTS and "bfloat16" in name
        if has_products != (took.tensor_core > 0):
            wrong.append(f"{kind}: {took.tensor_core} tensor core instructions")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_kernel_for_both_architectures():
    from rohydr_fast.ops.triton import attention, linear, linear_backward, step

    modules = (attention, linear, linear_backward, step)
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    for architecture in ("sm_80", "sm_90"):
        kinds = {kind.split()[0] for name, rows in TABLE.items() if architecture in name for kind in rows}
        assert kinds == kernels
