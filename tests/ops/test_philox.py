"""Noise: published known answers, agreement of the backends, independence of batch and length, refusals."""

import itertools
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rohydr_fast import _native
from rohydr_fast.errors import UsageError
from rohydr_fast.ops import philox
from rohydr_fast.ops.philox import Stream, reference
from rohydr_fast.ops.registry import explain

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
KINDS = {"bits": philox.bits, "uniform": philox.uniform, "normal": philox.normal}
needs_core = pytest.mark.skipif(not _native.status()[0], reason=_native.status()[1])
BACKENDS = ["reference", pytest.param("cpp", marks=needs_core)]

# Random123, kat_vectors, philox4x32 with 10 rounds: counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def exact_pair(r0: int, r1: int) -> tuple[float, float]:
    """Box-Muller with 50 digits, rounded to float64: nothing of numpy's or the core's mathematics is in it."""
    with localcontext() as context:
        context.prec = 50
        radius = (-2 * (Decimal((r0 >> 8) + 1) / 2**24).ln()).sqrt()
        fraction = r1 >> 8
        if fraction % 2**22 == 0:  # a quarter turn: exact
            cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][fraction >> 22]
        else:
            angle = 2 * PI * fraction / 2**24
            terms = [Decimal(1)]  # angle^n / n!
            for n in range(1, 80):
                terms.append(terms[-1] * angle / n)
            cosine = sum(term * (-1) ** i for i, term in enumerate(terms[0::2]))
            sine = sum(term * (-1) ** i for i, term in enumerate(terms[1::2]))
        return float(radius * cosine), float(radius * sine)


def ulps(values, exact) -> float:
    """Largest distance in units in the last place of float32."""
    values, exact = np.asarray(values, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    unit = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(values - exact) / unit, initial=0.0))


def box_muller(backend: str, r0: int, r1: int) -> tuple[float, float]:
    if backend == "cpp":
        return _native.load().normal_pair((r0, r1))
    return tuple(reference.box_muller(np.array([r0, r1], dtype=np.uint32)).tolist())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_published_known_answers(counter, key, result):
    assert tuple(reference.philox4x32(counter, key).tolist()) == result


@needs_core
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_published_known_answers_native(counter, key, result):
    assert _native.load().philox4x32(counter, key) == result


@pytest.mark.parametrize("backend", BACKENDS)
def test_counter_layout(backend):
    seed, sample, modality, step, stream = 0x299F31D0_A4093822, 0xABCD_12345678, 0xFE, 0xFFFFFFFF, 0x9C
    drawn = philox.bits(seed, [sample], modality=modality, step=step, stream=stream, count=12, backend=backend)
    for block in range(3):
        counter = (block, step, 0x12345678, 0xABCD | modality << 16 | stream << 24)
        words = reference.philox4x32(counter, (0xA4093822, 0x299F31D0))
        assert drawn[0, 4 * block : 4 * block + 4].tolist() == words.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_known_answer_through_the_public_functions(backend):
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    arguments = dict(stream=Stream.START, count=4, backend=backend)
    assert philox.bits(0, [0], **arguments).tolist() == [words]
    assert philox.uniform(0, [0], **arguments).tolist() == [[(w >> 8) / 2**24 for w in words]]
    # 50-digit values of Box-Muller on these words
    exact = [0.9911374751458975, -0.924662780354433, -0.6176090549848544, -0.4820683472644963]
    assert ulps(philox.normal(0, [0], **arguments)[0], exact) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_normals_match_50_digit_arithmetic(backend):
    request = dict(modality=1, step=7, stream=Stream.STEP, count=100, backend=backend)
    words = philox.bits(1234, [5, 2**48 - 1], **request).reshape(-1, 2).tolist()
    exact = [exact_pair(r0, r1) for r0, r1 in words]
    assert ulps(philox.normal(1234, [5, 2**48 - 1], **request).reshape(-1, 2), exact) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("r1", [k * 2**29 + d for k in range(8) for d in (0, 256)] + [2**32 - 1])
def test_normals_at_eighth_turns_and_beside_them(backend, r1):
    for r0 in (0, 255, 0x80000000, 0xB504F300, 0xFFFFFD00, 0xFFFFFE00):
        assert ulps(box_muller(backend, r0, r1), exact_pair(r0, r1)) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_radii(backend):
    assert box_muller(backend, 0xFFFFFFFF, 0) == (0.0, 0.0)  # u1 = 1
    largest, zero = box_muller(backend, 0, 0)  # u1 = 2**-24
    assert ulps([largest], [5.768107546403532]) <= 1 and zero == 0.0


@needs_core
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(0, 2**48 - 1), max_size=5),
    modality=st.integers(0, 255),
    step=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 255),
    count=st.integers(0, 41),
)
def test_backends_agree(seed, ids, modality, step, stream, count):
    drawn = {
        (kind, backend): draw(
            seed, ids, modality=modality, step=step, stream=stream, count=count, backend=backend
        ).numpy()
        for (kind, draw), backend in itertools.product(KINDS.items(), ("reference", "cpp"))
    }
    for (kind, _), numbers in drawn.items():
        assert numbers.shape == (len(ids), count)
        assert numbers.dtype == (np.int64 if kind == "bits" else np.float32)
        assert np.isfinite(numbers).all()
    assert np.array_equal(drawn["bits", "reference"], drawn["bits", "cpp"])
    assert np.array_equal(drawn["uniform", "reference"], drawn["uniform", "cpp"])
    assert ulps(drawn["normal", "cpp"], drawn["normal", "reference"]) <= 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    count=st.integers(0, 30),
    longer=st.integers(0, 9),
)
def test_batch_split_and_length_change_no_number(kind, backend, ids, cut, count, longer):
    request = dict(modality=2, step=3, stream=Stream.FORWARD, backend=backend)
    whole = KINDS[kind](99, ids, count=count, **request)
    parts = [KINDS[kind](99, part, count=count, **request) for part in (ids[:cut], ids[cut:])]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, KINDS[kind](99, ids, count=count + longer, **request)[:, :count])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_key_gives_other_numbers(backend):
    base = dict(seed=1, sample_ids=[1], modality=0, step=0, stream=0)
    changes = [
        {},
        {"seed": 2},
        {"seed": 1 + 2**32},
        {"sample_ids": [2]},
        {"sample_ids": [1 + 2**32]},
        {"sample_ids": [1 + 2**47]},
        {"modality": 1},
        {"step": 1},
        {"step": 2**31},
        {"stream": 1},
    ]
    rows = [tuple(philox.bits(**{**base, **change}, count=64, backend=backend)[0].tolist()) for change in changes]
    shared = [len(set(a) & set(b)) for a, b in itertools.combinations(rows, 2)]
    assert max(shared) == 0  # by chance one word would meet in 4 of 100,000 runs
    assert len(set(Stream)) == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_distributions_of_a_million_draws(backend):
    ids = range(1000)
    z = philox.normal(2024, ids, stream=Stream.STEP, count=1000, backend=backend).double().numpy().ravel()
    u = philox.uniform(2024, ids, stream=Stream.TIME, count=1000, backend=backend).double().numpy().ravel()
    n = z.size
    assert abs(z.mean()) < 4 / n**0.5 and abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(z)) < 4 * (6 / n) ** 0.5 and abs(stats.kurtosis(z)) < 4 * (24 / n) ** 0.5
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert 0 <= u.min() and u.max() < 1
    neighbours = [np.corrcoef(z[:-lag], z[lag:])[0, 1] for lag in (1, 2, 3, 4, 1000)]
    assert max(map(abs, neighbours)) < 4 / n**0.5


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda ids: torch.tensor(ids * 2)[::2]])
def test_any_sequence_of_ids_is_read_and_not_written(make):
    plain = [3, 3, 70000]
    ids = make(plain)
    expected = philox.bits(5, plain, stream=0, count=6)
    if isinstance(ids, torch.Tensor) and not ids.is_contiguous():
        expected = philox.bits(5, (plain * 2)[::2], stream=0, count=6)
    before = list(ids)
    assert torch.equal(philox.bits(5, ids, stream=0, count=6), expected)
    assert list(ids) == before


def test_read_only_and_narrow_ids_are_accepted():
    ids = np.array([1, 200], dtype=np.uint8)
    ids.flags.writeable = False
    assert torch.equal(philox.normal(5, ids, stream=0, count=5), philox.normal(5, [1, 200], stream=0, count=5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("step", -1),
        ("step", 2**32),
        ("modality", 256),
        ("modality", "a"),
        ("stream", 256),
        ("stream", None),
        ("count", -1),
        ("count", 2**34 + 1),
        ("sample_ids", [2**48]),
        ("sample_ids", [0, -1]),
        ("sample_ids", np.array([2**63], dtype=np.uint64)),
        ("sample_ids", [2**70]),
        ("sample_ids", [0.5]),
        ("sample_ids", [[1]]),
        ("sample_ids", 3),
    ],
)
def test_wrong_argument_is_named(name, value, backend):
    good = {"seed": 0, "sample_ids": [0], "modality": 0, "step": 0, "stream": 0, "count": 4}
    with pytest.raises(UsageError, match=f"philox: {name} must be "):
        philox.normal(**{**good, name: value}, backend=backend)


def test_derive_seed_is_the_philox_block_of_its_keys():
    assert philox.derive_seed(0) == 0xE169C58D_6627E8D5
    assert philox.derive_seed(0x299F31D0_A4093822, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344) == (
        0x94FDCCEB_D16CFE09
    )
    seeds = {philox.derive_seed(7, *keys) for keys in itertools.product(range(5), range(5))}
    assert len(seeds) == 25 and all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize(("arguments", "name"), [((-1,), "seed"), ((0, 2**32), "keys"), ((0, 1, 2, 3, 4, 5), "keys")])
def test_derive_seed_refuses(arguments, name):
    with pytest.raises(UsageError, match=f"derive_seed: {name} must be "):
        philox.derive_seed(*arguments)


@needs_core
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("step", 2**32),
        ("modality", 256),
        ("stream", "0"),
        ("sample_ids", [1, 2]),
        ("sample_ids", np.array([1, 2], dtype=np.int32)),
        ("sample_ids", np.array([1, 2**48])),
        ("sample_ids", np.array([[1, 2]])),
        ("out", np.zeros((2, 3))),
        ("out", np.zeros((3, 3), dtype=np.float32)),
        ("out", np.zeros((3, 2), dtype=np.float32).T),
        ("out", np.broadcast_to(np.float32(0), (2, 3))),
        ("out", bytearray(24)),
    ],
)
def test_native_core_refuses_what_it_cannot_read_or_fill(name, value):
    good = dict(
        seed=0, sample_ids=np.array([1, 2]), modality=0, step=0, stream=0, out=np.zeros((2, 3), dtype=np.float32)
    )
    with pytest.raises(ValueError, match=f"philox: {name} must "):
        _native.load().philox_normal(**{**good, name: value})


@pytest.mark.gpu
def test_cuda_kernel_draws_the_numbers_of_the_core():
    verdict = {name: (usable, reason) for name, usable, reason in explain("philox")}["cuda"]
    if not verdict[0]:
        pytest.skip(verdict[1])
    ids = [0, 5, 2**48 - 1]
    for kind, draw in KINDS.items():
        for count in (0, 1, 4097):
            cuda = draw(77, ids, modality=2, step=9, stream=Stream.STEP, count=count, backend="cuda").cpu()
            core = draw(77, ids, modality=2, step=9, stream=Stream.STEP, count=count, backend="cpp")
            assert torch.equal(cuda, core), kind  # the same source without contraction: equal bits, normals too


@pytest.mark.gpu
def test_normals_lie_on_the_device_that_was_asked_for():
    on_gpu = philox.normal(77, torch.tensor([1, 2]), stream=Stream.START, count=9, device="cuda")
    assert on_gpu.is_cuda
    assert ulps(on_gpu.cpu(), philox.normal(77, [1, 2], stream=Stream.START, count=9, backend="reference")) <= 4
