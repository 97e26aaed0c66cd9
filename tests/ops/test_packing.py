"""Packed weights: a changed parameter is never missed, the cache is bounded, and threads may share it."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rohydr_fast.ops import packing
from rohydr_fast.ops.denoiser_block import BlockWeights, denoiser_block
from rohydr_fast.ops.packing import CACHE, PackingCache
from rohydr_fast.ops.reverse_loop import reverse_loops
from tests.native_spy import needs_core
from tests.ops.inputs import block_inputs, make_chain, make_denoiser


@pytest.fixture(autouse=True)
def empty_cache(one_thread):
    CACHE.clear()
    yield
    CACHE.clear()


class Loop:
    """One chain of a denoiser, by both backends; modulation and condition stay those of the beginning."""

    def __init__(self, denoiser):
        self.denoiser, self.chain = denoiser, make_chain(denoiser, masked=False)

    def run(self, backend: str, weights=None) -> torch.Tensor:
        chain = self.chain._replace(weights=self.denoiser.weights() if weights is None else weights)
        with torch.no_grad():
            return reverse_loops([chain], backend=backend)[0]

    def agrees(self) -> bool:
        found, expected = self.run("cpp"), self.run("reference")
        return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def optimizer_step(denoiser):
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.05)
    sum(p.square().sum() for p in denoiser.parameters()).backward()
    optimizer.step()


def data_copy(denoiser):
    weight = denoiser.blocks[1].fc2.weight
    weight.data.copy_(weight.data + 0.1)  # the version counter does not see it


def one_element(denoiser):
    denoiser.out.bias.data[-1] += 1


def numpy_write(denoiser):
    denoiser.blocks[0].q.weight.detach().numpy()[2, 3] = 5.0


def set_storage(denoiser):
    with torch.no_grad():
        denoiser.blocks[0].qkv.weight.set_(denoiser.blocks[0].qkv.weight + 0.1)


def data_assignment(denoiser):
    denoiser.blocks[0].qkv.bias.data = denoiser.blocks[0].qkv.bias.data + 1


def in_place_transpose(denoiser):
    with torch.no_grad():
        denoiser.blocks[0].self_out.weight.t_()  # the same object, memory and shape, other strides


def load_state(denoiser):
    denoiser.load_state_dict(make_denoiser(seed=7).state_dict())


def assign_state(denoiser):
    denoiser.load_state_dict(make_denoiser(seed=7).state_dict(), assign=True)


def new_parameter(denoiser):
    denoiser.embed.weight = torch.nn.Parameter(denoiser.embed.weight.detach() * 2)


CHANGES = [
    optimizer_step, data_copy, one_element, numpy_write, set_storage, data_assignment, in_place_transpose, load_state,
    assign_state, new_parameter,
]  # fmt: skip


@needs_core
@pytest.mark.parametrize("found_by", ["signature", "attributes"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_parameter_is_never_missed(change, found_by, monkeypatch):
    if found_by == "attributes":
        monkeypatch.setattr(packing, "signature", lambda tensors: None)
    loop = Loop(make_denoiser())
    before = loop.run("cpp")
    assert loop.agrees() and torch.equal(loop.run("cpp"), before)
    change(loop.denoiser)
    assert not torch.equal(loop.run("cpp"), before)
    assert loop.agrees()


@needs_core
def test_a_change_back_is_seen_too():
    loop = Loop(make_denoiser())
    before = loop.run("cpp")
    one_element(loop.denoiser)
    assert not torch.equal(loop.run("cpp"), before)
    loop.denoiser.out.bias.data.copy_(make_denoiser().out.bias)
    assert torch.equal(loop.run("cpp"), before)


@needs_core
def test_functional_call_uses_its_own_tensors_and_the_module_keeps_its():
    loop, other = Loop(make_denoiser()), make_denoiser(seed=3)
    before = loop.run("cpp")

    class Weights(torch.nn.Module):
        def __init__(self, denoiser):
            super().__init__()
            self.denoiser = denoiser

        def forward(self):
            return self.denoiser.weights()

    weights = torch.func.functional_call(
        Weights(loop.denoiser), {f"denoiser.{name}": p for name, p in other.named_parameters()}, ()
    )
    found, expected = (loop.run(name, weights) for name in ("cpp", "reference"))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max() and not torch.equal(found, before)
    assert torch.equal(loop.run("cpp"), before)


@needs_core
def test_models_that_come_and_go_never_get_the_weights_of_another():
    """Whether or not the allocator gives a new model the memory of one that was deleted."""
    chain = make_chain(masked=False)
    for seed in range(2 * packing.MAX_ENTRIES):
        denoiser = make_denoiser(seed).requires_grad_(False)
        found, expected = (
            reverse_loops([chain._replace(weights=denoiser.weights())], backend=name)[0]
            for name in ("cpp", "reference")
        )
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        del denoiser
    assert len(CACHE) == packing.MAX_ENTRIES


@needs_core
def test_memory_that_is_given_away_and_filled_by_another_model_is_seen():
    """Parameters in one buffer that somebody overwrites: the same addresses, shapes and objects."""
    first, second = make_denoiser(1), make_denoiser(2)
    buffer = torch.nn.utils.parameters_to_vector(first.parameters()).detach().clone()
    torch.nn.utils.vector_to_parameters(buffer, first.parameters())  # the parameters are views of the buffer now
    loop = Loop(first)
    before = loop.run("cpp")
    buffer.copy_(torch.nn.utils.parameters_to_vector(second.parameters()).detach())
    assert not torch.equal(loop.run("cpp"), before) and loop.agrees()


@needs_core
def test_the_same_weights_are_packed_once_and_a_deleted_model_is_freed_with_its_entry():
    denoiser = make_denoiser().requires_grad_(False)
    weights = [p.detach() for p in denoiser.weights().tensors()]
    packed = CACHE.get("denoiser", weights, 4, False)
    assert all(CACHE.get("denoiser", weights, 4, False) is packed for _ in range(3))
    assert packed.packs == 1 and not packed.refresh() and packed.packs == 1
    assert CACHE.get("denoiser", weights, 2, False) is not packed  # other heads
    assert CACHE.get("denoiser", weights, 4, True) is not packed  # other arithmetic
    assert CACHE.nbytes >= 2 * sum(w.nbytes for w in weights)
    storage = weakref.ref(weights[0].untyped_storage())
    del denoiser, weights, packed
    CACHE.clear()
    gc.collect()
    assert len(CACHE) == CACHE.nbytes == 0 and storage() is None


@needs_core
def test_memory_is_filled_again_when_weights_change():
    chain = make_chain(masked=False)
    weights = [p.clone() for p in chain.weights.tensors()]
    packed = CACHE.get("denoiser", weights, 4, False)
    size = packed.nbytes
    for run in range(2, 50):
        weights[run % len(weights)] += 1
        assert packed.refresh() and packed.packs == run
    assert packed.nbytes == size


@needs_core
def test_weights_that_need_a_copy_are_not_kept():
    given = block_inputs()
    turned = BlockWeights(*(w.t().contiguous().t() if w.dim() == 2 else w for w in given["weights"]))
    assert torch.equal(denoiser_block(**{**given, "weights": turned}), denoiser_block(**given))
    assert len(CACHE) == 1  # of the contiguous ones


@needs_core
def test_a_changed_instruction_set_is_packed_for(monkeypatch):
    loop = Loop(make_denoiser())
    before = loop.run("cpp")
    for name in packing._native.load().cpu_isas():
        monkeypatch.setenv("ROHYDR_FAST_CPU", name)
        assert loop.agrees()
    monkeypatch.delenv("ROHYDR_FAST_CPU")
    assert torch.equal(loop.run("cpp"), before)


@needs_core
def test_threads_may_share_the_cache_and_the_weights():
    """Two models, called and packed from six threads at once while a seventh empties the cache."""
    chains = [make_chain(make_denoiser(seed).requires_grad_(False), masked=False) for seed in (1, 2)]
    expected = [reverse_loops([chain])[0] for chain in chains]
    CACHE.clear()
    wrong, stop = [], threading.Event()

    def call(which):
        for _ in range(40):
            if not torch.equal(reverse_loops([chains[which]], backend="cpp")[0], expected[which]):
                wrong.append(which)

    def empty():
        while not stop.wait(0.001):
            CACHE.clear()

    threads = [threading.Thread(target=call, args=(i % 2,)) for i in range(6)]
    cleaner = threading.Thread(target=empty)
    for thread in (cleaner, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    cleaner.join()
    assert wrong == []


class Recorder:
    """In place of the core: what is packed, and how large it says it is."""

    def __init__(self, monkeypatch, nbytes=0):
        self.packed = []
        monkeypatch.setattr(packing, "_pack", self.pack)
        self.nbytes = nbytes

    def pack(self, kind, arrays, num_heads, double):
        self.packed.append(arrays)
        return Packed(arrays, self.nbytes)


class Packed:
    def __init__(self, arrays, nbytes):
        self.arrays, self.nbytes = arrays, nbytes

    def refresh(self):
        return True


def test_the_least_recently_used_entry_goes_first(monkeypatch):
    recorder, cache = Recorder(monkeypatch), PackingCache(max_entries=2)
    a, b, c = ([torch.ones(3)] for _ in range(3))
    for tensors in (a, b, a, c, a, b):  # c puts out b, b puts out c
        cache.get("block", tensors, 1, False)
    assert [arrays[0].ctypes.data for arrays in recorder.packed] == [x[0].data_ptr() for x in (a, b, c, b)]
    assert len(cache) == 2 and cache.nbytes == 24


def test_the_cache_holds_no_more_bytes_than_it_may(monkeypatch):
    Recorder(monkeypatch, nbytes=600)
    cache = PackingCache(max_bytes=2000)
    kept = [[torch.zeros(100)] for _ in range(5)]  # 400 bytes that stay alive, and 600 packed
    for tensors in kept:
        cache.get("block", tensors, 1, False)
        assert cache.nbytes <= 2000
    assert len(cache) == 2
    cache.get("block", [torch.zeros(1000)], 1, False)  # larger than the cache: packed, and not kept
    assert len(cache) == 0 and cache.nbytes == 0


def test_the_same_address_with_another_shape_or_dtype_is_another_entry(monkeypatch):
    recorder, cache = Recorder(monkeypatch), PackingCache()
    memory = torch.zeros(6)
    views = [memory, memory.view(2, 3), memory.view(3, 2), memory[:4], memory.view(torch.bfloat16)]
    for tensor in views:
        cache.get("block", [tensor], 1, False)
    cache.get("denoiser", [memory], 1, False)
    assert len(recorder.packed) == len(cache) == 6
    assert recorder.packed[4][0].dtype == np.uint16


def test_an_entry_keeps_its_memory_so_no_other_tensor_can_lie_there(monkeypatch):
    Recorder(monkeypatch)
    cache, tensor = PackingCache(), torch.full((64,), 3.0)
    packed = cache.get("block", [tensor], 1, False)
    address = tensor.data_ptr()
    tensor.set_(torch.zeros(64))
    gc.collect()
    assert packed.arrays[0].ctypes.data == address and (packed.arrays[0] == 3).all()
    assert all(torch.empty(64).data_ptr() != address for _ in range(10))
    assert cache.get("block", [tensor], 1, False) is not packed


@needs_core
def test_a_signature_says_where_and_how_tensors_lie():
    memory = torch.arange(36.0).view(6, 6)
    lists = [
        *([memory], [memory, memory], [memory.t()], [memory.view(4, 9)], [memory.view(36)], [memory[None]]),
        *([memory[:5]], [memory[1:]], [memory[:, 1:]], [memory[:, :5]], [memory.view(torch.int32)], [memory.clone()]),
        *([memory.expand(2, 6, 6)], [memory.bfloat16()], [memory[:0]], [memory[0, 0]], [memory[::2]], [memory[0]], []),
    ]
    found = [packing.signature(tensors) for tensors in lists]
    assert all(isinstance(one, bytes) for one in found) and len(set(found)) == len(lists)
    assert found == [packing.signature(tensors) for tensors in lists]
    assert packing.signature([torch.nn.Parameter(memory), memory.detach()]) == packing.signature([memory, memory])
    memory.add_(1)
    assert packing.signature([memory]) == found[0]  # content is not its business


class Kind(torch.Tensor):
    pass


def in_a_transform() -> list[torch.Tensor]:
    seen = []
    torch.func.vmap(lambda x: seen.append([x]) or x)(torch.ones(2, 3))
    return seen[0]


def fakes() -> list[torch.Tensor]:
    with FakeTensorMode():
        return [torch.ones(2)]


@needs_core
@pytest.mark.parametrize(
    "tensors",
    [
        *(None, (torch.ones(2),), "tensors", [None], [1.0], [np.ones(2)], [torch.ones(2), None], [torch.Tensor], [[]]),
        *([torch.ones(2, device="meta")], [torch.ones(2).to_sparse()], [torch.ones(2).as_subclass(Kind)]),
        *(in_a_transform(), fakes()),
    ],
    ids=range(14),
)
def test_what_has_no_signature(tensors):
    assert packing.signature(tensors) is None


def test_there_is_none_without_the_core(monkeypatch):
    monkeypatch.setattr(packing._native, "status", lambda: (False, "not built"))
    assert packing.signature([torch.ones(2)]) is None


def test_what_grows_after_it_was_packed_is_counted(monkeypatch):
    recorder, cache = Recorder(monkeypatch, nbytes=10), PackingCache(max_bytes=1000)
    first, second = [torch.zeros(10)], [torch.zeros(20)]
    grown = cache.get("block", first, 1, False)
    cache.get("block", second, 1, False)
    assert cache.nbytes == 140
    grown.nbytes = 100
    assert cache.get("block", first, 1, False) is grown and cache.nbytes == 230
    grown.nbytes = 900  # with its parameters more than may be kept with the other
    cache.get("block", first, 1, False)
    assert len(cache) == 1 and cache.nbytes == 940 and len(recorder.packed) == 2


def test_as_array_views_what_is_dense_and_copies_what_is_not():
    tensor = torch.randn(4, 6, requires_grad=True)
    assert packing.as_array(tensor).ctypes.data == tensor.data_ptr()
    for view in (tensor.t(), tensor[:, ::2], tensor[:, :3], tensor[:1].expand(3, -1)):
        array = packing.as_array(view)
        assert array.flags.c_contiguous and array.flags.aligned and array.ctypes.data != view.data_ptr()
        assert np.array_equal(array, view.detach().numpy())
    bits = packing.as_array(tensor.detach().bfloat16())
    assert bits.dtype == np.uint16 and np.array_equal(bits, tensor.detach().bfloat16().view(torch.uint16).numpy())
