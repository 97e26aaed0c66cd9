"""Cross-validation by video: every clip once, no video in two splits, the same for everyone."""

import numpy as np
import pytest

from rohydr_fast.data import load
from rohydr_fast.data.folds import by_video
from rohydr_fast.errors import DataError, UsageError
from rohydr_fast.modalities import MODALITIES
from tests.small_data import small_dataset


def video_of(clip: str) -> str:
    return clip.split("$_$")[0]


def check_fold(dataset, folds: int, fold: int):
    made = by_video(dataset, folds, fold)
    splits = (made.train, made.valid, made.test)
    videos = [{video_of(clip) for clip in split.ids} for split in splits]
    assert not (videos[0] & videos[1] or videos[0] & videos[2] or videos[1] & videos[2])
    before = [clip for split in (dataset.train, dataset.valid, dataset.test) for clip in split.ids]
    assert sorted(clip for split in splits for clip in split.ids) == sorted(before)
    assert f"fold {fold} of {folds}" in made.notes[-1] and made.sha256 == dataset.sha256
    return made


def test_every_clip_is_tested_once_and_keeps_its_content():
    dataset = small_dataset()
    known = {
        clip: (split, row)
        for split in (dataset.train, dataset.valid, dataset.test)
        for row, clip in enumerate(split.ids)
    }
    tested = []
    for fold in (1, 2, 3):
        made = check_fold(dataset, 3, fold)
        tested += made.test.ids
        for split in (made.train, made.valid, made.test):
            for row, clip in enumerate(split.ids):
                before, place = known[clip]
                assert split.labels[row] == before.labels[place] and split.sample_ids[row] == before.sample_ids[place]
                for m in MODALITIES:
                    count = split.lengths[m][row]
                    assert count == before.lengths[m][place]
                    np.testing.assert_array_equal(split.features[m][row, :count], before.features[m][place, :count])
    assert sorted(tested) == sorted(known)


def test_folds_are_of_nearly_equal_size_and_always_the_same():
    dataset = small_dataset(train=40, valid=20, test=20)
    sizes = [len(check_fold(dataset, 5, fold).test) for fold in range(1, 6)]
    assert max(sizes) - min(sizes) <= 3  # a conversation has three clips
    assert by_video(dataset, 5, 2).test.ids == by_video(small_dataset(train=40, valid=20, test=20), 5, 2).test.ids


def test_the_real_file_of_ten_videos(real_file):
    dataset = load(real_file("mosi_word/mosi_word.pkl"))
    for fold in (1, 2, 3):
        made = check_fold(dataset, 3, fold)
        assert made.modalities() == ("a", "t", "v") and min(len(made.test), len(made.valid)) > 20


@pytest.mark.parametrize(
    ("folds", "fold", "error", "message"),
    [
        (2, 1, UsageError, "--folds: must be 3 or more"),
        (3, 4, UsageError, "--fold: must be between 1 and --folds 3"),
        (3, 0, UsageError, "--fold: must be between 1 and --folds 3"),
        (0, 2, UsageError, "--folds: must be 3 or more"),
        (99, 1, DataError, "--folds must be at most its 8 videos"),
    ],
)
def test_what_cannot_be_is_a_sentence(folds, fold, error, message):
    with pytest.raises(error, match=message):
        by_video(small_dataset(), folds, fold)


def test_ids_without_a_video_are_refused():
    dataset = small_dataset()
    dataset.valid.ids[0] = "someone"
    with pytest.raises(DataError, match="needs ids that name a video.*got 'someone'"):
        by_video(dataset, 3, 1)
