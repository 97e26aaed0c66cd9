"""Checkpoints: exact round trips, every kind of damage noticed, and a crash at any moment survived."""

import errno
import json
import logging
import os
import shutil

import pytest
import torch

from rohydr_fast.errors import DataError, FileAccessError, UsageError
from rohydr_fast.training import checkpoint as checkpoint_module
from rohydr_fast.training.checkpoint import (
    check_shapes,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)


def content(value):
    """A small checkpoint; `value` tells one from another."""
    model = {"w": torch.full((2, 3), float(value)), "b": torch.tensor([1, value]), "s": torch.tensor(0.5)}
    return {"model": model, "optimizer": {}}, {"epoch": value, "best": 0.1 + value}


def write(directory, value):
    save_checkpoint(directory, *content(value))


def epoch_of(directory):
    return load_checkpoint(directory)[1]["epoch"]


@pytest.fixture
def last(tmp_path):
    directory = tmp_path / "checkpoints" / "last"
    write(directory, 1)
    return directory


class TestRoundTrip:
    def test_tensors_and_state_come_back_exactly(self, tmp_path):
        base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
        tensors = {
            "model": {"transposed": base.t(), "view": base[1], "half": base.bfloat16(), "nan": base[0, 0] * torch.nan},
            "ema": {"empty": torch.zeros(0, 3), "flags": base > 0, "count": torch.tensor(2**62)},
        }
        state = {"epoch": 3, "loss": 0.1 + 0.2, "names": ["a", None], "big": 2**63}
        save_checkpoint(tmp_path / "c", tensors, state)
        loaded, loaded_state = load_checkpoint(tmp_path / "c")
        assert loaded_state == state
        assert {group: set(named) for group, named in loaded.items()} == {g: set(named) for g, named in tensors.items()}
        for group, named in tensors.items():
            for name, tensor in named.items():
                assert loaded[group][name].dtype == tensor.dtype
                assert torch.equal(loaded[group][name].nan_to_num(7.0), tensor.nan_to_num(7.0))

    def test_same_content_gives_the_same_bytes(self, tmp_path):
        for name in ("x", "y"):
            write(tmp_path / name, 1)
        for file in (tmp_path / "x").iterdir():
            assert file.read_bytes() == (tmp_path / "y" / file.name).read_bytes()

    def test_the_one_before_is_kept(self, last):
        for value in (2, 3):
            write(last, value)
        assert epoch_of(last) == 3 and epoch_of(last.with_name("last.previous")) == 2
        assert sorted(path.name for path in last.parent.iterdir()) == ["last", "last.previous"]

    @pytest.mark.parametrize("group", ["Model", "../x", "", "a.b"])
    def test_group_names_are_file_names(self, tmp_path, group):
        with pytest.raises(UsageError, match="group must be"):
            save_checkpoint(tmp_path / "c", {group: {}}, {})

    def test_state_must_be_strict_json(self, tmp_path):
        for value in (float("nan"), torch.zeros(1), {1, 2}):
            with pytest.raises(UsageError, match="checkpoint state"):
                save_checkpoint(tmp_path / "c", {}, {"x": value})
        assert not (tmp_path / "c").exists()


class TestDamage:
    @pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
    def test_one_flipped_bit_anywhere_is_noticed(self, last, file):
        path = last / file
        original = path.read_bytes()
        for position in range(len(original)):
            for bit in range(8) if file == "manifest.json" else (position % 8,):
                damaged = bytearray(original)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                with pytest.raises(DataError, match="The checkpoint is damaged"):
                    load_checkpoint(last)
        path.write_bytes(original)
        assert epoch_of(last) == 1

    @pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
    def test_truncated_and_longer_files_are_noticed_and_named(self, last, file):
        path = last / file
        original = path.read_bytes()
        for changed in (b"", original[: len(original) // 2], original[:-1], original + b"\n"):
            path.write_bytes(changed)
            with pytest.raises(DataError, match=file):
                load_checkpoint(last)

    @pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
    def test_a_missing_file_is_named(self, last, file):
        (last / file).unlink()
        with pytest.raises(DataError, match=f"{file}: must .* got no such file"):
            load_checkpoint(last)

    def test_an_extra_file_is_named(self, last):
        (last / "model.pkl").write_bytes(b"x")
        with pytest.raises(DataError, match="model.pkl: must not be there"):
            load_checkpoint(last)

    def test_a_file_that_is_no_regular_file_is_refused_without_waiting_for_it(self, last):
        (last / "state.json").unlink()
        os.mkfifo(last / "state.json")
        with pytest.raises(DataError, match="regular file"):
            load_checkpoint(last)

    @pytest.mark.parametrize(
        "manifest", [b"[]", b"{}", b"[" * 100_000, b'{"files": {"state.json": 1}, "format": 1}', b"\xff"], ids=range(5)
    )
    def test_a_manifest_of_something_else_is_refused(self, last, manifest):
        (last / "manifest.json").write_bytes(manifest)
        with pytest.raises(DataError, match="manifest.json"):
            load_checkpoint(last)

    @pytest.mark.parametrize(("file", "wrong"), [("model.safetensors", b"\x80\x04N."), ("state.json", b"[1]")])
    def test_a_consistent_manifest_does_not_make_a_wrong_file_right(self, last, file, wrong):
        (last / file).write_bytes(wrong)
        names = ("model.safetensors", "optimizer.safetensors", "state.json")
        files = {name: checkpoint_module.describe((last / name).read_bytes()) for name in names}
        (last / "manifest.json").write_bytes(checkpoint_module._manifest_bytes(files))
        with pytest.raises(DataError, match=f"{file}: must hold"):
            load_checkpoint(last)

    def test_a_damaged_newest_is_never_replaced_silently_but_the_way_out_is_named(self, last):
        write(last, 2)
        (last / "state.json").write_bytes(b"{}")
        with pytest.raises(DataError, match="Delete .*last to continue from .*last.previous"):
            load_checkpoint(last)

    def test_no_checkpoint_at_all(self, tmp_path):
        with pytest.raises(FileAccessError, match="must be the directory of a checkpoint"):
            load_checkpoint(tmp_path / "nothing")


def test_an_absent_newest_falls_back_and_says_so(last, caplog):
    write(last, 2)
    shutil.rmtree(last)
    with caplog.at_level(logging.WARNING):
        assert epoch_of(last) == 1
    assert "using the one before" in caplog.text
    write(last, 3)
    assert epoch_of(last) == 3 and epoch_of(last.with_name("last.previous")) == 1


class PowerCut(BaseException):
    """The process ends here: nothing that runs afterwards may touch the disk."""


CALLS = [(os, "open"), (os, "write"), (os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree")]


def break_calls(monkeypatch, fails):
    """Count the file-system calls of a save and let `fails(number)` raise before the call is made."""
    count = 0
    for module, name in CALLS:
        original = getattr(module, name)

        def call(*args, original=original, **kwargs):
            nonlocal count
            count += 1
            fails(count)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)
    return lambda: count


def number_of_calls(last):
    with pytest.MonkeyPatch.context() as patch:
        count = break_calls(patch, lambda number: None)
        write(last, 2)
        return count()


@pytest.fixture(params=["after two saves", "after one save", "after an interrupted save"])
def history(request, last):
    """The directory in the states in which a save can find it; each holds a readable checkpoint."""
    if request.param != "after one save":
        write(last, 1)
    if request.param == "after an interrupted save":
        shutil.rmtree(last)
        (last.parent / ".last.tmp").mkdir()
        (last.parent / ".last.tmp" / "model.safetensors").write_bytes(b"half")
    return last


def copy_of(history, tmp_path, number):
    target = tmp_path / f"copy{number}"
    shutil.copytree(history.parent, target)
    return target / "last"


def test_a_power_cut_at_any_call_leaves_the_old_or_the_new_checkpoint(history, tmp_path):
    calls = number_of_calls(copy_of(history, tmp_path, 0))
    assert calls > 15
    seen = set()
    for fatal in range(1, calls + 1):
        target = copy_of(history, tmp_path, fatal)

        def cut(number, fatal=fatal):
            if number >= fatal:
                raise PowerCut

        with pytest.MonkeyPatch.context() as patch:
            break_calls(patch, cut)
            with pytest.raises(PowerCut):
                write(target, 2)
        seen.add(epoch_of(target))
        write(target, 3)
        assert epoch_of(target) == 3
        assert not (target.parent / ".last.tmp").exists()
    assert seen == {1, 2}


def test_an_error_at_any_call_passes_through_and_leaves_nothing_behind(history, tmp_path):
    calls = number_of_calls(copy_of(history, tmp_path, 0))
    for failing in range(2, calls + 1):  # the first call makes the parent directory, which exists already
        target = copy_of(history, tmp_path, failing)

        def fail(number, failing=failing):
            if number == failing:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            break_calls(patch, fail)
            with pytest.raises(OSError, match="No space left"):
                write(target, 2)
        assert epoch_of(target) in (1, 2)
        assert {path.name for path in target.parent.iterdir()} <= {"last", "last.previous"}


def test_a_failed_save_leaves_the_old_checkpoint_as_the_newest(last, monkeypatch):
    original = os.rename

    def fail_for_the_new_one(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        original(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="Input/output"):
        write(last, 2)
    assert epoch_of(last) == 1 and [path.name for path in last.parent.iterdir()] == ["last"]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))


def adam(model, **options):
    first = {"params": model[0].parameters(), "lr": 0.01}
    second = {"params": model[1].parameters(), "weight_decay": 0.1 + 0.2}
    return torch.optim.Adam([first, second], lr=1e-3, betas=(0.5, 0.999), **options)


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().mean().backward()
        optimizer.step()


class TestOptimizer:
    @pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}])
    def test_training_goes_on_bit_for_bit(self, tmp_path, options):
        model = network()
        optimizer = adam(model, **options)
        train(model, optimizer, 3, seed=1)
        optimizer.param_groups[1]["lr"] = 0.1 / 3
        tensors, state = flatten_optimizer(optimizer, dict(model.named_parameters()))
        save_checkpoint(tmp_path / "c", {"model": model.state_dict(), "optimizer": tensors}, {"optimizer": state})
        train(model, optimizer, 4, seed=2)

        loaded, loaded_state = load_checkpoint(tmp_path / "c")
        other = network()
        other.load_state_dict(loaded["model"])
        restored = adam(other, **options)
        restore_optimizer(restored, dict(other.named_parameters()), loaded["optimizer"], loaded_state["optimizer"])
        assert restored.param_groups[1]["lr"] == 0.1 / 3 and restored.param_groups[0]["betas"] == (0.5, 0.999)
        train(other, restored, 4, seed=2)

        for key, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[key])
        first, second = optimizer.state_dict(), restored.state_dict()
        assert first["param_groups"] == second["param_groups"]
        for index, entry in first["state"].items():
            assert entry.keys() == second["state"][index].keys()
            assert all(torch.equal(entry[key], second["state"][index][key]) for key in entry)
            assert entry["step"] == 7

    def test_a_fresh_optimizer_and_an_unused_parameter_have_no_state(self):
        model = network()
        optimizer = adam(model)
        assert flatten_optimizer(optimizer, dict(model.named_parameters()))[0] == {}
        model[1].weight.requires_grad_(False)
        train(model, optimizer, 1, seed=0)
        tensors, state = flatten_optimizer(optimizer, dict(model.named_parameters()))
        assert not any(name.startswith("1.weight") for name in tensors) and "0.bias.exp_avg_sq" in tensors
        json.dumps(state, allow_nan=False)
        restore_optimizer(optimizer, dict(model.named_parameters()), tensors, state)

    def test_restored_state_does_not_share_memory_with_what_was_loaded(self):
        model = network()
        optimizer = adam(model)
        train(model, optimizer, 1, seed=0)
        names = dict(model.named_parameters())
        tensors, state = flatten_optimizer(optimizer, names)
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        restore_optimizer(optimizer, names, tensors, state)
        train(model, optimizer, 2, seed=3)
        assert all(torch.equal(before[name], tensors[name]) for name in tensors)

    def test_differences_are_named(self):
        model = network()
        optimizer = adam(model)
        train(model, optimizer, 1, seed=0)
        names = dict(model.named_parameters())
        tensors, state = flatten_optimizer(optimizer, names)
        first, second = state["groups"]
        shorter = [first | {"params": ["0.weight"]}, second]
        bias = "0.bias.exp_avg"
        missing = {key: value for key, value in tensors.items() if key != bias}
        cases = [
            (tensors, state | {"kind": "SGD"}, "kind must be Adam, got SGD"),
            (tensors, state | {"groups": [first]}, "must have 2 parameter groups, got 1"),
            (tensors, state | {"groups": shorter}, "must be 0.bias, got None"),
            (missing, state, r"0.bias.exp_avg must have the shape \(4,\), got no such tensor"),
            (tensors | {bias: torch.zeros(5)}, state, r"0.bias.exp_avg must have the shape \(4,\), got \(5,\)"),
            (tensors | {"9.bias.exp_avg": torch.zeros(5)}, state, "9.bias.exp_avg must not be there"),
            (tensors | {bias: torch.zeros(4).double()}, state, "dtype torch.float32, got torch.float64"),
        ]
        for changed, changed_state, message in cases:
            with pytest.raises(DataError, match=message):
                restore_optimizer(optimizer, names, changed, changed_state)
        with pytest.raises(UsageError, match="every parameter"):
            flatten_optimizer(optimizer, {"only": model[0].weight})


def test_check_shapes_names_the_first_tensor_that_differs():
    expected = {"a": (2, 3), "b": (4,)}
    check_shapes(expected, {"b": torch.zeros(4), "a": torch.zeros(2, 3)}, "model.safetensors")
    for found, message in [
        ({"a": (2, 3), "b": (5,)}, r"model.safetensors: b must have the shape \(4,\), got \(5,\)"),
        ({"a": (2, 3)}, "b must have the shape .* got no such tensor"),
        (expected | {"c": (1,)}, "c must not be there"),
    ]:
        with pytest.raises(DataError, match=message):
            check_shapes(expected, found, "model.safetensors")
