"""Exported programs: what `model.recover` gives, for every method and every set of available modalities."""

import json
import math
import sys

import pytest
import torch

from rohydr_fast import __version__, exporting
from rohydr_fast.config import PARTS_ABSENT
from rohydr_fast.data import collate
from rohydr_fast.data.dataset import Batch
from rohydr_fast.errors import RohydrError, UsageError
from rohydr_fast.exporting import Deployed, draw_noise, export_program, files, save_onnx, save_program
from rohydr_fast.models.recovery import METHOD_CLASSES
from rohydr_fast.models.recovery.fill import ZeroFill
from rohydr_fast.models.rohydr import RoHyDR
from tests.small_data import small_dataset
from tests.small_model import DIMS, open_up, small_config

from .documents import python_of, run_python

pytestmark = pytest.mark.usefixtures("one_thread")

DATASET = small_dataset(test=9)
SETS = ("a", "t", "v", "a,t", "a,v", "t,v", "a,t,v")
VARIANTS = {method: {"method": method, "without": PARTS_ABSENT.get(method, ())} for method in sorted(METHOD_CLASSES)}
VARIANTS |= {
    "without hddm": {"without": ("hddm", "ur", "mr")},
    "anchored": {"anchor": "regress"},
    "mean of draws": {"draws": 3},
    "one step": {"chain_steps": 1},
    "ddim": {"sampler": "ddim"},
    "ddim with noise": {"sampler": "ddim", "eta": 1.0},
    "history": {"sampler": "unipc"},
    "classes": {"outputs": 7},
    "aligned": {"aligned_groups": (("a", "t", "v"),)},
    "aligned in part": {"aligned_groups": (("t", "v"),)},
}
SMALL = {
    "modalities": ("a", "t"), "dims": {m: DIMS[m] for m in "at"}, "blocks": 1, "fusion_heads": 2, "chain_steps": 3,
}  # fmt: skip


def build(**changes) -> RoHyDR:
    torch.manual_seed(0)
    model = RoHyDR(small_config(train_clips=10, **changes))
    open_up(model)
    clips = collate(DATASET.train, range(10), model.config.modalities)
    for m in model.config.modalities:
        model.extractors[m].set_statistics(torch.full((DIMS[m],), 0.1), torch.full((DIMS[m],), 1.5))
    model.eval()  # no dropout in what the method observes
    model.recovery.observe(model.extract(clips.x, clips.lengths, torch.ones(10, 3, dtype=torch.bool)), clips.sample_id)
    return model


def arguments(model: RoHyDR, batch: Batch, available: str, *, seed: int = 0, k: int = 0) -> tuple:
    """Those of a program for a batch."""
    features = {m: batch.x[m] for m in available.split(",")}
    noise = draw_noise(model, available, features, batch.sample_id, seed=seed, k=k)
    conversation = batch.conversation if model.recovery.needs_conversations else None
    return features, {m: batch.lengths[m] for m in features}, noise, conversation


def assert_recovers(
    model: RoHyDR, batch: Batch, available: str, run, *, seed: int = 0, tolerance: float = 1e-5
) -> None:
    expected = model.recover(batch, available=available, seed=seed)
    prediction, recovered = run(*arguments(model, batch, available, seed=seed))
    torch.testing.assert_close(prediction, expected.prediction, rtol=tolerance, atol=tolerance)
    assert recovered.keys() == expected.recovered.keys()
    for m, (_, x, _) in expected.recovered.items():
        torch.testing.assert_close(recovered[m][:, : x.x.shape[1]], x.x, rtol=tolerance, atol=tolerance)
        assert not recovered[m][:, x.x.shape[1] :].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_and_every_set_gives_what_recover_gives(variant):
    model, batch = build(**VARIANTS[variant]), collate(DATASET.test, range(5), "atv")
    assert len(set(batch.lengths["a"].tolist())) > 1  # ragged
    with torch.no_grad():
        for available in SETS:
            assert_recovers(model, batch, available, Deployed(model, available), seed=7)


def test_noise_is_that_of_each_draw():
    model, batch = build(), collate(DATASET.test, range(3), "atv")
    drawn = model.recover(batch, available="t", samples=3, seed=2).draws
    deployed = Deployed(model, "t")
    for k in range(3):
        with torch.no_grad():
            prediction, _ = deployed(*arguments(model, batch, "t", seed=2, k=k))
        torch.testing.assert_close(prediction, drawn[:, k])


@pytest.mark.parametrize(
    ("variant", "rows"),
    [("rohydr", 3), ("mean of draws", 9), ("one step", 1), ("ddim", 1), ("ddim with noise", 3), ("imder", 20)],
)
def test_noise_is_as_long_as_its_chain(variant, rows):
    model, batch = build(**VARIANTS[variant]), collate(DATASET.test, range(2), "atv")
    noise = arguments(model, batch, "a,t")[2]
    assert {m: tuple(x.shape) for m, x in noise.items()} == {"v": (rows, 2, model.config.recovery_lengths["v"], 8)}


def test_a_partner_gives_its_tokens():
    model, batch = build(**VARIANTS["aligned"]), collate(DATASET.test, range(2), "atv")
    batch.x["t"] = torch.nn.functional.pad(batch.x["t"], (0, 0, 0, 5))
    features, lengths, noise, _ = arguments(model, batch, "t")
    with torch.no_grad():
        _, recovered = Deployed(model, "t")(features, lengths, noise)
    assert {x.shape[1] for x in recovered.values()} == {features["t"].shape[1]}
    for x in recovered.values():
        assert torch.equal(x.any(2).sum(1), lengths["t"])


def test_exporting_changes_nothing_of_the_model():
    for method in ("dicmor", "smcmsa"):
        model, batch = build(method=method), collate(DATASET.test, range(3), "atv")
        before = model.recover(batch, available="a").prediction
        model.train()
        Deployed(model, "a")
        assert model.training and all(p.requires_grad for p in model.parameters())
        assert torch.equal(model.recover(batch, available="a").prediction, before)


@pytest.fixture(scope="module")
def model() -> RoHyDR:
    built = build(**SMALL)
    built.calibration, built.origin = {"t": 1.25, "a,t": 1.0}, {"data": {"name": "small"}}
    return built


@pytest.fixture(scope="module")
def program(model):
    return export_program(model, "t")


@pytest.fixture(scope="module")
def onnx_file(model, program, tmp_path_factory):
    """What `save_onnx` writes, of a program that is there already."""
    pytest.importorskip("onnxscript", reason='pip install "rohydr_fast[onnx]"')
    pytest.importorskip("onnxruntime", reason='pip install "rohydr_fast[onnx]"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "export_program", lambda *arguments: program)
        return save_onnx(model, ["t"], tmp_path_factory.mktemp("onnx") / "new" / "t.onnx")


def padded(batch: Batch, tokens: int, value: float) -> Batch:
    """With `tokens` more, and `value` in all padding."""
    for m, x in batch.x.items():
        x = torch.nn.functional.pad(x, (0, 0, 0, tokens))
        real = torch.arange(x.shape[1]) < batch.lengths[m][:, None]
        batch.x[m] = torch.where(real[..., None], x, value)
    return batch


@pytest.fixture(params=["program", "onnx"])
def run(request):
    if request.param == "program":
        return request.getfixturevalue("program").module()
    return files.run_onnx(request.getfixturevalue("onnx_file").path.read_bytes())


def test_any_number_of_clips_and_tokens_gives_what_recover_gives(model, run):
    for rows in ([4], [0, 1], range(9)):
        assert_recovers(model, collate(DATASET.test, rows, "at"), "t", run, seed=3, tolerance=1e-4)
    one = collate(DATASET.test, [2], "at")
    one.x["t"], one.lengths["t"] = one.x["t"][:, :1], torch.ones(1, dtype=torch.int64)
    assert_recovers(model, one, "t", run, tolerance=1e-4)


@pytest.mark.parametrize("value", [1e6, math.nan, math.inf])
def test_padding_changes_no_bit(model, run, value):
    clean = collate(DATASET.test, range(4), "at")
    dirty = padded(collate(DATASET.test, range(4), "at"), 0, value)
    first, second = (run(*arguments(model, batch, "t")) for batch in (clean, dirty))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1]["a"], second[1]["a"])
    assert_recovers(model, padded(clean, 6, value), "t", run, tolerance=1e-4)


def test_an_onnx_file_says_what_it_is(model, onnx_file):
    onnx = pytest.importorskip("onnx", reason='pip install "rohydr_fast[onnx]"')
    content = onnx_file.path.read_bytes()
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)

    def shapes(values) -> dict:
        return {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}

    assert onnx_file.inputs == shapes(proto.graph.input) == {
        "features_t": ("clips", "tokens_t", 6), "lengths_t": ("clips",), "noise_a": (3, "clips", 5, 8),
    }  # fmt: skip
    assert onnx_file.outputs == shapes(proto.graph.output) == {"prediction": ("clips",), "recovered_a": ("clips", 5, 8)}
    assert 0 <= onnx_file.error < exporting.TOLERANCE
    told = json.loads({entry.key: entry.value for entry in proto.metadata_props}["rohydr_fast"])
    assert (told["version"], told["method"], told["available"], told["missing"]) == (
        __version__,
        "rohydr",
        ["t"],
        ["a"],
    )
    assert (told["interval_radius"], told["classes"], told["origin"]) == (1.25, None, model.origin)
    assert b"program.py" not in content  # nor any other file of the machine that made it


def test_the_example_of_the_documentation_runs(onnx_file, repo_root, tmp_path):
    """With onnxruntime and numpy alone, as it says."""
    (tmp_path / "model.onnx").write_bytes(onnx_file.path.read_bytes())
    code = "import sys\nsys.modules |= {'torch': None, 'rohydr_fast': None}\n"
    code += python_of(repo_root / "docs" / "export.md")
    run_python(
        code + "\nassert prediction.shape == (2,) and recovered[0].shape == (2, 5, 8) and radius == 1.25\n", tmp_path
    )


def test_a_program_in_a_file_is_the_same_program(model, program, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "export_program", lambda *arguments: program)
    made = save_program(model, "t", tmp_path / "t.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["t.pt2"]
    extra = {"rohydr_fast.json": ""}
    run = torch.export.load(made.path, extra_files=extra).module()
    assert json.loads(extra["rohydr_fast.json"])["available"] == ["t"]
    assert_recovers(model, collate(DATASET.test, range(3), "at"), "t", run, tolerance=1e-4)
    assert b"program.py" not in made.path.read_bytes()


def test_other_numbers_are_refused_and_nothing_is_left(program, tmp_path, monkeypatch):
    """The program is that of another model; that it passes through a file is left out."""
    monkeypatch.setattr(files, "export_program", lambda *arguments: program)
    monkeypatch.setattr(torch.export, "save", lambda *arguments, **options: None)
    monkeypatch.setattr(torch.export, "load", lambda buffer: program)
    other = build(**SMALL)
    with torch.no_grad():
        other.classifier.out.bias += 0.1
    with pytest.raises(RohydrError, match="must give the model's numbers within 0.0001, got a difference of 0.1"):
        save_program(other, "t", tmp_path / "t.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_that_are_none_differ(model, wrong):
    def run(features, *others):
        return torch.full((len(features["t"]),), wrong), {"a": torch.ones(1, 9, 8)}

    with pytest.raises(RohydrError, match="got a difference of inf"):
        files.difference(model, ("t",), run)


class Guessing(ZeroFill):
    """What it recovers depends on what it sees."""

    def recover(self, conditions, sample_ids, *, seed, **limits):
        found = super().recover(conditions, sample_ids, seed=seed, **limits)
        return found if all(c.others["t"].x.sum() > 0 for c in conditions.values()) else {}


def test_a_method_without_a_graph_is_refused():
    built = build(**SMALL)
    built.recovery = Guessing(built.config)
    with pytest.raises(
        UsageError, match="must be a graph that no data change, got rohydr.*Use another method"
    ) as refusal:
        export_program(built, "t")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("available", "words"),
    [("x", "must name each of a, t, v"), ("", "Name at least one"), ("v", "must be among the model's a, t, got v")],
)
def test_impossible_sets_are_refused(model, available, words):
    with pytest.raises(UsageError, match=words):
        save_program(model, available, "t.pt2")


def test_without_the_extra_its_installation_is_told(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r'got no onnxscript. Run: pip install "rohydr_fast\[onnx\]"'):
        save_onnx(model, "t", "t.onnx")
