"""Conversations from the ids of clips, and batches that keep them whole."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast.data.conversations import conversation_batches, conversations


def test_the_order_is_read_from_mmsas_ids():
    found = conversations(["b_2$_$10", "a$_$1", "b_2$_$9"])
    assert found.tolist() == [[0, 10], [1, 1], [0, 9]]


def test_ids_without_an_order_have_no_conversations():
    assert conversations(["a", "b"]) is None
    assert conversations(["a$_$1", "b"]) is None
    assert conversations(["a$_$1", "b$_$1"]) is None  # every clip alone
    assert conversations([]) is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 20), st.randoms())
def test_batches_hold_whole_conversations_in_order(groups, size, random):
    conversation = np.array([[group, random.randrange(100)] for group in groups])
    order = np.array(random.sample(range(len(groups)), len(groups)))
    batches = conversation_batches(conversation, order, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(groups)))
    for rows in batches:
        inside = set(conversation[rows, 0].tolist())
        assert len(rows) == sum(groups.count(group) for group in inside)
        assert len(rows) <= size or len(inside) == 1
        for group in inside:
            places = conversation[rows][conversation[rows, 0] == group, 1]
            assert (np.diff(places) >= 0).all()
