"""Missing patterns: exact rates, uniform choices, independence of the batch layout, and the sentences."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast.data import missing as missing_module
from rohydr_fast.data.missing import PROTOCOLS, MissingSpec, missing_table, rate_note, realised_rate
from rohydr_fast.errors import UsageError

ALL = ("a", "t", "v")
SUBSETS = [c for size in (1, 2, 3) for c in itertools.combinations(ALL, size)]


def spec_of(protocol, rate=0.5):
    if protocol == "fixed":
        return MissingSpec("fixed", available=("a", "t"))
    if protocol == "per-modality":
        return MissingSpec("per-modality", rates={"a": rate, "t": 0.1, "v": 0.6})
    return MissingSpec(protocol, rate=rate)


def complete(n):
    return np.ones((n, 3), dtype=bool)


def ids_of(n, start=1000):
    return np.arange(n, dtype=np.int64) * 7919 + start


def batches_of(n, size):
    return np.array_split(np.arange(n), range(size, n, size))


def draw(spec, present, *, seed=0, epoch=0, modalities=ALL, batches=None):
    return missing_table(
        spec, present, ids_of(len(present)), seed=seed, epoch=epoch, batches=batches, modalities=modalities
    )


presence = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40).map(
    lambda rows: np.array(rows, dtype=bool)
)


@given(
    present=presence,
    protocol=st.sampled_from(PROTOCOLS),
    rate=st.integers(0, 7).map(lambda i: i / 10),
    modalities=st.sampled_from(SUBSETS),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=150, deadline=None)
def test_every_protocol_keeps_one_modality_and_never_invents_one(present, protocol, rate, modalities, seed):
    usable = present & np.array([m in modalities for m in ALL])
    spec = spec_of(protocol, rate)
    if protocol == "fixed" and usable.any() and not usable[:, :2].any():
        return
    missing = draw(spec, present, seed=seed, modalities=modalities, batches=batches_of(len(present), 3))
    assert missing.shape == present.shape and missing.dtype == bool
    assert missing[~usable].all()
    assert ((~missing).any(axis=1) == usable.any(axis=1)).all()


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p != "batch-table"])
def test_a_pattern_follows_its_clip_whatever_the_order(protocol):
    rng = np.random.default_rng(0)
    present = rng.random((60, 3)) < 0.8
    order, ids = rng.permutation(60), ids_of(60)
    keys = dict(seed=3, epoch=2, modalities=ALL)
    straight = missing_table(spec_of(protocol), present, ids, batches=batches_of(60, 7), **keys)
    shuffled = missing_table(spec_of(protocol), present[order], ids[order], batches=batches_of(60, 4), **keys)
    assert (straight[order] == shuffled).all()


@pytest.mark.parametrize("protocol", ["exact", "fractions", "per-modality", "mixed", "batch-table"])
def test_seed_and_epoch_select_the_pattern(protocol):
    def table(seed, epoch):
        return draw(spec_of(protocol), complete(100), seed=seed, epoch=epoch, batches=batches_of(100, 10))

    assert (table(1, 1) == table(1, 1)).all()
    assert (table(1, 1) != table(1, 2)).any()
    assert (table(1, 1) != table(2, 1)).any()


KNOWN = {
    "exact": ["v", "v", "av", "at", "t", "tv"],
    "fractions": ["tv", "t", "t", "v", "at", "a"],
    "mixed": ["tv", "v", "t", "a", "tv", "av"],
}


@pytest.mark.parametrize("protocol", KNOWN)
def test_patterns_stay_what_they_are_so_that_published_results_can_be_repeated(protocol):
    missing = missing_table(MissingSpec(protocol), complete(6), np.arange(6), seed=7, epoch=1, modalities=ALL)
    assert ["".join(m for m, gone in zip(ALL, row, strict=True) if not gone) for row in missing] == KNOWN[protocol]


def test_equal_priorities_are_settled_by_the_sample_id(monkeypatch):
    monkeypatch.setattr(missing_module, "_words", lambda keys, seed, epoch: np.zeros((len(keys), 5), dtype=np.int64))
    ids = np.array([30, 10, 20])
    missing = missing_table(MissingSpec("exact", rate=0.3), complete(3), ids, seed=0, epoch=0, modalities=ALL)
    assert (missing == [(False, False, False), (False, True, True), (False, True, False)]).all()


class TestExact:
    @given(present=presence, rate=st.floats(0, 1))
    @settings(max_examples=100, deadline=None)
    def test_removes_exactly_the_rounded_number_of_slots(self, present, rate):
        slots, clips = present.sum(), present.any(axis=1).sum()
        removed = (draw(MissingSpec("exact", rate=rate), present) & present).sum()
        assert removed == min(round(rate * int(slots)), slots - clips)

    def test_rate_zero_removes_nothing_and_above_the_cap_each_clip_keeps_one(self):
        assert not draw(MissingSpec("exact", rate=0.0), complete(50)).any()
        for rate in (0.67, 0.7, 1.0):
            assert (draw(MissingSpec("exact", rate=rate), complete(50)).sum(axis=1) == 2).all()

    def test_modalities_are_removed_equally_often(self):
        for rate in (0.3, 0.7):
            share = draw(MissingSpec("exact", rate=rate), complete(6000)).mean(axis=0)
            assert share == pytest.approx([min(rate, 2 / 3)] * 3, abs=0.025)

    def test_absent_slots_do_not_count(self):
        present = complete(40)
        present[:20, 2] = False
        missing = draw(MissingSpec("exact", rate=0.25), present)
        assert (missing & present).sum() == 25
        assert realised_rate(missing, present, ALL) == 0.25


class TestFractions:
    @pytest.mark.parametrize(
        ("rate", "two", "one"),
        [(0.0, 0, 0), (0.1, 0.1, 0.1), (0.35, 0.4, 0.25), (0.5, 0.7, 0.1), (0.7, 1, 0), (1.0, 1, 0)],
    )
    def test_shares_are_those_of_the_published_tables(self, rate, two, one):
        lost = draw(MissingSpec("fractions", rate=rate), complete(6000)).sum(axis=1)
        assert (lost == 2).mean() == pytest.approx(two, abs=0.02)
        assert (lost == 1).mean() == pytest.approx(one, abs=0.02)

    def test_every_pattern_is_equally_likely(self):
        missing = draw(MissingSpec("fractions", rate=0.3), complete(6000))
        for lost, share in ((1, 0.3), (2, 0.3)):
            rows = missing[missing.sum(axis=1) == lost]
            counts = np.unique(rows, axis=0, return_counts=True)[1]
            assert counts / 6000 == pytest.approx([share / 3] * 3, abs=0.02)

    @pytest.mark.parametrize(("rate", "share"), [(0.2, 0.4), (0.5, 1.0), (0.9, 1.0)])
    def test_two_modalities_lose_one_at_twice_the_rate(self, rate, share):
        missing = draw(MissingSpec("fractions", rate=rate), complete(6000), modalities=("a", "v"))
        assert missing[:, 1].all()
        assert missing[:, [0, 2]].any(axis=1).mean() == pytest.approx(share, abs=0.02)


class TestBatchTable:
    # Realised rates of the published code on MOSI at batch 32: 41, 8 and 22 batches.
    PUBLISHED = {41: (0.098, 0.293, 0.488, 0.650), 8: (0.125, 0.375, 0.625, 0.667), 22: (0.091, 0.273, 0.455, 0.606)}

    @pytest.mark.parametrize("count", PUBLISHED)
    def test_realises_the_published_rates(self, count):
        present, batches = complete(count * 4), batches_of(count * 4, 4)
        for rate, published in zip((0.1, 0.3, 0.5, 0.7), self.PUBLISHED[count], strict=True):
            missing = draw(MissingSpec("batch-table", rate=rate), present, batches=batches)
            assert realised_rate(missing, present, ALL) == pytest.approx(published, abs=5e-4)

    def test_a_batch_shares_one_pattern_and_the_survivor_changes_between_batches(self):
        batches = batches_of(400, 10)
        missing = draw(MissingSpec("batch-table", rate=0.3), complete(400), batches=batches)
        patterns = [np.unique(missing[rows], axis=0) for rows in batches]
        assert all(len(pattern) == 1 for pattern in patterns)
        assert [int(p.sum()) for p in patterns] == [2] * 12 + [1] * 12 + [0] * 16
        assert len({tuple(p[0]) for p in patterns[:12]}) == 3

    def test_rate_zero_keeps_all(self):
        assert not draw(MissingSpec("batch-table", rate=0.0), complete(40), batches=batches_of(40, 1)).any()

    def test_a_clip_without_the_survivor_keeps_what_it_has(self):
        present = complete(100)
        present[::2] = (True, False, False)
        missing = draw(MissingSpec("batch-table", rate=0.7), present, batches=batches_of(100, 10))
        assert (missing[::2] == (False, True, True)).all()

    def test_needs_batches(self):
        with pytest.raises(UsageError, match="batch-table must know the batches"):
            draw(MissingSpec("batch-table", rate=0.3), complete(4))


class TestFixed:
    def test_keeps_the_set(self):
        missing = draw(MissingSpec("fixed", available=("v", "a")), complete(5))
        assert (missing == (False, True, False)).all()

    def test_a_clip_that_has_none_of_it_keeps_its_first_and_the_note_counts_it(self):
        present = complete(4)
        present[2] = (True, False, True)
        spec = MissingSpec("fixed", available=("t",))
        assert (draw(spec, present)[2] == (False, True, True)).all()
        assert rate_note(spec, present, ALL) == (
            "{t}: 1 of 4 clips have none of these modalities and keep the first one they have."
        )

    def test_refuses_a_set_that_no_clip_has(self):
        with pytest.raises(UsageError, match="available must name a modality .* got t"):
            draw(MissingSpec("fixed", available=("t",)), complete(4), modalities=("a", "v"))


def removable(present, rates):
    """Can these numbers of slots be removed together with one kept per clip? Hall's condition, spelled out."""
    need = [round(r * int(n)) for r, n in zip(rates, present.sum(axis=0), strict=True)]
    has = present.sum(axis=1)
    for chosen in (c for size in (1, 2, 3) for c in itertools.combinations(range(3), size)):
        room = sum(min(int(row[list(chosen)].sum()), max(int(h) - 1, 0)) for row, h in zip(present, has, strict=True))
        if sum(need[m] for m in chosen) > room:
            return None
    return need


class TestPerModality:
    @given(present=presence, rates=st.tuples(*[st.floats(0, 1)] * 3), seed=st.integers(0, 99))
    @settings(max_examples=200, deadline=None)
    def test_rates_are_exact_wherever_that_is_possible(self, present, rates, seed):
        spec = MissingSpec("per-modality", rates=dict(zip(ALL, rates, strict=True)))
        removed = (draw(spec, present, seed=seed) & present).sum(axis=0)
        need, note = removable(present, rates), rate_note(spec, present, ALL)
        if need is not None and note is None:
            assert removed.tolist() == need
        if need is None:
            assert note is not None or not present.any()

    def test_full_removal_budget_is_reached_although_draws_collide(self):
        spec = MissingSpec("per-modality", rates={"a": 0.7, "t": 0.7, "v": 0.6})
        missing = draw(spec, complete(100))
        assert missing.sum(axis=0).tolist() == [70, 70, 60] and (missing.sum(axis=1) == 2).all()

    def test_modalities_are_independent_where_nothing_collides(self):
        missing = draw(MissingSpec("per-modality", rates={"a": 0.4, "v": 0.5}), complete(6000))
        assert not missing[:, 1].any()
        assert (missing[:, 0] & missing[:, 2]).mean() == pytest.approx(0.2, abs=0.02)

    def test_rates_beyond_the_budget_are_scaled_and_said(self):
        spec = MissingSpec("per-modality", rates={"a": 1.0, "t": 1.0, "v": 0.5})
        assert draw(spec, complete(100)).sum(axis=0).tolist() == [80, 80, 40]
        assert "scaled by 0.8000" in rate_note(spec, complete(100), ALL)

    def test_one_modality_that_cannot_go_is_said(self):
        present = complete(10)
        present[:4] = (False, True, False)
        spec = MissingSpec("per-modality", rates={"t": 1.0})
        assert draw(spec, present)[:, 1].sum() == 6
        assert "rates of t are above" in rate_note(spec, present, ALL)


def test_mixed_draws_each_non_empty_subset_equally_often():
    missing = draw(MissingSpec("mixed"), complete(7000))
    counts = np.unique(missing, axis=0, return_counts=True)[1]
    assert len(counts) == 7 and counts / 7000 == pytest.approx([1 / 7] * 7, abs=0.015)
    present = complete(3000) & np.array([True, False, True])
    counts = np.unique(draw(MissingSpec("mixed"), present), axis=0, return_counts=True)[1]
    assert len(counts) == 3 and counts / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_natural_withholds_only_what_the_file_lacks():
    present = np.random.default_rng(1).random((30, 3)) < 0.7
    assert (draw(MissingSpec("natural"), present) == ~present).all()
    assert realised_rate(~present, present, ALL) == 0.0


def test_rate_note_names_the_cap():
    assert rate_note(MissingSpec("exact", rate=0.7), complete(10), ALL) == (
        "rate 0.7 is above the highest possible 0.6667 (one modality is always kept): every clip keeps exactly one."
    )
    assert "0.5000" in rate_note(MissingSpec("exact", rate=0.6), complete(10), ("a", "t"))
    assert "realised" in rate_note(MissingSpec("fractions", rate=0.7), complete(10), ALL)
    assert rate_note(MissingSpec("exact", rate=0.6), complete(10), ALL) is None
    assert rate_note(MissingSpec("mixed"), complete(10), ALL) is None


@pytest.mark.parametrize(
    ("present", "ids", "modalities"),
    [(np.ones((4, 2)), ids_of(4), ALL), (complete(4), ids_of(3), ALL), (complete(4), ids_of(4), ("a", "x"))],
)
def test_wrong_shapes_and_modalities_are_refused(present, ids, modalities):
    with pytest.raises(UsageError, match="missing pattern: .* must .*, got "):
        missing_table(MissingSpec(), present, ids, seed=0, epoch=0, batches=None, modalities=modalities)


SPECS = {
    ("exact", "0.5", None): "exact 0.5",
    ("exact", "0", None): "exact 0.0",
    ("batch-table", "0.7", None): "batch-table 0.7",
    ("exact", "mixed", None): "mixed",
    ("mixed", "0.5", None): "mixed",
    ("natural", "0.5", None): "natural",
    ("exact", "0.5", "v,text"): "{t,v}",
    ("fixed", "0.5", "t"): "{t}",
    ("exact", "v=0.5, a=0.3", None): "per-modality a=0.3 v=0.5",
    ("per-modality", "0.2", None): "per-modality a=0.2 t=0.2 v=0.2",
}


@pytest.mark.parametrize("words", SPECS)
def test_parse_reads_the_words_and_the_spec_survives_json(words):
    spec = MissingSpec.parse(*words)
    assert spec.name == SPECS[words]
    assert MissingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert isinstance(hash(spec), int)


REFUSED = {
    ("exact", "1.5", None): "rate must lie in",
    ("exact", "-0.1", None): "rate must lie in",
    ("exact", "nan", None): "rate must lie in",
    ("exact", "half", None): "must be a number",
    ("random", "0.5", None): "protocol must be one of",
    ("exact", "x=0.5", None): "rates must name some of a, t, v",
    ("exact", "a=2", None): "rate must lie in",
    ("exact", "a=0.2,a=0.3", None): "once",
    ("exact", "0.5", "a,x"): "available",
    ("exact", "0.5", ""): "all modalities are unavailable",
    ("fixed", "0.5", None): "available must be given",
    ("mixed", "0.5", "a"): "must not be combined",
    ("exact", "mixed", "a"): "must not be combined",
    ("fractions", "a=0.1", None): "must be a number for --protocol fractions",
    ("batch-table", "0.55", None): "one of 0, 0.1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_parse_refuses_with_one_sentence(words):
    with pytest.raises(UsageError, match=REFUSED[words]) as caught:
        MissingSpec.parse(*words)
    assert "\n" not in str(caught.value)


def test_constructor_refuses_parameters_of_another_protocol():
    for fields in ({"rates": {"a": 0.1}}, {"available": ("a",)}, {"rate": None}, {"rate": math.inf}, {"rate": "0.5"}):
        with pytest.raises(UsageError):
            MissingSpec("exact", **fields)
    with pytest.raises(UsageError, match="got also nonsense"):
        MissingSpec.from_dict({"protocol": "mixed", "nonsense": 1})
