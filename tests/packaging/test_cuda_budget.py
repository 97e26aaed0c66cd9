"""Every kernel of csrc/cuda compiles without warnings and stays within csrc/cuda/budget.json.

For each kernel and architecture the table gives the most registers, barriers, and bytes of stack, spills and static
shared memory, and for each kernel the machine instructions it must have ("require"). None may use local memory.
"""

import json

import pytest

from tests.cuda_sim import building

from . import cuda_resources

SOURCES = sorted(building.KERNELS.glob("*.cu"))
FORBIDDEN = ("LDL", "STL")
BUDGET = building.KERNELS / "budget.json"


def breaches(table: dict, used: dict, machine_code: dict) -> list[str]:
    """One sentence for each thing that a source's part of the table does not allow."""
    found = [f"{kernel} is in the table, but not in the source. Remove it." for kernel in table.keys() - used.keys()]
    for kernel, measured in used.items():
        if kernel not in table:
            found.append(f"{kernel} is not in the table. Add: {json.dumps({kernel: measured})}")
            continue
        for architecture, values in measured.items():
            limits = table[kernel].get(architecture)
            if limits is None:
                found.append(f"{kernel} has no limits for {architecture}. Add: {json.dumps({architecture: values})}")
                continue
            found += [
                f"{kernel} on {architecture} uses {value} {field}, at most {limits[field]} are allowed."
                for field, value in values.items()
                if value > limits[field]
            ]
            counts = machine_code[kernel][architecture]
            found += [f"{kernel} on {architecture} uses local memory: {op}." for op in FORBIDDEN if counts[op]]
            required = table[kernel].get("require", [])
            found += [f"{kernel} on {architecture} has no {op}." for op in required if not counts[op]]
    return found


def measure(root, source) -> tuple[dict, dict]:
    binary, log = cuda_resources.compile_all(root, source)
    return cuda_resources.usage(log), cuda_resources.instructions(binary)


@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_kernels_stay_within_their_budget(repo_root, source):
    used, machine_code = measure(repo_root, source)
    table = json.loads(BUDGET.read_text(encoding="utf-8"))
    assert source.name in table, (
        f"{source.name} is not in the table, which says of a source without kernels that it has none"
    )
    found = breaches(table[source.name], used, machine_code)
    assert not found, "\n".join(found)
    binary, _ = cuda_resources.compile_all(repo_root, source)
    assert cuda_resources.ptx_versions(binary), "no PTX for GPUs that come later"


def test_the_table_names_no_source_that_is_gone():
    assert set(json.loads(BUDGET.read_text(encoding="utf-8"))) <= {source.name for source in SOURCES}


def test_cmake_builds_every_source(repo_root):
    text = (repo_root / "CMakeLists.txt").read_text(encoding="utf-8")
    assert not [source.name for source in SOURCES if f"csrc/cuda/{source.name}" not in text]


def test_what_breaks_the_budget_is_named(repo_root):
    used, machine_code = measure(repo_root, building.HERE / "kernels" / "bf16_matmul.cu")
    (kernel,) = used
    assert set(used[kernel]) == {"sm_80", "sm_90a"}
    good = {kernel: {"require": ["HMMA", "LDSM", "LDGSTS"], **used[kernel]}}
    assert breaches(good, used, machine_code) == []

    assert "is not in the table" in breaches({}, used, machine_code)[0]
    gone = breaches({**good, "gone": {}}, used, machine_code)
    assert gone == ["gone is in the table, but not in the source. Remove it."]
    registers = used[kernel]["sm_80"]["registers"]
    tight = {kernel: {**good[kernel], "sm_80": {**used[kernel]["sm_80"], "registers": registers - 1}}}
    limit = f"{kernel} on sm_80 uses {registers} registers, at most {registers - 1} are allowed."
    assert breaches(tight, used, machine_code) == [limit]
    half = {kernel: {"sm_80": used[kernel]["sm_80"]}}
    assert "has no limits for sm_90a" in breaches(half, used, machine_code)[0]
    strange = {kernel: {**good[kernel], "require": ["DMMA"]}}
    assert breaches(strange, used, machine_code) == [f"{kernel} on {a} has no DMMA." for a in used[kernel]]


def test_local_memory_is_found(repo_root, tmp_path):
    source = tmp_path / "indexed.cu"
    source.write_text(
        "__global__ void indexed(int* out, const int* in) {\n"
        "  int kept[16];\n"
        "  for (int i = 0; i < 16; ++i) kept[in[i] & 15] = i;\n"
        "  out[threadIdx.x] = kept[in[threadIdx.x] & 15];\n"
        "}\n"
    )
    with pytest.raises(building.CompileError, match="[Ll]ocal"):
        cuda_resources.compile_all(repo_root, source)
