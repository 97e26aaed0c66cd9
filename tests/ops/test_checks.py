"""Every wrong argument of an operation is named before anything is computed, by every backend in the same sentence."""

import re

import pytest
import torch

from rohydr_fast.errors import UsageError
from rohydr_fast.ops.cross_attention import cross_attention
from rohydr_fast.ops.denoiser_block import denoiser_block
from rohydr_fast.ops.registry import select
from rohydr_fast.ops.reverse_loop import reverse_loop, reverse_loops
from tests.native_spy import spy_on_core
from tests.ops.inputs import attention_inputs, block_inputs, loop_arguments, make_chain

pytestmark = pytest.mark.usefixtures("one_thread")

ZEROS = torch.zeros

ATTENTION = [
    ("q", ZEROS(2, 3), "q must be (B, T, W) of a float dtype, got torch.float32 with shape (2, 3)."),
    ("q", ZEROS(3, 5, 16, dtype=torch.int64), "q must be (B, T, W) of a float dtype, got torch.int64"),
    ("k", ZEROS(3, 7, 8), "k must have shape (3, any, 16), got (3, 7, 8)."),
    ("k", ZEROS(2, 7, 16), "k must have shape (3, any, 16), got (2, 7, 16)."),
    ("v", ZEROS(3, 6, 16), "v must have shape (3, 7, 16), got (3, 6, 16)."),
    ("v", ZEROS(3, 7, 16).double(), "v must be torch.float32 on cpu, got torch.float64 on cpu."),
    ("v", ZEROS(3, 7, 16, device="meta"), "v must be torch.float32 on cpu, got torch.float32 on meta."),
    ("num_heads", 3, "num_heads must divide the width 16, got 3."),
    ("num_heads", 0, "num_heads must divide the width 16, got 0."),
    ("num_heads", -4, "num_heads must divide the width 16, got -4."),
    ("key_mask", ZEROS(3, 7), "key_mask must be bool with shape (3, 7), got torch.float32 with shape (3, 7)."),
    ("key_mask", ZEROS(3, 6, dtype=torch.bool), "key_mask must be bool with shape (3, 7), got torch.bool"),
    ("key_mask", ZEROS(3, 7, dtype=torch.bool, device="meta"), "key_mask must be on cpu, got meta."),
]

BLOCK = [
    ("x", ZEROS(3, 16), "x must be (B, T, W) of a float dtype"),
    ("modulation", ZEROS(8, 16), "modulation must have shape (9, 16), got (8, 16)."),
    ("modulation", ZEROS(2, 9, 16), "modulation must have shape (3, 9, 16), got (2, 9, 16)."),
    ("modulation", ZEROS(9, 16).double(), "modulation must be torch.float32 on cpu"),
    ("cond_kv", ZEROS(2, 3, 16), "cond_kv must have shape (2, 3, any, 16), got (2, 3, 16)."),
    ("cond_kv", ZEROS(1, 3, 7, 16), "cond_kv must have shape (2, 3, any, 16)"),
    ("cond_kv", ZEROS(2, 3, 0, 16), "the condition must have at least one key, got 0."),
    ("num_heads", 5, "num_heads must divide the width 16, got 5."),
    ("token_mask", ZEROS(3, 4, dtype=torch.bool), "token_mask must be bool with shape (3, 5)"),
    ("key_mask", ZEROS(3, 5, dtype=torch.bool), "key_mask must be bool with shape (3, 7)"),
]

BLOCK_WEIGHTS = [
    ("qkv_weight", ZEROS(16, 16), "qkv_weight must have shape (48, 16), got (16, 16)."),
    ("qkv_bias", ZEROS(47), "qkv_bias must have shape (48,), got (47,)."),
    ("self_out_weight", ZEROS(16, 15), "self_out_weight must have shape (16, 16)"),
    ("self_out_bias", ZEROS(1, 16), "self_out_bias must have shape (16,), got (1, 16)."),
    ("q_weight", ZEROS(16), "q_weight must have shape (16, 16), got (16,)."),
    ("q_bias", ZEROS(8), "q_bias must have shape (16,)"),
    ("cross_out_weight", ZEROS(16, 16).half(), "cross_out_weight must be torch.float32 or torch.bfloat16 on cpu"),
    ("cross_out_bias", ZEROS(16, device="meta"), "cross_out_bias must be torch.float32 or torch.bfloat16 on cpu"),
    ("fc1_weight", ZEROS(64, 8), "fc1_weight must have shape (64, 16), got (64, 8)."),
    ("fc1_bias", ZEROS(1, 64), "fc1_bias must have shape (any,), got (1, 64)."),
    ("fc1_bias", ZEROS(63), "fc1_weight must have shape (63, 16), got (64, 16)."),
    ("fc2_weight", ZEROS(16, 60), "fc2_weight must have shape (16, 64), got (16, 60)."),
    ("fc2_bias", ZEROS(16).double(), "fc2_bias must be torch.float32 or torch.bfloat16 on cpu, got torch.float64"),
]

LOOP = [
    ("x", ZEROS(3, 5), "x must be (B, T, C) of a float dtype"),
    ("x", ZEROS(3, 5, 6, dtype=torch.int32), "x must be (B, T, C) of a float dtype, got torch.int32"),
    ("x", ZEROS(3, 5, 4), "weights.in_weight must have shape (16, 4), got (16, 6)."),
    ("position", ZEROS(4, 16), "position must have shape (5, 16), got (4, 16)."),
    ("position", ZEROS(3, 5, 16), "position must have shape (5, 16), got (3, 5, 16)."),
    ("position", ZEROS(5, 16).double(), "position must be torch.float32 on cpu"),
    ("cond_kv", ZEROS(2, 3, 7, 16), "cond_kv must be (L, 2, B, S, W), got torch.float32 with shape (2, 3, 7, 16)."),
    ("cond_kv", ZEROS(2, 2, 2, 7, 16), "cond_kv must have shape (2, 2, 3, any, 16), got (2, 2, 2, 7, 16)."),
    ("cond_kv", ZEROS(2, 2, 3, 0, 16), "the condition must have at least one key, got 0."),
    ("coefficients", ZEROS(4), "coefficients must be (K, 4) or (K, 8) of a float dtype"),
    ("coefficients", ZEROS(4, 3), "coefficients must be (K, 4) or (K, 8) of a float dtype"),
    ("coefficients", ZEROS(4, 4, dtype=torch.int64), "coefficients must be (K, 4) or (K, 8) of a float dtype"),
    ("coefficients", ZEROS(0, 4), "coefficients must have at least one step, got 0."),
    ("coefficients", ZEROS(5, 4), "modulation.blocks must have shape (5, 2, 9, 16), got (4, 2, 9, 16)."),
    ("num_heads", 3, "num_heads must divide the width 16, got 3."),
    ("token_mask", ZEROS(3, 4, dtype=torch.bool), "token_mask must be bool with shape (3, 5)"),
    ("key_mask", ZEROS(3, 7), "key_mask must be bool with shape (3, 7)"),
    ("grad_steps", -1, "grad_steps must be 0 or more, got -1."),
]

NOISE = [
    ("sample_ids", torch.arange(2), "noise.sample_ids must be an integer tensor (3,), got torch.int64 with shape"),
    ("sample_ids", torch.arange(3)[:, None], "noise.sample_ids must be an integer tensor (3,)"),
    ("sample_ids", ZEROS(3), "noise.sample_ids must be an integer tensor (3,), got torch.float32"),
    ("sample_ids", ZEROS(3, dtype=torch.bool), "noise.sample_ids must be an integer tensor (3,), got torch.bool"),
    ("sample_ids", [0, 1, 2], "noise.sample_ids must be an integer tensor (3,), got list."),
    ("sample_ids", torch.tensor([0, -1, 2]), "noise.sample_ids must be in [0, 281474976710655], got -1."),
    ("sample_ids", torch.tensor([0, 2**48, 2]), "noise.sample_ids must be in [0, 281474976710655], got 2814749"),
    ("seed", -1, "noise.seed must be an integer in [0, 18446744073709551615], got -1."),
    ("seed", 2**64, "noise.seed must be an integer in [0, 18446744073709551615], got 18446744073709551616."),
    ("seed", 1.0, "noise.seed must be an integer in [0, 18446744073709551615], got 1.0."),
    ("modality", 256, "noise.modality must be an integer in [0, 255], got 256."),
    ("modality", -1, "noise.modality must be an integer in [0, 255], got -1."),
    ("modality", "a", "noise.modality must be an integer in [0, 255], got 'a'."),
]


def by_argument(cases):
    return [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(cases)]


def refused(op: str, sentence: str):
    return pytest.raises(UsageError, match=f"^{re.escape(f'{op}: {sentence}')}.*[.]$")


@pytest.fixture(autouse=True)
def nothing_computed(monkeypatch):
    """No native call, and no reference either: its modules' functions would fail the test."""
    import rohydr_fast.ops.cross_attention.reference as attention
    import rohydr_fast.ops.denoiser_block.reference as block
    import rohydr_fast.ops.reverse_loop.reference as loop

    for module, name in ((attention, "cross_attention"), (block, "denoiser_block"), (loop, "reverse_loop")):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("the reference was called"))
    calls = spy_on_core(monkeypatch) if select("reverse_loop") == "cpp" else []
    yield
    assert calls == []


@pytest.fixture(params=["auto", "reference"])
def backend(request):
    return request.param


@pytest.mark.parametrize(("argument", "value", "sentence"), by_argument(ATTENTION))
def test_cross_attention(argument, value, sentence, backend):
    with refused("cross_attention", sentence):
        cross_attention(**{**attention_inputs(), argument: value}, backend=backend)


def test_cross_attention_without_keys(backend):
    with refused("cross_attention", "the condition must have at least one key, got 0."):
        cross_attention(**attention_inputs(keys=0, masked=False), backend=backend)


@pytest.mark.parametrize(("argument", "value", "sentence"), by_argument(BLOCK))
def test_denoiser_block(argument, value, sentence, backend):
    with refused("denoiser_block", sentence):
        denoiser_block(**{**block_inputs(), argument: value}, backend=backend)


@pytest.mark.parametrize(("argument", "value", "sentence"), by_argument(BLOCK_WEIGHTS))
def test_weights_of_a_block(argument, value, sentence, backend):
    given = block_inputs()
    given["weights"] = given["weights"]._replace(**{argument: value})
    with refused("denoiser_block", f"weights.{sentence}"):
        denoiser_block(**given, backend=backend)


def run_loop(chain, backend):
    args, options = loop_arguments(chain)
    return reverse_loop(*args, **options, backend=backend)


@pytest.mark.parametrize(("argument", "value", "sentence"), by_argument(LOOP))
def test_reverse_loop(argument, value, sentence, backend):
    with refused("reverse_loop", sentence):
        run_loop(make_chain()._replace(**{argument: value}), backend)


@pytest.mark.parametrize(("argument", "value", "sentence"), by_argument(NOISE))
def test_noise_of_a_reverse_loop(argument, value, sentence, backend):
    chain = make_chain()
    with refused("reverse_loop", sentence):
        run_loop(chain._replace(noise=chain.noise._replace(**{argument: value})), backend)


@pytest.mark.parametrize(("argument", "value", "sentence"), by_argument(BLOCK_WEIGHTS))
def test_weights_of_the_blocks_of_a_reverse_loop(argument, value, sentence, backend):
    chain = make_chain()
    blocks = (chain.weights.blocks[0], chain.weights.blocks[1]._replace(**{argument: value}))
    if argument == "fc1_bias":  # the hidden width is that of the first block
        sentence = f"fc1_bias must have shape (64,), got {tuple(value.shape)}."
    with refused("reverse_loop", f"weights.blocks[1].{sentence}"):
        run_loop(chain._replace(weights=chain.weights._replace(blocks=blocks)), backend)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("in_weight", ZEROS(16, 7), "in_weight must have shape (16, 6), got (16, 7)."),
        ("in_bias", ZEROS(6), "in_bias must have shape (16,), got (6,)."),
        ("out_weight", ZEROS(6, 16), "out_weight must have shape (12, 16), got (6, 16)."),
        ("out_bias", ZEROS(12).half(), "out_bias must be torch.float32 or torch.bfloat16 on cpu, got torch.float16"),
        ("blocks", (), "blocks must hold 2 blocks, as many as cond_kv, got 0."),
    ],
)
def test_ends_of_a_reverse_loop(name, value, sentence, backend):
    chain = make_chain()
    with refused("reverse_loop", f"weights.{sentence}"):
        run_loop(chain._replace(weights=chain.weights._replace(**{name: value})), backend)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("blocks", (4, 3, 9, 16), "blocks must have shape (4, 2, 9, 16), got (4, 3, 9, 16)."),
        ("blocks", (3, 2, 9, 16), "blocks must have shape (4, 2, 9, 16), got (3, 2, 9, 16)."),
        ("final", (4, 3, 16), "final must have shape (4, 2, 16), got (4, 3, 16)."),
    ],
)
def test_modulation_of_a_reverse_loop(name, shape, sentence, backend):
    chain = make_chain()
    with refused("reverse_loop", f"modulation.{sentence}"):
        run_loop(chain._replace(modulation=chain.modulation._replace(**{name: ZEROS(shape)})), backend)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_coefficient_that_is_not_finite(value, backend):
    chain = make_chain()
    coefficients = chain.coefficients.clone()
    coefficients[2, 1] = value
    with refused("reverse_loop", "coefficients must be finite, got ["):
        run_loop(chain._replace(coefficients=coefficients), backend)


def test_finite_coefficients_whose_sum_overflows_are_not_refused():
    from rohydr_fast.ops.checks import check_chain

    chain = make_chain()
    check_chain("reverse_loop", chain._replace(coefficients=torch.full((4, 4), 3e38)))


def test_a_wrong_chain_among_several_is_numbered(backend):
    chain = make_chain()
    with refused("reverse_loops, chain 1", "grad_steps must be 0 or more, got -2."):
        reverse_loops([chain, chain._replace(grad_steps=-2)], backend=backend)
    with refused("reverse_loops, chain 1", "x must be torch.float32 on cpu as in chain 0, got torch.float64 on cpu."):
        reverse_loops([chain, make_chain(dtype=torch.float64)], backend=backend)
