"""What the Triton backend says of itself: usable or not, and why, on machines that this one is not."""

import sys
from types import SimpleNamespace

import pytest
import torch

from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops import registry
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.registry import explain, select
from rohydr_fast.ops.triton import status
from tests.ops.inputs import block_inputs, make_chain

OPS = ("cross_attention", "denoiser_block", "denoiser", "diffusion_loss", "reverse_loop")
INTERPRETED = "on the CPU they can be interpreted, for tests, where TRITON_INTERPRET=1 is set before Python starts"


@pytest.fixture(autouse=True)
def with_triton(monkeypatch):
    monkeypatch.setattr(status, "installed", lambda: ("3.7.1", ""))
    for variable in (status.INTERPRETER, registry.VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def with_device(monkeypatch):
    monkeypatch.setattr(status, "_driver_shows_device", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def reason(op: str) -> tuple[bool, str]:
    (row,) = (row[1:] for row in explain(op) if row[0] == "triton")
    return row


@pytest.mark.parametrize("op", OPS)
def test_without_a_device(op, monkeypatch):
    monkeypatch.setattr(status, "_driver_shows_device", lambda: False)
    assert reason(op) == (False, "this machine shows no CUDA device, which the Triton kernels need")
    with pytest.raises(BackendUnavailable, match=INTERPRETED):
        select(op, "triton", device="cpu")
    with pytest.raises(BackendUnavailable, match="this machine shows no CUDA device"):
        select(op, "triton", device="cuda")


@pytest.mark.usefixtures("with_device")
@pytest.mark.parametrize("op", OPS)
def test_with_a_device_it_is_taken_for_tensors_there(op):
    assert reason(op) == (True, "Triton 3.7.1 on a CUDA device")
    facts = dict(device="cuda", dtype=torch.bfloat16, needs_grad=True, width=64, head_dims=(4, 16))
    assert select(op, **facts) == select(op, "triton", **facts) == "triton"
    assert select(op, **{**facts, "dtype": torch.float64}) == "reference"
    assert select(op, device="cpu") != "triton"


CANNOT = [
    (dict(dtype=torch.float64), "compute float32 and bfloat16, and these are float64"),
    (dict(dtype="float16"), "compute float32 and bfloat16, and these are float16"),
    (dict(head_dims=(16, 12)), "take heads of 4, 8, 16, 32, 64 channels, and these have 12"),
    (dict(width=513), "take at most 512 channels, and these are 513"),
    (dict(transformed=True), "do not run inside torch.func transforms"),
    (dict(device="meta"), "run tensors on a CUDA device, and these are on meta"),
]


REFUSED = [(op, *case) for op in OPS for case in CANNOT if op != "cross_attention" or "width" not in case[0]]


@pytest.mark.usefixtures("with_device")
@pytest.mark.parametrize(("op", "facts", "words"), REFUSED, ids=lambda value: str(value).split(",")[0])
def test_what_it_cannot_do_is_refused_with_the_reason(op, facts, words):
    facts = {"device": "cuda", **facts}
    with pytest.raises(BackendUnavailable, match=f"which is not: the Triton kernels {words}"):
        select(op, "triton", **facts)
    assert select(op, **facts) == "reference"


@pytest.mark.usefixtures("with_device")
def test_attention_alone_has_no_limit_of_width():
    facts = dict(device="cuda", dtype=torch.float32, width=1024, head_dims=(64,))
    assert select("cross_attention", **facts) == select("cross_attention", "triton", **facts) == "triton"


@pytest.mark.usefixtures("with_device")
def test_the_noise_has_no_kernel():
    assert reason("philox")[0] is False and "has no Triton kernel of this operation" in reason("philox")[1]
    assert select("philox", device="cuda") != "triton"


@pytest.mark.usefixtures("with_device")
def test_the_conditioning_is_served_and_says_by_what():
    assert reason("conditioning") == (
        True,
        "Triton 3.7.1 on a CUDA device; this operation is PyTorch's products there",
    )
    assert select("conditioning", "triton", device="cuda", dtype="float32", needs_grad=True) == "triton"


@pytest.mark.usefixtures("with_device")
def test_a_device_that_torch_cannot_use_or_that_is_old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert reason("denoiser") == (
        False,
        "the Triton kernels need compute capability 8.0 or more, and this device has 7.5",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason("denoiser") == (False, f"torch {torch.__version__} cannot use the CUDA device")


@pytest.mark.usefixtures("with_device")
def test_the_interpreter_serves_the_cpu_alone(monkeypatch):
    monkeypatch.setenv(status.INTERPRETER, "1")
    monkeypatch.delitem(sys.modules, "rohydr_fast.ops.triton.device", raising=False)
    assert select("denoiser", "triton", device="cpu") == "triton" and select("denoiser", device="cpu") != "triton"
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET=1 makes Triton interpret its kernels"):
        select("denoiser", "triton", device="cuda")
    late = SimpleNamespace(INTERPRETED=SimpleNamespace(value=False))
    monkeypatch.setitem(sys.modules, "rohydr_fast.ops.triton.device", late)
    with pytest.raises(BackendUnavailable, match="was set after the Triton kernels had been imported"):
        select("denoiser", "triton", device="cpu")


@pytest.mark.parametrize(
    ("version", "words"),
    [(None, "Triton is not installed"), ("3.5.1", "need Triton 3.6 or more, and 3.5.1 is"), ("2.9", "and 2.9 is")],
)
def test_triton_that_is_missing_or_old(version, words, monkeypatch):
    def installed_version(package):
        if version is None:
            raise status.metadata.PackageNotFoundError(package)
        return version

    monkeypatch.undo()
    monkeypatch.setattr(status.metadata, "version", installed_version)
    status.installed.cache_clear()
    try:
        assert not reason("denoiser")[0] and words in reason("denoiser")[1]
        assert "pip install 'triton>=3.6'" in reason("denoiser")[1]
    finally:
        status.installed.cache_clear()


@pytest.mark.usefixtures("one_thread")
def test_a_call_is_refused_with_the_facts_of_its_tensors(monkeypatch):
    monkeypatch.setattr(status, "interpreted", lambda: (True, ""))
    given = block_inputs()
    with pytest.raises(BackendUnavailable, match="and these have 2"):
        denoiser_block(**{**given, "num_heads": 8}, backend="triton")
    with pytest.raises(BackendUnavailable, match="and these are float64"):
        denoiser_block(**block_inputs(dtype=torch.float64), backend="triton")
    chains = [make_chain(steps=1), make_chain(steps=1)._replace(num_heads=8)]
    from rohydr_fast.ops.reverse_loop import reverse_loops

    with pytest.raises(BackendUnavailable, match="reverse_loop: .* and these have 2"):
        reverse_loops(chains, backend="triton")
