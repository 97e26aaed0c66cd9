"""smcmsa-style: the bank, and what is found in it."""

import torch

from rohydr_fast.models.recovery.smcmsa import NEIGHBOURS
from rohydr_fast.models.sequences import Sequence
from tests.models.recovery.learning import CLIPS, build, clips, relative_error, supervise
from tests.small_model import small_config


def test_an_empty_bank_gives_zeros():
    recovery = build("smcmsa")
    given = supervise(recovery, clips(small_config()))
    assert not given.recovered["v"].generated.x.any()


def test_a_clip_never_finds_itself_but_finds_its_twin():
    recovery, sequences = build("smcmsa"), clips(small_config())
    twins = {m: Sequence(x.clone(), lengths) for m, (x, lengths) in sequences.items()}
    for x, _ in twins.values():
        x[1] = x[0]  # clip 1 is clip 0 again
    twins["v"].x[1] = 7.0  # but for the modality that is missing
    recovery.observe(twins, torch.arange(CLIPS))
    found = supervise(recovery, twins).recovered["v"].generated.x
    # Similarity 1 against about 0 at temperature 0.1: the twin's content outweighs all others together.
    assert (found[0] > 5).all() and (found[1] < 3).all()


def test_completion_beats_the_mean_where_neighbours_are_alike():
    recovery, sequences = build("smcmsa"), clips(small_config())
    # Sixteen prototypes, four clips of each.
    grouped = {m: Sequence(x[:16].repeat(4, 1, 1) + 0.01 * x, lengths) for m, (x, lengths) in sequences.items()}
    recovery.observe(grouped, torch.arange(CLIPS))
    truth = grouped["v"].x
    found = supervise(recovery, grouped).recovered["v"].generated.x
    assert float((found - truth).pow(2).mean() / truth.var()) < 0.5 < relative_error(recovery, seed=5)


def test_what_all_clips_have_in_common_does_not_make_them_alike():
    recovery, sequences = build("smcmsa"), clips(small_config())
    grouped = {m: Sequence(x[:16].repeat(4, 1, 1) + 0.01 * x, lengths) for m, (x, lengths) in sequences.items()}
    grouped |= {m: Sequence(grouped[m].x + 100, grouped[m].lengths) for m in "at"}
    recovery.observe(grouped, torch.arange(CLIPS))
    truth = grouped["v"].x
    found = supervise(recovery, grouped).recovered["v"].generated.x
    assert float((found - truth).pow(2).mean() / truth.var()) < 0.05  # not centred: 0.4


def test_a_clip_is_refreshed_and_the_bank_never_grows_beyond_the_training_split():
    recovery, sequences = build("smcmsa"), clips(small_config())
    order = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(0))
    recovery.observe(sequences, torch.arange(CLIPS))
    shuffled = {m: Sequence(2 * x[order], lengths[order]) for m, (x, lengths) in sequences.items()}
    recovery.observe(shuffled, order)
    assert int(recovery.filled) == CLIPS
    torch.testing.assert_close(recovery.vectors_a, 2 * sequences["a"].x[:, 0])
    recovery.observe(sequences, torch.arange(CLIPS) + 1000)  # no room: not remembered
    torch.testing.assert_close(recovery.vectors_a, 2 * sequences["a"].x[:, 0])


def test_the_bank_does_not_depend_on_the_order_of_batches():
    sequences, ids = clips(small_config()), torch.arange(CLIPS) * 7919 % 1009  # ids in no order
    banks = []
    for seed, size in ((0, CLIPS), (1, 10), (2, 1)):
        recovery = build("smcmsa")
        order = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(size):
            batch = {m: Sequence(x[rows], lengths[rows]) for m, (x, lengths) in sequences.items()}
            recovery.observe(batch, ids[rows])
        banks.append(dict(recovery.named_buffers()))
    first = banks[0]
    torch.testing.assert_close(first["vectors_a"], sequences["a"].x[ids.argsort(), 0])
    for other in banks[1:]:
        assert all(torch.equal(part, first[name]) for name, part in other.items())


def test_an_absent_modality_of_a_training_clip_is_not_offered():
    recovery, sequences = build("smcmsa"), clips(small_config())
    lengths = sequences["v"].lengths.clone()
    lengths[NEIGHBOURS:] = 0
    absent = {**sequences, "v": Sequence(sequences["v"].x * (lengths > 0)[:, None, None], lengths)}
    recovery.observe(absent, torch.arange(CLIPS))
    found = supervise(recovery, sequences).recovered["v"].generated.x[:, 0]
    known = sequences["v"].x[:NEIGHBOURS, 0]
    # Every completion is a mean of those few: it lies in their hull, channel by channel.
    assert (found >= known.min(0).values - 1e-5).all() and (found <= known.max(0).values + 1e-5).all()
