"""The modulation of the same steps by the same layers is computed twice at most, and never taken for another one."""

import threading

import pytest
import torch

from rohydr_fast import _native
from rohydr_fast.ops.conditioning import conditioning
from rohydr_fast.ops.packing import CACHE, LAYERS
from tests.native_spy import needs_core
from tests.ops.test_conditioning import case, results

pytestmark = needs_core

BLOCKS, TABLES = 2, 3 + 2  # the first so many layers give the modulation
SIZES = dict(rows=6, inputs=5, width=4, layers=BLOCKS)


@pytest.fixture(autouse=True)
def empty_cache(one_thread):
    LAYERS.clear()
    yield
    LAYERS.clear()


def afresh(arguments: dict) -> list[torch.Tensor]:
    """The results for the same numbers in other memory, which nothing is known of."""
    copied = {name: [t.clone() for t in v] if isinstance(v, list) else v.clone() for name, v in arguments.items()}
    return results(copied, "cpp")


def is_right(arguments: dict) -> bool:
    return all(map(torch.equal, results(arguments, "cpp"), afresh(arguments)))


def kept_elements(arguments: dict) -> int:
    return LAYERS.get("conditioning", arguments["weights"] + arguments["biases"]).nbytes // 4


def elements(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def test_it_is_kept_when_the_same_steps_are_asked_for_again():
    arguments = case(**SIZES)
    blocks, final, _ = results(arguments, "cpp")
    noted = arguments["features"].numel()
    assert kept_elements(arguments) == noted
    results(arguments, "cpp")
    whole = noted + elements([blocks, final, *arguments["weights"][:TABLES], *arguments["biases"][:TABLES]])
    assert kept_elements(arguments) == whole
    results(arguments, "cpp")
    assert kept_elements(arguments) == whole
    results(arguments | {"features": arguments["features"] + 1}, "cpp")
    assert kept_elements(arguments) == noted


def test_random_steps_are_never_kept():
    arguments = case(**SIZES)
    for seed in range(5):
        steps = arguments | {"features": case(**SIZES, seed=seed)["features"]}
        assert is_right(steps)
        assert kept_elements(steps) == steps["features"].numel()


@pytest.mark.parametrize(
    "change", [{}, {"rows": 0}, {"rows": 1}, {"layers": 0}, {"samples": 0}, {"inputs": 1}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_the_same(change, dtype):
    arguments = case(**SIZES | change, dtype=dtype)
    assert all(is_right(arguments) for _ in range(4))


def test_a_result_belongs_to_the_caller():
    arguments = case(**SIZES)
    for _ in range(4):
        for result in results(arguments, "cpp"):
            result.fill_(7)
    assert is_right(arguments)


@pytest.mark.parametrize("kind", ["weights", "biases"])
@pytest.mark.parametrize("layer", range(3 + 2 * BLOCKS))
@pytest.mark.parametrize("element", [0, -1])
def test_a_changed_layer_is_never_missed(kind, layer, element):
    arguments = case(**SIZES)
    for _ in range(3):
        before = results(arguments, "cpp")
    arguments[kind][layer].numpy().reshape(-1)[element] += 1.0
    assert not all(map(torch.equal, results(arguments, "cpp"), before))
    assert all(is_right(arguments) for _ in range(3))
    arguments[kind][layer].numpy().reshape(-1)[element] -= 1.0
    assert is_right(arguments)


@pytest.mark.parametrize("element", [(0, 0), (-1, -1)])
def test_other_steps_are_never_missed(element):
    arguments = case(**SIZES)
    for _ in range(3):
        results(arguments, "cpp")
    arguments["features"][element] += 1.0
    assert all(is_right(arguments) for _ in range(3))
    assert is_right(arguments | {"features": arguments["features"][:-1]})


def test_another_condition_is_computed():
    arguments = case(**SIZES)
    for seed in range(4):
        assert is_right(arguments | {"encoded": case(**SIZES, seed=seed)["encoded"]})


def test_each_instruction_set_gives_its_own_bits(monkeypatch):
    arguments = case(rows=40, inputs=33, width=20)
    for _ in range(2):
        for name in _native.load().cpu_isas():
            monkeypatch.setenv("ROHYDR_FAST_CPU", name)
            assert is_right(arguments) and is_right(arguments)


def test_threads_may_ask_for_different_steps_at_once():
    steps = [case(**SIZES, seed=seed) for seed in (1, 2)]
    calls = [steps[0] | {"features": one["features"]} for one in steps]
    expected = [afresh(arguments) for arguments in calls]
    wrong = []

    def ask(which):
        for i in range(200):
            which = which if i % 3 else 1 - which
            if not all(map(torch.equal, results(calls[which], "cpp"), expected[which])):
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_copies_that_come_and_go_are_bounded_and_drive_out_no_weights():
    kept = len(CACHE)
    for seed in range(2 * LAYERS.max_entries):
        conditioning(**case(**SIZES, seed=seed), backend="cpp")
    assert len(LAYERS) == LAYERS.max_entries and len(CACHE) == kept


def test_what_is_kept_counts_in_the_cache():
    arguments = case(**SIZES)
    held = elements([*arguments["weights"], *arguments["biases"]])
    for _ in range(3):
        results(arguments, "cpp")
    assert LAYERS.nbytes == 4 * (held + kept_elements(arguments))
