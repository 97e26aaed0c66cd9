"""Every rule of the schema has a sentence, and lengths are found wherever the padding lies."""

import re

import numpy as np
import pytest

from rohydr_fast.data import mmsa
from rohydr_fast.data.lengths import spans, spans_from_lengths
from rohydr_fast.errors import DataError, UsageError


def build(tree, **options):
    return mmsa.build(tree, source="MOSI.pkl", sha256="0" * 64, **options)[0]


def refused(tree, **options):
    with pytest.raises(DataError) as caught:
        build(tree, **options)
    message = str(caught.value)
    assert message.startswith("MOSI.pkl: ") and message.endswith(".") and "\n" not in message
    return message


def change(tree, key, value, split="train"):
    """The tree with one key of one split replaced (a function is called with the old value), or removed."""
    values = dict(tree[split])
    if value is None:
        del values[key]
    else:
        values[key] = value(values[key]) if callable(value) else value
    return tree | {split: values}


def more(tree, **values):
    """The tree with more keys in train."""
    return tree | {"train": tree["train"] | values}


def test_valid_tree(make_tree):
    tree = make_tree()
    dataset = build(tree)
    assert [len(split) for split in (dataset.train, dataset.valid, dataset.test)] == [6, 4, 5]
    assert dataset.dims() == {"a": 3, "t": 4, "v": 2}
    assert dataset.train.features["a"] is tree["train"]["audio"]  # not copied
    assert dataset.train.ids[2] == "train$_$2" and dataset.train.labels.dtype == np.float32
    assert dataset.notes == () and not dataset.nonfinite_zeroed and dataset.name == "MOSI"
    assert dataset.aligned_groups() == (("a", "t", "v"),)


BROKEN = {
    "not a dict": (lambda t: [t], "must hold a dict with the splits"),
    "no test": (lambda t: {k: v for k, v in t.items() if k != "test"}, "got train, valid. Add the split test"),
    "dev": (lambda t: {("dev" if k == "valid" else k): v for k, v in t.items()}, "Rename dev to valid"),
    "split is a list": (lambda t: t | {"valid": []}, "valid must be a dict"),
    "no audio": (lambda t: change(t, "audio", None), "train: the key audio is missing. .*zeros of shape"),
    "no vision": (lambda t: change(t, "vision", None, "test"), "test: the key vision is missing"),
    "no text": (lambda t: change(t, "text", None), "train: the key text is missing"),
    "only token ids": (lambda t: change(more(t, text_bert=np.zeros((6, 3, 7))), "text", None), "holds token ids only"),
    "no labels": (lambda t: change(t, "regression_labels", None), "regression_labels is missing"),
    "four dimensions": (lambda t: change(t, "audio", lambda x: x[..., None]), r"shape \(N, T, D\)"),
    "one dimension": (lambda t: change(t, "audio", lambda x: x[:, 0, 0]), r"shape \(N, T, D\)"),
    "integers": (lambda t: change(t, "audio", lambda x: x.astype(int)), "got type int64. Save it as float32"),
    "complex": (lambda t: change(t, "audio", lambda x: x.astype(complex)), "got type complex128"),
    "long double": (lambda t: change(t, "audio", lambda x: x.astype(np.longdouble)), "float64, got type"),
    "list of features": (lambda t: change(t, "audio", lambda x: x.tolist()), "got a list"),
    "no steps": (lambda t: change(t, "audio", lambda x: x[:, :0]), "T and D must be at least 1"),
    "no channels": (lambda t: change(t, "audio", lambda x: x[..., :0]), "T and D must be at least 1"),
    "fewer features": (lambda t: change(t, "audio", lambda x: x[:-1]), "each of the 6 labels, got 5"),
    "fewer ids": (lambda t: change(t, "id", lambda x: x[:-1]), "id: must have 6 entries.*got 5"),
    "no clips": (lambda t: t | {"valid": {k: v[:0] for k, v in t["valid"].items()}}, "valid: .*at least one clip"),
    "other width": (lambda t: change(t, "vision", lambda x: x[..., :1], "test"), "2 in train, 2 in valid, 1 in test"),
    "label 4": (lambda t: more(t, regression_labels=[0, 4, 0, -5, 0, 0]), r"\[-3, 3\], got 4 for train\$_\$1 and 2"),
    "label NaN": (lambda t: more(t, regression_labels=[0, 0, np.nan, 0, 0, 0]), r"NaN in 1 clips, first train\$_\$2"),
    "label inf": (lambda t: change(t, "regression_labels", [0, np.inf, 0, 0, 0, 0]), "got inf for"),
    "label text": (lambda t: change(t, "regression_labels", ["1"] * 6), "must be numbers, got a str in row 0"),
    "labels text array": (lambda t: change(t, "regression_labels", np.array(["1"] * 6)), "must be numbers"),
    "labels matrix": (lambda t: change(t, "regression_labels", np.zeros((6, 2))), r"shape \(N,\), got \(6, 2\)"),
    "labels scalar": (lambda t: change(t, "regression_labels", 3.0), "array or a list, got a float"),
    "ids nested": (lambda t: change(t, "id", [["a"]] * 6), "id: must be texts, got a list in row 0"),
    "ids matrix": (lambda t: change(t, "id", np.zeros((6, 2), "U1")), "6 texts"),
    "length too long": (
        lambda t: more(t, audio_lengths=[1, 8, 9, 1, 1, 1]),
        r"audio_lengths must lie in 0\.\.7, .* got 8 in row 1 and 2 such rows",
    ),
    "length negative": (lambda t: more(t, vision_lengths=[-1] * 6), "got -1 in row 0 and 6"),
    "length fraction": (lambda t: more(t, audio_lengths=[0.5] * 6), "whole numbers, got 0.5"),
    "length NaN": (lambda t: more(t, audio_lengths=[np.nan] * 6), "whole numbers, got nan"),
    "length text": (lambda t: more(t, audio_lengths=["x"] * 6), "audio_lengths: must be numbers"),
    "lengths too few": (lambda t: more(t, audio_lengths=[1]), "6 entries, .* got 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trees_are_refused_with_a_sentence(make_tree, name):
    spoil, words = BROKEN[name]
    message = refused(spoil(make_tree()))
    assert re.search(words, message), message


def test_two_dimensions_are_one_step(make_tree):
    tree = make_tree()
    for name in tree:
        tree = change(tree, "audio", lambda x: x[:, 0], name)
    dataset = build(tree)
    assert dataset.train.features["a"].shape == (6, 1, 3)
    assert dataset.notes == ("audio has two dimensions (N, D) and is read as one step, T = 1.",)


def test_labels_may_be_lists_and_columns(make_tree):
    tree = make_tree()
    expected = build(tree).train.labels
    for form in (list, lambda x: [np.float32(v) for v in x], lambda x: x[:, None], lambda x: x.astype(object)):
        assert np.allclose(build(change(tree, "regression_labels", form)).train.labels, expected)


def test_labels_per_modality_are_ignored(make_tree):
    tree = make_tree(regression_labels_T=lambda n: ["nonsense"] * n)
    assert len(build(tree).train) == 6


def test_missing_ids_are_made(make_tree):
    dataset = build({name: {k: v for k, v in split.items() if k != "id"} for name, split in make_tree().items()})
    assert dataset.test.ids == [f"test_{row}" for row in range(5)]
    assert "ids" in dataset.notes[0]


def test_ids_may_be_bytes_or_numbers(make_tree):
    tree = change(make_tree(), "id", np.array([b"a", b"b", b"c", b"d", b"e", b"f"]))
    assert build(change(tree, "id", list(range(4)), "valid")).valid.ids == ["0", "1", "2", "3"]
    assert build(tree).train.ids[0] == "a"


def test_duplicate_ids_are_noted(make_tree):
    tree = change(make_tree(), "id", ["train$_$0", "x", "x", "y"], "valid")
    dataset, findings = mmsa.build(tree, source="MOSI.pkl", sha256="")
    assert findings.duplicate_ids == 2 and findings.shared_ids == 1
    assert any("1 ids occur in more than one split, first train$_$0" in note for note in dataset.notes)
    assert any("1 clips have the id of an earlier clip" in note for note in dataset.notes)


def spoiled(tree, key, value, split="train"):
    array = tree[split][key].copy()
    array[0, 0, 0] = value
    return change(tree, key, array, split)


@pytest.mark.parametrize("key", ["audio", "text", "vision"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_that_are_not_finite(make_tree, key, value, dtype):
    tree = spoiled(make_tree(dtype=dtype), key, value)
    if key == "audio" and value == -np.inf:
        assert build(tree).notes == ("train: 1 values of -inf in audio are read as 0, as MMSA does.",)
        assert build(tree).nonfinite_zeroed
        return
    kind = {"nan": "nan", "inf": r"+inf", "-inf": "-inf"}[str(value)]
    message = refused(tree)
    assert f"train {key} (1 {kind})" in message and "--nonfinite zero" in message
    dataset = build(tree, nonfinite="zero")
    assert dataset.nonfinite_zeroed and f"train {key} (1 {kind})" in dataset.notes[0]


def test_float64_beyond_float32_counts_as_infinite(make_tree):
    assert "(1 +inf)" in refused(spoiled(make_tree(dtype="float64"), "text", 1e300))


def test_unknown_nonfinite_rule(make_tree):
    with pytest.raises(UsageError, match="'error' or 'zero', got 'drop'"):
        build(make_tree(), nonfinite="drop")


def test_spans_keep_interior_zeros():
    content = np.array([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]], bool)
    starts, lengths = spans(content)
    assert starts.tolist() == [1, 0, 0, 3] and lengths.tolist() == [3, 1, 0, 2]


def test_given_lengths_find_their_side():
    content = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    starts, lengths, outside = spans_from_lengths(np.array([3, 3, 2, 2, 2]), content)
    assert starts.tolist() == [0, 1, 0, 0, 0]
    assert lengths.tolist() == [3, 3, 2, 0, 2]
    assert outside == 1


@pytest.mark.parametrize("leading", [False, True])
def test_padding_may_trail_or_lead(make_tree, leading):
    tree = make_tree(clips=(20, 4, 5))
    lengths = (tree["train"]["text"] != 0).any(2).sum(1)
    if leading:
        for key in ("audio", "text", "vision"):
            tree = change(tree, key, lambda x: x[:, ::-1])
    train = build(tree).train
    for m in "atv":
        assert train.lengths[m].tolist() == lengths.tolist()
        assert train.starts[m].tolist() == ((7 - lengths) if leading else 0 * lengths).tolist()


def test_text_length_comes_from_the_attention_mask(make_tree):
    tree = make_tree()
    mask = np.zeros((6, 3, 7), np.int32)
    mask[:, 1, 1:5] = 1
    text = np.ones((6, 7, 4), np.float32)
    text[5] = 0
    train = build(change(tree | {"train": tree["train"] | {"text_bert": mask}}, "text", text)).train
    assert train.lengths["t"].tolist() == [4, 4, 4, 4, 4, 0]
    assert train.starts["t"].tolist() == [1, 1, 1, 1, 1, 0]


def test_attention_mask_that_does_not_fit_is_noted(make_tree):
    tree = make_tree()
    dataset = build(tree | {"train": tree["train"] | {"text_bert": np.ones((6, 3, 9))}})
    assert dataset.train.lengths["t"].tolist() == build(tree).train.lengths["t"].tolist()
    assert "attention mask of text_bert does not fit" in dataset.notes[0]


def test_absent_modalities(make_tree):
    tree = make_tree()
    for name in tree:
        tree = change(tree, "vision", np.zeros_like, name)
    tree = tree | {"train": tree["train"] | {"audio_lengths": [0, 1, 1, 1, 1, 1]}}
    dataset = build(tree)
    assert dataset.modalities() == ("a", "t")
    assert dataset.train.present().tolist() == [[row > 0, True, False] for row in range(6)]
    assert dataset.typical_lengths()["v"] == 1


def test_values_beyond_given_lengths_are_noted(make_tree):
    tree = change(make_tree(), "audio", np.ones((6, 7, 3), np.float32))
    dataset = build(tree | {"train": tree["train"] | {"audio_lengths": [7, 3, 3, 7, 7, 7]}})
    assert dataset.notes == ("train: 2 clips hold values beyond audio_lengths in audio; they are not read.",)
    assert dataset.train.lengths["a"].tolist() == [7, 3, 3, 7, 7, 7]


def test_hostile_id_cannot_break_the_message(make_tree):
    tree = change(make_tree(), "id", ["\x1b[31m\n" + "x" * 500] * 6)
    message = refused(change(tree, "regression_labels", [9] * 6))
    assert "\x1b" not in message and len(message) < 400


def test_mosi(real_file):
    dataset, findings = mmsa.read(real_file("mosi/mosi.pkl"))
    assert [len(dataset.train), len(dataset.valid), len(dataset.test)] == [1284, 229, 686]
    assert dataset.dims() == {"a": 73, "t": 384, "v": 35} and dataset.modalities() == ("a", "t")
    assert int((dataset.test.labels == 0).sum()) == 30 and findings.duplicate_ids == 0
    assert dataset.train.lengths["t"].max() == 50 and set(dataset.train.lengths["a"].tolist()) == {1}


def test_mosi_word(real_file):
    dataset, _ = mmsa.read(real_file("mosi_word/mosi_word.pkl"))
    assert dataset.aligned_groups() == (("a", "t", "v"),)
    every = np.concatenate([dataset.train.lengths["t"], dataset.valid.lengths["t"], dataset.test.lengths["t"]])
    assert (every.min(), every.max()) == (2, 44)
